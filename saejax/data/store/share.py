"""Several processes that write one store, each its own buckets.

They do not talk to each other: process p of P writes the buckets p, p + P, ...
In a local folder each process holds a lock, so that a second one in its place
and one that counts other processes are refused. An object store has no locks:
there a bucket that two processes write has the same bytes.
"""

import contextlib
import dataclasses
import fcntl
import os
import pathlib
from collections.abc import Iterator

from saejax.data.store.place import Local, Place
from saejax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Share:
  """The buckets of one process.

  Attributes:
    process: number of this process, from 0.
    processes: number of processes that write the store.

  Raises:
    InputError: there is no such process.
  """

  process: int = 0
  processes: int = 1

  def __post_init__(self):
    if not 0 <= self.process < self.processes:
      raise InputError(
        "process",
        self.process,
        f"must be in [0, {self.processes}), the number of processes",
        "number the processes from 0",
      )

  def owns(self, bucket: int) -> bool:
    """Whether a bucket is this process's.

    Args:
      bucket: number of the bucket.
    """
    return bucket % self.processes == self.process

  @property
  def _file(self) -> str:
    return f".lock-{self.process:05d}-{self._of}"

  @property
  def _of(self) -> str:
    return f"of-{self.processes:05d}"

  @contextlib.contextmanager
  def locked(self, place: Place) -> Iterator[None]:
    """Holds the place of this process among the writers of a store.

    Args:
      place: the store.

    Raises:
      InputError: another process has this place, or counts other processes.
    """
    if not isinstance(place, Local):
      yield
      return
    folder = place.folder
    with contextlib.ExitStack() as held:
      if not _lock(folder / self._file, held):
        raise InputError(
          "path",
          folder,
          f"is being written by another process {self.process} of "
          f"{self.processes}",
          "wait for that process or stop it",
        )
      for other in sorted(folder.glob(".lock-*")):
        if not other.name.endswith(self._of) and not _lock(other, held):
          raise InputError(
            "processes",
            self.processes,
            f"{folder} is being written by a process that counts others "
            f"({other.name.removeprefix('.lock-')})",
            "give the same number to all, or wait for that process",
          )
      yield


def _lock(file: pathlib.Path, held: contextlib.ExitStack) -> bool:
  """Locks a file until `held` ends; whether no other process has it."""
  handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
  held.callback(os.close, handle)
  try:
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    ours = os.path.samestat(os.stat(file), os.fstat(handle))
  except (BlockingIOError, FileNotFoundError):
    return False
  if ours:  # and not one whose holder has just removed it
    held.callback(file.unlink, missing_ok=True)
  return ours
