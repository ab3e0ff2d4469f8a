"""The ledger of a store: one object per finished bucket.

An entry is written once, after the shards of its bucket, and only where there
is none. Shards that no entry names count as not written. An entry depends on
the store's metadata and rows alone, and not on which process wrote it.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from saejax import durable
from saejax.data.store import arrays, manifest, sums
from saejax.data.store.columns import Column
from saejax.data.store.place import Place
from saejax.errors import InputError

FOLDER = "ledger"


def name(bucket: int) -> str:
  """Name of the entry of a bucket.

  Args:
    bucket: number of the bucket.

  >>> name(12)
  'ledger/00000012.json'
  """
  return f"{FOLDER}/{bucket:08d}.json"


def read(
  place: Place, names: Iterable[str] | None = None
) -> dict[int, dict[str, Any]]:
  """Reads the entries of a store.

  Args:
    place: the store.
    names: names of the entries; by default all that are there.

  Returns:
    Entries by bucket, in order.

  Raises:
    InputError: an entry is damaged or has another name; names it.
  """
  if names is None:
    names = [n for n in place.names(FOLDER) if n.endswith(".json")]
  entries = {}
  for file, content in sorted(place.read(names).items()):
    entry = parse(place, file, content)
    entries[entry["bucket"]] = entry
  return entries


def parse(place: Place, file: str, content: bytes) -> dict[str, Any]:
  """Parses an entry.

  Args:
    place: the store, for errors.
    file: name of the entry.
    content: its bytes.

  Raises:
    InputError: it differs from what was written.
  """
  remedy = "repair the store: repeat its harvest with --repair"
  entry = durable.parse_json(content, str(place / file), remedy=remedy)
  bucket = entry.get("bucket")
  if (
    not durable.is_sealed(entry)
    or not isinstance(bucket, int)
    or file != name(bucket)
    or content != encoded(entry)
  ):
    rule = "differs from its checksum"
    raise InputError("path", str(place / file), rule, remedy)
  return entry


def encoded(entry: Mapping[str, Any]) -> bytes:
  """The bytes of an entry.

  Args:
    entry: the entry, with its checksum.
  """
  return durable.canonical(entry).encode() + b"\n"


def check(
  place: Place,
  entries: Iterable[Mapping[str, Any]],
  meta: Mapping[str, Any],
  columns: Mapping[str, Column],
) -> None:
  """Checks that entries agree with the metadata of a store.

  Args:
    place: the store, for errors.
    entries: entries of its ledger.
    meta: metadata of the store.
    columns: declarations of its columns.

  Raises:
    InputError: a bucket has other rows, chunks or shards than the metadata
      allow.
  """
  for entry in entries:
    bucket, first, rows = (entry[n] for n in ("bucket", "first", "rows"))
    size = meta["bucket_rows"]
    holds = (
      all(isinstance(n, int) for n in (bucket, first, rows))
      and first == bucket * size
      and first >= 0
      and 0 <= rows <= size
      and first + rows <= meta["capacity"]
      # Checked before anything of this length is allocated.
      and set(entry["chunks"]) == set(columns)
    )
    if holds:
      number = -(-rows // meta["chunk_rows"])
      holds = all(len(found) == number for found in entry["chunks"].values())
    if holds:
      shards = {
        file: size
        for column, about in columns.items()
        for file, size in arrays.shards(column, about, first, rows, meta)
      }
      holds = entry["shards"] == shards
    if not holds:
      raise manifest.broken(
        place / name(bucket),
        f"bucket {bucket} of {rows} rows does not agree with the metadata",
      )


def rows(entries: Iterable[Mapping[str, Any]]) -> int:
  """Number of rows of buckets.

  Args:
    entries: their entries.
  """
  return sum(entry["rows"] for entry in entries)


def stats(
  entries: list[dict[str, Any]], declared: Mapping[str, Column]
) -> dict[str, Any]:
  """Computes counts of rows, and the moments of each float column.

  Args:
    entries: entries of the buckets, in order.
    declared: declarations of the columns.

  Returns:
    {"columns": the result of `sums.stats` by name, "rows", "read", "dropped"}.
  """
  counts: dict[str, int] = {}
  for entry in entries:
    for rule, count in entry["dropped"].items():
      counts[rule] = counts.get(rule, 0) + count
  moments = {
    name: sums.stats(
      sums.merge(
        (sums.Sums.from_json(entry["sums"][name]) for entry in entries),
        d=column.size,
      ),
      column.shape,
    )
    for name, column in declared.items()
    if column.is_float
  }
  return {
    "columns": moments,
    "rows": rows(entries),
    "read": sum(entry["read"] for entry in entries),
    "dropped": counts,
  }
