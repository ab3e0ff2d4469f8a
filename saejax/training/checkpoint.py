"""Checkpoints of a run: state and data position, written atomically.

A checkpoint is a folder `<step>` (`<step>-1` where a step is saved again)
that Orbax writes under a temporary name and renames when it is whole. It
holds the leaves of the state by path and the iterator's position for each
process. Then `sums.json` is written in it, with the checksum of every file, the
fingerprint of the run and the metric, so that nothing about a checkpoint lies
outside it: a folder without it is incomplete.

The last and the best checkpoint are kept. Older ones are renamed and then
removed after the new one is complete, so that a kill at any moment leaves a
last good checkpoint; the disk briefly holds three. A restore checks every byte:
a damaged checkpoint is renamed to `<step>.damaged` and the one before it is
restored. Leaves are stored flat, without the static fields of the tree: the
caller of restore passes the tree.

The folder is on a local or shared file system.
"""

import concurrent.futures
import contextlib
import json
import logging
import os
import pathlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import jax

from saejax import errors, processes, terminal
from saejax.training import checkpoint_folder as folders
from saejax.training import orbax_io
from saejax.training.checkpoint_folder import Saved as Saved
from saejax.training.fingerprint import differences

PyTree = Any
ENVIRONMENT = "environment"


class DataIterator(Protocol):
  """An iterator with a JSON-serialisable position, such as Grain's."""

  def get_state(self) -> Any: ...

  def set_state(self, state: Any) -> None: ...


class Checkpoints:
  """The checkpoints of one run in one folder.

    with Checkpoints(folder, fingerprint=settings) as checkpoints:
      restored = checkpoints.restore(state, iterator)
      step, state = restored or (0, state)
      ...
      checkpoints.save(step, state, iterator, metric=nmse)

  A run continues bit for bit only under its own settings: a fingerprint that
  differs is refused. What may differ (hardware, mesh, cores) is in the
  fingerprint's "environment" and only warned about.

  Args:
    folder: created by the first save.
    fingerprint: JSON-serialisable settings that must be equal on resume:
      recipe, its arguments, sizes, data. Nested mappings are compared entry by
      entry.
    keep_best: whether to keep the checkpoint of the lowest metric beside the
      last one.
    say: called with a line about each damaged or incomplete checkpoint; prints
      it on standard error by default.

  Raises:
    InputError: the folder holds checkpoints of other settings, or only damaged
      ones. Nothing is changed then.
  """

  def __init__(
    self,
    folder: str | os.PathLike[str],
    *,
    fingerprint: Mapping[str, Any],
    keep_best: bool = True,
    say: Callable[[str], None] = terminal.say,
  ):
    self.folder = pathlib.Path(folder).absolute()
    self._keep_best = keep_best
    self._say = say
    self._fingerprint = json.loads(json.dumps(dict(fingerprint)))
    self._pending: concurrent.futures.Future[None] | None = None
    self._pool = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
    self._filter = orbax_io.NotOfOrbax()
    logging.getLogger("absl").addFilter(self._filter)
    try:
      found = folders.scan(self.folder)
      self._saved = found.complete
      if self._saved:
        self._check_fingerprint()
      if found.damaged and not self._saved:
        raise _damaged(self.folder, *next(iter(found.damaged.items())))
    except BaseException:
      logging.getLogger("absl").removeFilter(self._filter)
      raise
    processes.sync()  # all have read the folder
    if jax.process_index() == 0:
      folders.clean(self.folder)
    for path, fault in found.damaged.items():
      self._set_aside(path, fault)
    for path in found.incomplete:
      self._say(f"{path} is incomplete (no {folders.SUMS}): removed")
      if jax.process_index() == 0:
        folders.remove(path)

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
    if kind is None:
      self.close()
    else:  # the first error is the one to report
      with contextlib.suppress(Exception):
        self.close()

  def last(self) -> Saved | None:
    """The newest complete checkpoint."""
    return self._saved[-1] if self._saved else None

  def best(self) -> Saved | None:
    """The complete checkpoint with the lowest metric, the earliest of ties."""
    return folders.best(self._saved)

  def save(
    self,
    step: int,
    state: PyTree,
    iterator: DataIterator | None = None,
    metric: float | None = None,
    about: Mapping[str, Any] | None = None,
  ) -> None:
    """Copies state and position, and writes the copy in the background.

    When it returns, the caller may donate or overwrite `state` and advance
    `iterator`. One save runs at a time: a second waits for the first. Every
    process of a run must call it.

    Args:
      step: the number of steps done; the same step may be saved again.
      state: pytree of arrays, including typed keys, sharded or not.
      iterator: the data iterator whose position is saved; None for none.
      metric: lower is better; None or non-finite is never the best.
      about: JSON-serialisable entries of the note.

    Raises:
      InputError: the disk is full, for this save or the one before.
    """
    self.wait()
    arrays = orbax_io.flatten(state)
    metric = folders.finite(metric)
    note = {
      **(about or {}),
      "step": int(step),
      "metric": metric,
      "fingerprint": self._fingerprint,
      "leaves": orbax_io.specs(arrays),
      "iterator": iterator is not None,
    }
    path = folders.new_path(self.folder, int(step))
    saved = Saved(int(step), metric, path)
    position = None
    if iterator is not None:
      position = json.dumps(iterator.get_state())
    with self._one_line_errors(saved.step):
      self.folder.mkdir(parents=True, exist_ok=True)
      response = orbax_io.begin(saved.path, arrays, position)
    self._pending = self._pool.submit(self._finish, response, saved, note)

  def wait(self) -> None:
    """Waits for the save in progress; raises its error.

    Raises:
      InputError: the disk is full.
    """
    pending, self._pending = self._pending, None
    if pending is not None:
      with self._one_line_errors(None):
        pending.result()

  def close(self) -> None:
    """Waits for the save in progress and ends the thread."""
    try:
      self.wait()
    finally:
      self._pool.shutdown()
      logging.getLogger("absl").removeFilter(self._filter)

  def restore(
    self,
    template: PyTree,
    iterator: DataIterator | None = None,
    step: int | None = None,
  ) -> tuple[int, PyTree] | None:
    """Reads a checkpoint back, bit for bit.

    Args:
      template: the tree to fill, of arrays or of `jax.ShapeDtypeStruct`; its
        leaves give shape, dtype and sharding (default: the first device).
      iterator: set to the saved position.
      step: step of the checkpoint; by default that of the last intact one.

    Returns:
      The step and the state, or None if there is no checkpoint.

    Raises:
      InputError: the step does not exist, the shapes differ or files are
        damaged. The iterator is unchanged then.
    """
    self.wait()
    chosen = self._choose(step)
    processes.agree(
      {"run_dir": chosen and chosen.path.name},
      remedy="name a folder on a file system that all hosts share",
    )
    if chosen is None:
      return None
    note = folders.read_note(chosen.path)
    abstract = {
      k: orbax_io.abstract(x) for k, x in orbax_io.flatten(template).items()
    }
    _check_leaves(self.folder, note["leaves"], orbax_io.specs(abstract))
    if iterator is not None and not note["iterator"]:
      raise errors.InputError(
        "run_dir",
        chosen.path,
        "the checkpoint does not hold the position in the data",
        "choose another run_dir to start a new run",
      )
    try:
      arrays, position = orbax_io.load(
        chosen.path, abstract, position=iterator is not None
      )
    except Exception as e:
      raise errors.InputError(
        "run_dir",
        chosen.path,
        f"the checkpoint must be readable ({type(e).__name__}: {e})",
        "remove that folder to resume from the one before it, if there is one",
      ) from e
    if iterator is not None:
      iterator.set_state(json.loads(position))
    leaves = [arrays[name] for name in orbax_io.names(template)]
    return chosen.step, jax.tree.unflatten(jax.tree.structure(template), leaves)

  def _choose(self, step: int | None) -> Saved | None:
    """The checkpoint to restore: the newest intact one, or that of a step."""
    while step is None and self._saved:
      chosen = self._saved[-1]
      fault = folders.fault(chosen.path)
      if fault is None:
        return chosen
      if not self._saved[:-1]:
        raise _damaged(self.folder, chosen.path, fault)
      self._saved = self._saved[:-1]
      self._set_aside(chosen.path, fault)
    if step is None:
      return None
    found = [s for s in self._saved if s.step == step]
    if not found:
      raise errors.InputError(
        "run_dir",
        self.folder,
        f"holds no checkpoint of step {step}",
        f"choose among {sorted({s.step for s in self._saved})}",
      )
    if fault := folders.fault(found[-1].path):
      raise errors.InputError(
        "run_dir",
        found[-1].path,
        f"the checkpoint is damaged ({fault})",
        "restore another step",
      )
    return found[-1]

  def _set_aside(self, path: pathlib.Path, fault: str) -> None:
    """Renames a damaged checkpoint, so that its step can be saved again."""
    last = self._saved[-1].step
    self._say(f"{path} is damaged ({fault}): resuming from step {last:,}")
    if jax.process_index() == 0:
      folders.set_aside(path)

  def _finish(
    self,
    response: orbax_io.Response,
    saved: Saved,
    note: Mapping[str, Any],
  ) -> None:
    """Completes the checkpoint, then removes those that are no longer kept."""
    response.result()
    process, count = jax.process_index(), jax.process_count()
    folders.write_sums(saved.path, note, process=process, processes=count)
    # Later steps belong to a course that restoring an earlier one abandoned.
    known = [s for s in self._saved if s.step <= saved.step] + [saved]
    keep = {saved}
    if self._keep_best and (best := folders.best(known)):
      keep.add(best)
    old = [s for s in self._saved if s not in keep]
    self._saved = [s for s in known if s in keep]
    if jax.process_index() == 0:
      for s in old:
        folders.remove(s.path)

  @contextlib.contextmanager
  def _one_line_errors(self, step: int | None) -> Iterator[None]:
    try:
      yield
    except Exception as e:
      if jax.process_index() == 0:
        # Removing the torn write frees its space.
        folders.clean(self.folder)
        for path in folders.scan(self.folder).incomplete:
          folders.remove(path)
      if not orbax_io.disk_full(e):
        raise
      what = "a checkpoint" if step is None else f"the checkpoint of {step}"
      last = self.last()
      left = f"step {last.step} is intact" if last else "there is no other"
      raise errors.InputError(
        "run_dir",
        self.folder,
        f"the disk must have room for {what} ({left})",
        "free space and repeat the same command, or choose another run_dir",
      ) from e

  def _check_fingerprint(self) -> None:
    theirs = folders.read_note(self._saved[-1].path)["fingerprint"]
    ours = self._fingerprint
    differing = differences(
      {k: v for k, v in theirs.items() if k != ENVIRONMENT},
      {k: v for k, v in ours.items() if k != ENVIRONMENT},
    )
    if differing:
      more = f" ({len(differing)} settings differ)" if differing[1:] else ""
      raise errors.InputError(
        "run_dir",
        self.folder,
        f"holds a run with {differing[0]}{more}",
        "choose another run_dir, or repeat the settings of its run.flags",
      )
    differing = differences(
      {ENVIRONMENT: theirs.get(ENVIRONMENT)},
      {ENVIRONMENT: ours.get(ENVIRONMENT)},
    )
    if differing:
      warnings.warn(
        f"{self.folder} was written with {'; '.join(differing)}: the run is"
        " resumed, but not bit for bit as it would have been there",
        stacklevel=3,
      )


def _damaged(
  folder: pathlib.Path, path: pathlib.Path, fault: str
) -> errors.InputError:
  """The error where no intact checkpoint is left."""
  return errors.InputError(
    "run_dir",
    path,
    f"the checkpoint is damaged ({fault}), and no other is left",
    f"restore it from a copy, or remove {folder} to start from step 0",
  )


def _check_leaves(
  folder: pathlib.Path, theirs: Mapping[str, str], ours: Mapping[str, str]
) -> None:
  differing = differences(theirs, ours)
  if differing:
    raise errors.InputError(
      "run_dir",
      folder,
      f"holds a state of different shapes: {differing[0]}"
      f" ({len(differing)} of {len(ours)} arrays differ)",
      "choose another run_dir, or repeat the settings of its run.flags",
    )
