"""Exclusive lock of a run's folder: a kernel lock that ends with its process.

The lock is `flock` on `folder/.lock`; the file also names the holder for the
error message. The kernel releases the lock when the process ends in any way, so
that a killed run never leaves a stale lock behind. The file itself stays:
removing it would let two processes hold locks on two files of one name.
"""

import errno
import fcntl
import json
import os
import pathlib
import socket
import sys
import time

from saejax import errors

FILE = ".lock"


class RunLock:
  """An exclusive lock on a folder, as a context manager.

    with RunLock(folder):
      ...

  It protects any folder with one writer: a run, or a store during a harvest.

  Args:
    folder: created if missing.
    field: the setting that names the folder, for the error message.

  Raises:
    InputError: on entering, if another process holds the lock, or the folder
      cannot be created or written to.
  """

  def __init__(self, folder: str | os.PathLike[str], *, field: str = "run_dir"):
    self.folder = pathlib.Path(folder)
    self.field = field
    self._file: int | None = None

  def __enter__(self) -> "RunLock":
    self.acquire()
    return self

  def __exit__(self, *exception: object) -> None:
    self.release()

  def acquire(self) -> None:
    """Acquires the lock without waiting.

    Raises:
      InputError: another process has the lock, or the folder cannot be locked.
      RuntimeError: this object already has the lock.
    """
    if self._file is not None:
      raise RuntimeError(f"{self.folder} is already locked by this object")
    try:
      self.folder.mkdir(parents=True, exist_ok=True)
      # No O_TRUNC: the holder's name must survive a failed attempt.
      # O_CLOEXEC: a child that outlives us must not keep the lock.
      file = os.open(
        self.folder / FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644
      )
    except OSError as e:
      raise errors.InputError(
        self.field,
        self.folder,
        f"the folder must be writable ({e.strerror})",
        "choose another folder or change its permissions",
      ) from e
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
      held = _holder(file)
      os.close(file)
      if e.errno in (errno.EWOULDBLOCK, errno.EACCES):
        raise errors.InputError(
          self.field,
          self.folder,
          f"the folder is in use by {held}",
          "wait for that process or stop it, or choose another folder",
        ) from None
      raise errors.InputError(
        self.field,
        self.folder,
        f"the folder must allow file locks ({e.strerror})",
        "choose a folder on a file system with locks",
      ) from e
    try:
      os.ftruncate(file, 0)
      os.pwrite(file, json.dumps(_self()).encode(), 0)
    except OSError:
      pass  # On a full disk the lock still holds, without the holder's name.
    self._file = file

  def release(self) -> None:
    """Releases the lock; no effect where it is not held."""
    if self._file is not None:
      os.close(self._file)
      self._file = None


def _self() -> dict[str, object]:
  return {
    "pid": os.getpid(),
    "host": socket.gethostname(),
    "command": " ".join(sys.argv)[:200],
    "since": time.strftime("%Y-%m-%d %H:%M:%S"),
  }


def _holder(file: int) -> str:
  try:
    held = json.loads(os.pread(file, 4096, 0))
    return f"process {held['pid']} on {held['host']} (since {held['since']})"
  except (OSError, ValueError, KeyError, TypeError):
    return "another process"  # it holds the lock and has not written its name
