"""A pass over batches, kept in a folder: resumed after a kill, merged at the end.

    folder/part-00000-of-00004/
      .lock identity.json      what the sums depend on
      sums.npz                 the sums so far, saved about every `seconds`

Process p of P reads the batches p, p + P, ... Sums are added batch by batch, in
order, and a file replaces the one before: what a killed process has saved is what
it had computed, and it continues with the next batch. Sums are those of an
undisturbed pass bit for bit, and those of other numbers of processes but for the
order of additions in float64.
"""

import contextlib
import dataclasses
import json
import pathlib
import shutil
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol, TypeVar

import numpy as np

from saejax import durable
from saejax.data.store.share import Share
from saejax.errors import InputError
from saejax.training import lock
from saejax.training.fingerprint import differences

FIELD = "dir"
IDENTITY, SUMS = "identity.json", "sums.npz"
_REMEDY = "remove it, and repeat the command"
_LEAST = 10  # time between saves, in those that a save takes
S = TypeVar("S")
I = TypeVar("I", contravariant=True)
T = TypeVar("T")


class Unfinished(Exception):
  """Other processes are not done with their parts of a pass."""


def folder(root: str, identity: Mapping[str, Any]) -> pathlib.Path:
  """Returns the folder of a pass in another, named by its identity.

  Args:
    root: folder of passes.
    identity: what the sums depend on, JSON-serialisable.
  """
  return pathlib.Path(root).expanduser() / durable.digest(identity)[:16]


class Work(Protocol[S, I]):
  """Sums S over batches I."""

  def nothing(self) -> S:
    """Returns the sums over no batch."""
    ...

  def added(self, total: S, batch: I) -> S:
    """Returns the sums with a batch; `total` is not used again."""
    ...

  def merged(self, total: S, other: S) -> S:
    """Returns the sums over the batches of both."""
    ...

  def arrays(self, total: S) -> dict[str, np.ndarray]:
    """Returns the sums as arrays for a file."""
    ...

  def restored(self, arrays: dict[str, Any]) -> S:
    """Returns the sums of such arrays; KeyError or TypeError for others."""
    ...


@dataclasses.dataclass(frozen=True)
class Pass:
  """Where a pass is kept, and which part of it is this process's.

  Attributes:
    folder: of this pass alone.
    share: which process this is, of how many.
    seconds: time between saves; more where a save takes long.
  """

  folder: pathlib.Path
  share: Share = Share()
  seconds: float = 20.0

  def place(self, process: int) -> pathlib.Path:
    """Returns the folder of a process.

    Args:
      process: its number.
    """
    count = self.share.processes
    return self.folder / f"part-{process:05d}-of-{count:05d}"

  @property
  def own(self) -> pathlib.Path:
    """The folder of this process."""
    return self.place(self.share.process)

  @contextlib.contextmanager
  def locked(self, identity: Mapping[str, Any]) -> Iterator[None]:
    """Holds the folder of this process, where it writes.

    Args:
      identity: what the sums depend on, JSON-serialisable.

    Raises:
      InputError: another process has it, it is of another identity, or cannot
        be written.
    """
    with lock.RunLock(self.own, field=FIELD):
      self._check(self.own, identity)
      text = json.dumps(identity, indent=1, sort_keys=True) + "\n"
      durable.write_file(self.own / IDENTITY, text.encode(), field=FIELD)
      yield

  def _check(self, place: pathlib.Path, identity: Mapping[str, Any]) -> None:
    """Refuses the sums of another pass, naming what differs."""
    file = place / IDENTITY
    if not file.exists():
      return
    theirs = durable.read_json(file, field=FIELD, remedy=_REMEDY)
    found = differences(theirs, json.loads(json.dumps(identity)))
    if found:
      rule = f"has a pass of other settings: {', '.join(found)}"
      remedy = "remove it, name another folder, or repeat its settings"
      raise InputError(FIELD, place, rule, remedy)

  def remove(self) -> None:
    """Removes the folder, where no other process may need it."""
    if self.share.processes == 1:
      shutil.rmtree(self.folder, ignore_errors=True)
      with contextlib.suppress(OSError):
        self.folder.parent.rmdir()  # where this was all in it

  def run(
    self,
    work: Work[S, I],
    batches: Iterable[I],
    progress: Callable[[int], None] = lambda number: None,
  ) -> None:
    """Computes or continues the sums of this process, which holds its folder.

    Args:
      work: what is added up.
      batches: all batches, in order; those of others are passed over.
      progress: called with the number of each batch before it is added.

    Raises:
      InputError: its file is damaged, or the disk is full. What was saved is kept.
    """
    total, next_, done = self._saved(work, self.share.process)
    if done:
      return
    saved, took = time.monotonic(), 0.0
    for number, batch in enumerate(batches):
      if number < next_ or not self.share.owns(number):
        continue
      progress(number)
      total = work.added(total, batch)
      next_, now = number + 1, time.monotonic()
      if now - saved >= max(self.seconds, _LEAST * took):
        self._save(work, total, next_, done=False)
        saved = time.monotonic()
        took = saved - now
    self._save(work, total, next_, done=True)

  def merged(self, work: Work[S, Any], identity: Mapping[str, Any]) -> S:
    """Returns the sums of all processes.

    Args:
      work: what was added up.
      identity: what the sums depend on.

    Raises:
      Unfinished: a process is not done.
      InputError: a file is damaged, or a process has sums of another identity.
    """
    total = work.nothing()
    for process in range(self.share.processes):
      self._check(self.place(process), identity)
      part, _, done = self._saved(work, process)
      if not done:
        raise Unfinished(str(self.folder))
      total = work.merged(total, part)
    return total

  def _save(self, work: Work[T, Any], total: T, next_: int, done: bool) -> None:
    about = {"next": next_, "done": done}
    write(self.own / SUMS, work.arrays(total), about)

  def _saved(self, work: Work[T, Any], process: int) -> tuple[T, int, bool]:
    """The sums so far, the number of the next batch, and whether that is all."""
    file = self.place(process) / SUMS
    if not file.exists():
      return work.nothing(), 0, False
    arrays, about = read(file)
    try:
      return work.restored(arrays), about["next"], about["done"]
    except (KeyError, TypeError) as error:
      rule = f"must be sums of this pass ({error})"
      raise InputError(FIELD, file, rule, _REMEDY) from error


def total(
  kept: Pass | None,
  work: Work[S, I],
  batches: Iterable[I],
  identity: Callable[[], Mapping[str, Any]],
  progress: Callable[[int], None] = lambda number: None,
) -> S:
  """Adds up batches, in memory or in a folder that is resumed.

  Args:
    kept: the folder; None for memory.
    work: what is added up.
    batches: all batches, in order.
    identity: what the sums depend on, JSON-serialisable.
    progress: called with the number of each batch before it is added.

  Raises:
    Unfinished: other processes are not done.
    InputError: as `Pass.locked`, `Pass.run` and `Pass.merged`.
  """
  if kept is None:
    found = work.nothing()
    for number, batch in enumerate(batches):
      progress(number)
      found = work.added(found, batch)
    return found
  about = identity()
  with kept.locked(about):
    kept.run(work, batches, progress)
  return kept.merged(work, about)


# --- files -------------------------------------------------------------------


def flat(tree: Any, prefix: str = "") -> dict[str, np.ndarray]:
  """Arrays and numbers of nested dataclasses, by path.

  Args:
    tree: the dataclass.
    prefix: of the paths.
  """
  found = {}
  for field in dataclasses.fields(tree):
    value, name = getattr(tree, field.name), prefix + field.name
    if dataclasses.is_dataclass(value):
      found |= flat(value, f"{name}/")
    else:
      found[name] = np.asarray(value)
  return found


def filled(tree: T, arrays: Mapping[str, np.ndarray], prefix: str = "") -> T:
  """A dataclass with the arrays of `flat`.

  Args:
    tree: of the same classes.
    arrays: by path.
    prefix: of the paths.
  """
  found = {}
  for field in dataclasses.fields(tree):  # pyright: ignore[reportArgumentType]
    value, name = getattr(tree, field.name), prefix + field.name
    if dataclasses.is_dataclass(value):
      found[field.name] = filled(value, arrays, f"{name}/")
    else:
      own = arrays[name]
      found[field.name] = own if isinstance(value, np.ndarray) else own.item()
  return dataclasses.replace(tree, **found)  # pyright: ignore[reportArgumentType]


def write(
  file: pathlib.Path, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]
) -> None:
  """Replaces a file of arrays and facts.

  Args:
    file: the file.
    arrays: by name.
    about: facts, JSON-serialisable.

  Raises:
    InputError: the disk is full or not writable.
  """
  text = np.frombuffer(durable.canonical(about).encode(), np.uint8)
  with durable.replacing(file, field=FIELD) as out:
    np.savez(out, about=text, **arrays)  # pyright: ignore[reportArgumentType]


def read(file: pathlib.Path) -> tuple[dict[str, Any], dict[str, Any]]:
  """Reads arrays and facts; the format has checksums.

  Args:
    file: the file.

  Raises:
    InputError: it is damaged.
  """
  try:
    with np.load(file) as found:
      arrays = dict(found)
    return arrays, json.loads(arrays.pop("about").tobytes())
  except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
    rule = f"must be a file that this command wrote ({error})"
    raise InputError(FIELD, file, rule, _REMEDY) from error
