"""The manifest of a store: sizes and checksums of all its files.

It is written last, so that a store with a manifest is complete. Its SHA-256 is
the identity of the store's content. Opening a store checks all sizes and the
contents of small files; `verify` checks all contents.
"""

import hashlib
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from saejax import durable
from saejax.errors import InputError

NAME = "manifest.json"
FORMAT = 2
META, STATS = "meta.json", "stats.json"
REMEDY = (
  "restore the store from a copy, or delete its folder and write it again"
)


def write(
  path: pathlib.Path,
  small: Iterable[str],
  shards: Mapping[str, Sequence[Any]],
) -> None:
  """Writes the manifest.

  Args:
    path: folder of the store.
    small: names of files other than shards; their checksums are computed here.
    shards: [size, SHA-256] of each shard, by name.
  """
  files = {name: list(durable.checksum(path / name)) for name in small}
  files |= {name: list(value) for name, value in shards.items()}
  record = durable.seal(
    {"format": FORMAT, "files": files, "shards": sorted(shards)}
  )
  durable.write_file(path / NAME, durable.canonical(record).encode() + b"\n")


def read(path: pathlib.Path) -> tuple[dict[str, Any], str]:
  """Reads the manifest and compares it with the folder.

  Every file must exist with its size; files other than shards must also have
  their checksum.

  Args:
    path: folder of the store.

  Returns:
    (manifest, SHA-256 of its file).

  Raises:
    InputError: the manifest or a file is damaged or missing; names the file.
  """
  content = (path / NAME).read_bytes()
  record = durable.parse_json(content, path / NAME, remedy=REMEDY)
  if record.get("format") != FORMAT:
    raise broken(path / NAME, f"the format must be {FORMAT}")
  canonical = durable.canonical(record).encode() + b"\n"
  if not durable.is_sealed(record) or canonical != content:
    raise broken(path / NAME, "differs from its own checksum")
  shards = set(record["shards"])
  for name, (size, digest) in record["files"].items():
    file = path / name
    if not file.is_file():
      raise broken(file, "the file is missing")
    if file.stat().st_size != size:
      raise broken(file, f"the file must have {size} bytes")
    if name not in shards and _checksum(file)[1] != digest:
      raise broken(file, "differs from the checksum in the manifest")
  return record, hashlib.sha256(content).hexdigest()


def verify(path: pathlib.Path, record: Mapping[str, Any]) -> None:
  """Compares every file with its size and checksum in the manifest.

  Args:
    path: folder of the store.
    record: the manifest.

  Raises:
    InputError: a file is missing, damaged or unreadable; names the file.
  """
  for name, recorded in record["files"].items():
    if list(_checksum(path / name)) != recorded:
      raise broken(path / name, "differs from the checksum in the manifest")


def _checksum(file: pathlib.Path) -> tuple[int, str]:
  try:
    return durable.checksum(file)
  except OSError as error:
    raise broken(file, f"cannot be read ({error.strerror})") from error


def broken(path: pathlib.Path, rule: str) -> InputError:
  """Returns the error for a damaged file.

  Args:
    path: the file.
    rule: the violated rule.
  """
  return InputError("path", path, rule, REMEDY)
