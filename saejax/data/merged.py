"""Stores of one model and site as the rows of another store.

The rows keep their order, and their documents the numbers of their store plus
2^40 times its place. A merge is written like any harvest: it resumes after a
kill, and several processes may share it.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from saejax import durable
from saejax.data import fill
from saejax.data.rows import Block, Resume, Span
from saejax.data.store import create, reader
from saejax.data.store import place as places
from saejax.data.store.columns import Column
from saejax.data.store.share import Share
from saejax.errors import InputError

DOCUMENTS = 2**40  # numbers of documents that each store has for itself
# What a store has of its own: layout, number of rows, source of them.
_OWN = (
  "arrays",
  "bucket_rows",
  "capacity",
  "chunk_rows",
  "compression",
  "corpus",
  "format",
  "part",
  "rows",
  "seed",
  "shard_rows",
  "shuffled",
)
_BLOCK_CHUNKS = 8


class StoreRows:
  """The rows of several stores, one after the other; a `rows.RowSource`.

  Args:
    stores: the stores.

  Raises:
    InputError: they differ in columns, model, site or another setting.
  """

  def __init__(self, stores: Sequence[reader.Store]):
    self._stores = list(stores)
    first = self._stores[0]
    shared = {k: v for k, v in first.meta.items() if k not in _OWN}
    for store in self._stores[1:]:
      for name in sorted({*shared, *store.meta} - {*_OWN}):
        if store.meta.get(name) != shared.get(name):
          raise InputError(
            "stores",
            str(store.place),
            f"must have the {name} of {first.place}, "
            f"{_short(shared.get(name))}, has {_short(store.meta.get(name))}",
            "merge stores of one model, site and set of rules",
          )
    self._shared = shared
    self._starts = np.cumsum([0] + [store.rows for store in self._stores])

  @property
  def columns(self) -> Mapping[str, Column]:
    return self._stores[0].columns

  @property
  def about(self) -> Mapping[str, Any]:
    merged = [
      {"content": s.content, "rows": s.rows, "corpus": s.meta.get("corpus")}
      for s in self._stores
    ]
    return self._shared | {"merged": merged}

  @property
  def files(self) -> Mapping[str, bytes]:
    first = self._stores[0]
    return first.place.read(first.small)

  @property
  def group(self) -> Mapping[str, Any] | None:
    return self._stores[0].meta.get("group")

  def prepare(
    self, recorded: Mapping[str, Any] | None
  ) -> Mapping[str, Any] | None:
    found = [store.stats["calibration"] for store in self._stores]
    if not all(found):
      return None
    # Norms up to the largest of the limits are among the rows.
    norms = np.max([one["median_norm"] for one in found], axis=0)
    return {
      "median_norm": norms.tolist(),
      "rows": sum(one["rows"] for one in found),
    }

  def count(self, most: int) -> int:
    return min(int(self._starts[-1]), most)

  def blocks(
    self, spans: Sequence[Span], resume: Resume | None = None
  ) -> Iterator[Block]:
    for number, span in enumerate(spans):
      for store, at in zip(self._stores, self._starts.tolist(), strict=False):
        start = max(span.start - at, 0)
        stop = min(span.stop - at, store.rows)
        size = _BLOCK_CHUNKS * store.meta["chunk_rows"]
        for i in range(start, stop, size):
          last = min(i + size, stop)
          values = _values(store, i, last)
          if "doc" in values:
            values["doc"] = values["doc"] + DOCUMENTS * self._number(store)
          yield Block(number, values, Resume({}, at + last), read=last - i)

  def _number(self, store: reader.Store) -> int:
    return next(i for i, one in enumerate(self._stores) if one is store)


def _values(
  store: reader.Store, start: int, stop: int
) -> dict[str, np.ndarray]:
  """Rows of a store, counted without the gaps between its buckets."""
  parts, at = [], 0
  for first, last in store.intervals:
    a, b = max(start - at, 0), min(stop - at, last - first)
    if a < b:
      parts.append((first + a, first + b))
    at += last - first
  return {
    name: np.concatenate(store.read_many(parts, name)) for name in store.columns
  }


def _short(value: Any) -> str:
  text = durable.canonical(value)
  return text if len(text) <= 80 else text[:77] + "..."


def merge(
  stores: Sequence[reader.Store],
  folder: places.Path,
  *,
  shuffle_seed: int | None = 0,
  bucket_rows: int = create.BUCKET_ROWS,
  shard_rows: int = create.SHARD_ROWS,
  chunk_rows: int = create.CHUNK_ROWS,
  share: Share = Share(),
  progress: fill.Progress | None = None,
) -> places.Local | places.Objects:
  """Writes the rows of stores into one store.

  Args:
    stores: stores of one model and site; that of rows follows theirs.
    folder: parent of the store, whose name follows from its metadata.
    shuffle_seed: seed for shuffling in a bucket; None keeps the order.
    bucket_rows: rows shuffled together; a multiple of shard_rows.
    shard_rows: rows per file; a multiple of chunk_rows.
    chunk_rows: rows per chunk, the unit of reading.
    share: which process this is, of how many.
    progress: see `fill.fill`.

  Returns:
    Where the store is; complete once all processes have ended.

  Raises:
    InputError: the stores differ in columns, model, site or another setting, or
      the folder cannot be written.
  """
  if len(stores) < 2:
    raise InputError(
      "stores", len(stores), "must be two or more", "name the stores to merge"
    )
  source = StoreRows(stores)
  meta = fill.describe(
    source,
    rows=sum(store.rows for store in stores),
    split=stores[0].meta["split"],
    shuffle_seed=shuffle_seed,
    bucket_rows=bucket_rows,
    shard_rows=shard_rows,
    chunk_rows=chunk_rows,
  )
  place = places.at(folder) / f"store-{durable.digest(meta)[:16]}"
  job = fill.Job(source, place, meta)
  fill.fill_shares([job], share=share, progress=progress)
  return place
