"""The ledger of a store.

It has one fsynced line a finished bucket. What it does not name was
not written, whatever lies on disk; a torn last line was never there.
"""

import datetime
import fcntl
import importlib.metadata
import json
import os
import pathlib
import platform
from collections.abc import Mapping
from typing import Any

from saejax import durable
from saejax.errors import InputError

# What differs between two harvests of the same bytes.
VOLATILE = ("host", "time", "versions")


def read(path: pathlib.Path) -> list[dict[str, Any]]:
  """The lines of all ledgers of a store, by first row."""
  lines: list[dict[str, Any]] = []
  for file in sorted((path / "ledger").glob("*.jsonl")):
    lines += _parse(file, file.read_bytes())[0]
  return sorted(lines, key=lambda line: line.get("first", -1))


def _parse(
  path: pathlib.Path, content: bytes
) -> tuple[list[dict[str, Any]], int]:
  """The whole lines, and how many bytes they take."""
  lines, end = [], 0
  for raw in content.splitlines(keepends=True):
    torn = not raw.endswith(b"\n")
    try:
      line = json.loads(raw)
      torn = torn or not isinstance(line, dict)
    except ValueError:
      torn = True
    if torn:
      if end + len(raw) < len(content):
        raise InputError(
          "harvest.dir",
          path,
          f"the ledger must be JSON lines (byte {end} is not)",
          "delete the store and harvest again",
        )
      break
    lines.append(line)
    end += len(raw)
  return lines, end


class Ledger:
  """One host's ledger, open for appending and locked against a second writer.

  Attributes:
    lines: what is in the file.
  """

  def __init__(self, path: pathlib.Path):
    path.parent.mkdir(parents=True, exist_ok=True)
    # Unbuffered, so that a failed write leaves nothing to be written later.
    self._file = path.open("ab+", buffering=0)
    try:
      fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      self._file.close()
      raise InputError(
        "harvest.dir",
        path.parent.parent,
        "is being written by another process",
        "wait for it or stop it",
      ) from error
    self._file.seek(0)
    try:
      self.lines, end = _parse(path, self._file.read())
    except InputError:
      self._file.close()
      raise
    self._file.truncate(end)
    durable.sync_folder(path.parent)

  def append(self, record: Mapping[str, Any]) -> None:
    """Adds a line, on disk when this returns; nothing stays of a failure."""
    line = dict(record) | {
      "time": datetime.datetime.now(datetime.UTC).isoformat(),
      "host": platform.node(),
      "versions": _versions(),
    }
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

  def close(self) -> None:
    """Gives up the lock."""
    self._file.close()


def _versions() -> dict[str, str]:
  names = ("jax", "jaxlib", "numpy", "tensorstore", "tokenizers")
  return {"python": platform.python_version()} | {
    name: importlib.metadata.version(name) for name in names
  }
