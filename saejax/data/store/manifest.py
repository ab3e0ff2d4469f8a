"""The manifest of a store: sizes of its shards, checksums of all other files.

It is written last, so that a store with a manifest is complete. Its SHA-256 is
the identity of the store's content, since the ledger has a SHA-256 of the rows
of each bucket. Opening a store checks sizes and the contents of small files.
"""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from saejax import durable
from saejax.data.store import place as places
from saejax.data.store.place import Place
from saejax.errors import InputError

NAME = "manifest.json"
FORMAT = 3
META, STATS = "meta.json", "stats.json"
CALIBRATION = "calibration.json"
NAMES = (NAME, META, STATS, CALIBRATION)
REMEDY = "restore the store from a copy, or repeat its harvest with --repair"


def write(
  place: Place,
  small: Iterable[str],
  shards: Mapping[str, int | None],
) -> None:
  """Writes the manifest.

  Args:
    place: the store.
    small: names of files other than shards; their checksums are computed here.
    shards: size of each shard, by name; None where it is not known.
  """
  files = {
    name: [len(content), hashlib.sha256(content).hexdigest()]
    for name, content in place.read(small).items()
  }
  record = {"format": FORMAT, "files": files, "shards": dict(shards)}
  place.write(NAME, _encoded(durable.seal(record)))


def _encoded(record: Mapping[str, Any]) -> bytes:
  return durable.canonical(record).encode() + b"\n"


def read(place: Place) -> tuple[dict[str, Any], dict[str, bytes], str]:
  """Reads the manifest and compares it with the store.

  Every shard must exist, with its size; other files must have their checksum.

  Args:
    place: the store.

  Returns:
    (manifest, contents of the files other than shards, SHA-256 of the manifest).

  Raises:
    InputError: the manifest or a file is damaged or missing; names the file.
  """
  content = places.one(place, NAME)
  if content is None:
    raise broken(place / NAME, "the file is missing")
  record = parse(place, content)
  files = place.read(record["files"])
  for name, (size, digest) in record["files"].items():
    if name not in files:
      raise broken(place / name, "the file is missing")
    if len(files[name]) != size:
      raise broken(place / name, f"the file must have {size} bytes")
    if hashlib.sha256(files[name]).hexdigest() != digest:
      raise broken(place / name, "differs from the checksum in the manifest")
  if fault := place.fault(record["shards"]):
    raise broken(place / fault[0], fault[1])
  return record, files, hashlib.sha256(content).hexdigest()


def parse(place: Place, content: bytes) -> dict[str, Any]:
  """Parses a manifest.

  Args:
    place: the store, for errors.
    content: its bytes.

  Raises:
    InputError: it is damaged, or of another format.
  """
  record = durable.parse_json(content, str(place / NAME), remedy=REMEDY)
  if record.get("format") != FORMAT:
    raise InputError(
      "path",
      str(place / NAME),
      f"the format must be {FORMAT}, is {record.get('format')}",
      "harvest or write the store again, or read it with the release that wrote it",
    )
  if not durable.is_sealed(record) or _encoded(record) != content:
    raise broken(place / NAME, "differs from its own checksum")
  return record


def calibration(place: Place) -> dict[str, Any] | None:
  """What was measured before the first row of a store; None for nothing.

  Args:
    place: the store.

  Raises:
    InputError: the record is damaged.
  """
  content = places.one(place, CALIBRATION)
  if content is None:
    return None
  where = place / CALIBRATION
  record = durable.parse_json(content, str(where), remedy=REMEDY)
  if not durable.is_sealed(record):
    raise broken(where, "differs from its checksum")
  return {k: v for k, v in record.items() if k != durable.SUM}


def broken(path: object, rule: str) -> InputError:
  """Returns the error for a damaged file.

  Args:
    path: the file.
    rule: the violated rule.
  """
  return InputError("path", str(path), rule, REMEDY)
