"""The ledger of a store: one fsynced line per finished bucket.

Shards that no line names count as not written. Each line has a checksum over
itself and the checksum before it. In an unfinished store an incomplete last
line is ignored; in a complete store it is an error.
"""

import fcntl
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from saejax import durable
from saejax.data.store import arrays, manifest
from saejax.data.store.columns import Column
from saejax.errors import InputError

FOLDER = "ledger"
_REMEDY = "delete the store's folder and write it again"


def read(path: pathlib.Path, names: Iterable[str]) -> list[dict[str, Any]]:
  """Reads the ledgers of a complete store.

  Args:
    path: folder of the store.
    names: paths of its ledgers, relative to the folder.

  Returns:
    All lines, ordered by first row.

  Raises:
    InputError: a line is damaged or missing; names the file.
  """
  lines: list[dict[str, Any]] = []
  for name in names:
    content = (path / name).read_bytes()
    parsed, end = parse(path / name, content)
    if end < len(content):
      raise manifest.broken(
        path / name, f"the line at byte {end} is incomplete"
      )
    lines += parsed
  return sorted(lines, key=lambda line: line.get("first", -1))


def unfinished(path: pathlib.Path) -> list[dict[str, Any]]:
  """Reads all ledgers of a store that may be unfinished.

  Incomplete last lines are ignored.

  Args:
    path: folder of the store.

  Returns:
    All lines, ordered by first row.
  """
  lines: list[dict[str, Any]] = []
  for file in sorted((path / FOLDER).glob("*.jsonl")):
    lines += parse(file, file.read_bytes())[0]
  return sorted(lines, key=lambda line: line.get("first", -1))


def parse(
  path: pathlib.Path, content: bytes
) -> tuple[list[dict[str, Any]], int]:
  """Parses the intact lines of a ledger, ignoring an incomplete last line.

  Args:
    path: the ledger, for errors.
    content: its bytes.

  Returns:
    (lines, their size in bytes).

  Raises:
    InputError: a line is damaged, or one before it is missing.
  """
  lines: list[dict[str, Any]] = []
  end, before = 0, ""
  for raw in content.splitlines(keepends=True):
    if not raw.endswith(b"\n") and end + len(raw) == len(content):
      break
    line = durable.parse_json(
      raw, f"{path} (byte {end})", field="path", remedy=_REMEDY
    )
    if not durable.is_sealed(line, before):
      raise InputError(
        "path",
        path,
        f"the line at byte {end} differs from its checksum, or one before it "
        "is missing",
        _REMEDY,
      )
    lines.append(line)
    before, end = line[durable.SUM], end + len(raw)
  return lines, end


def check(
  path: pathlib.Path,
  lines: Iterable[Mapping[str, Any]],
  meta: Mapping[str, Any],
  columns: Mapping[str, Column],
) -> None:
  """Checks that bucket lines agree with the metadata of a store.

  Args:
    path: folder of the store.
    lines: bucket lines of its ledgers.
    meta: metadata of the store.
    columns: declarations of its columns.

  Raises:
    InputError: a bucket has other rows, chunks or shards than the metadata
      allow.
  """
  seen = set()
  for line in lines:
    bucket, first, rows = (line[n] for n in ("bucket", "first", "rows"))
    size = meta["bucket_rows"]
    number = -(-rows // meta["chunk_rows"])
    holds = (
      all(isinstance(n, int) for n in (bucket, first, rows))
      and bucket not in seen
      and first == bucket * size
      and first >= 0
      and 1 <= rows <= size
      and first + rows <= meta["capacity"]
      # Checked before anything of this length is allocated.
      and set(line["chunks"]) == set(columns)
      and all(len(found) == number for found in line["chunks"].values())
    )
    if holds:
      shards = {
        file
        for name, column in columns.items()
        for file in arrays.shard_files(
          name, column, first, rows, meta["shard_rows"]
        )
      }
      holds = set(line["shards"]) == shards
    if not holds:
      raise manifest.broken(
        path / FOLDER,
        f"bucket {bucket} of {rows} rows does not agree with the metadata",
      )
    seen.add(bucket)


class Ledger:
  """One host's ledger, open for appending and locked against a second writer.

  Args:
    path: the file; it is created where it does not exist, and an incomplete
      last line is cut off.

  Attributes:
    lines: the lines of the file.

  Raises:
    InputError: another process is writing it, or a line is damaged.
  """

  def __init__(self, path: pathlib.Path):
    path.parent.mkdir(parents=True, exist_ok=True)
    # Unbuffered, so that a failed write leaves no bytes to be written later.
    self._file = path.open("ab+", buffering=0)
    try:
      fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      self._file.close()
      raise InputError(
        "path",
        path.parent.parent,
        "is being written by another process",
        "wait for that process or stop it",
      ) from error
    self._file.seek(0)
    try:
      self.lines, end = parse(path, self._file.read())
    except InputError:
      self._file.close()
      raise
    self._file.truncate(end)
    durable.sync_folder(path.parent)

  def append(self, record: Mapping[str, Any]) -> dict[str, Any]:
    """Appends a line and syncs it; after a failure the file is unchanged.

    Args:
      record: contents of the line.

    Returns:
      The line, with its checksum.
    """
    before = self.lines[-1][durable.SUM] if self.lines else ""
    line = durable.seal(record, before)
    end = self._file.seek(0, os.SEEK_END)
    try:
      rest = memoryview(durable.canonical(line).encode() + b"\n")
      while rest:
        rest = rest[self._file.write(rest) :]
      os.fsync(self._file.fileno())
    except OSError:
      os.ftruncate(self._file.fileno(), end)
      raise
    self.lines.append(line)
    return line

  def close(self) -> None:
    """Releases the lock."""
    self._file.close()
