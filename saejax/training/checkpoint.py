"""Checkpoints of a run: state and data position together, or not at all.

A checkpoint is a folder `<step>` (`<step>-1` where a step is saved again)
that Orbax writes under a temporary name and renames when it is whole. It
holds the leaves of the state by path, the iterator's position for each
process, and the fingerprint of the run with the metric, so that nothing about
a checkpoint lies outside it.

Kept are the last one and the best one. Older ones are renamed away and then
removed after the new one stands, so that a kill at any moment leaves a last
good checkpoint; the disk holds three for a moment. Leaves are stored flat,
without the static fields of the tree: who restores brings the tree.

The folder is on a local or shared file system.
"""

import concurrent.futures
import contextlib
import errno
import json
import logging
import math
import os
import pathlib
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

from saejax import errors

PyTree = Any
ENVIRONMENT = "environment"

_NAME = re.compile(r"(\d+)(?:-(\d+))?")
_LEFTOVER = re.compile(r".*(\.orbax-checkpoint-tmp.*|\.removed)")
_NOTE = "saejax"  # our entry in Orbax's custom metadata


class DataIterator(Protocol):
  """What has a position that JSON can hold; Grain's iterators do."""

  def get_state(self) -> Any: ...

  def set_state(self, state: Any) -> None: ...


class Saved(NamedTuple):
  """A complete checkpoint: its step, its metric (lower is better), its path."""

  step: int
  metric: float | None
  path: pathlib.Path


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
    folder: is made by the first save.
    fingerprint: JSON-able settings that must be equal on resume: recipe, its
      arguments, sizes, data. Nested mappings are compared entry by entry.
    keep_best: keep the checkpoint of the lowest metric beside the last one.

  Raises:
    InputError: where the folder holds checkpoints of other settings. Nothing
      has been changed then.
  """

  def __init__(
    self,
    folder: str | os.PathLike[str],
    *,
    fingerprint: Mapping[str, Any],
    keep_best: bool = True,
  ):
    self.folder = pathlib.Path(folder).absolute()
    self._keep_best = keep_best
    self._fingerprint = json.loads(json.dumps(dict(fingerprint)))
    self._pending: concurrent.futures.Future[None] | None = None
    self._pool = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
    self._filter = _NotOfOrbax()
    logging.getLogger("absl").addFilter(self._filter)
    try:
      self._saved = _scan(self.folder)
      if self._saved:
        self._check_fingerprint()
    except BaseException:
      logging.getLogger("absl").removeFilter(self._filter)
      raise
    if jax.process_index() == 0:
      _clean(self.folder)

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
    """The complete checkpoint of the lowest metric, the earliest of equals."""
    return _best(self._saved)

  def save(
    self,
    step: int,
    state: PyTree,
    iterator: DataIterator | None = None,
    metric: float | None = None,
  ) -> None:
    """Takes a copy of state and position, and writes it in the background.

    When it returns, the caller may donate or overwrite `state` and move
    `iterator` on. One save is under way at a time: a second waits for the
    first. Every process of a run must call it.

    Args:
      step: the number of steps done; the same step may be saved again.
      state: pytree of arrays, typed keys among them, sharded or not.
      iterator: its position is saved; None for a run without one.
      metric: lower is better; None or non-finite never is the best.

    Raises:
      InputError: where the disk is full, for this save or the one before.
    """
    self.wait()
    arrays = _flatten(state)
    if metric is not None:
      metric = float(metric)
      metric = metric if math.isfinite(metric) else None
    note = {
      "step": int(step),
      "metric": metric,
      "fingerprint": self._fingerprint,
      "leaves": _specs(arrays),
      "iterator": iterator is not None,
    }
    saved = Saved(int(step), metric, self._new_path(int(step)))
    items: dict[str, Any] = {"state": arrays}
    if iterator is not None:
      items["iterator"] = _Position(json.dumps(iterator.get_state()))
    with self._one_line_errors(saved.step), _context():
      self.folder.mkdir(parents=True, exist_ok=True)
      response = ocp.save_checkpointables_async(
        str(saved.path), items, custom_metadata={_NOTE: note}
      )
    self._pending = self._pool.submit(self._finish, response, saved)

  def wait(self) -> None:
    """Waits for the save under way; raises what went wrong in it.

    Raises:
      InputError: where the disk is full.
    """
    pending, self._pending = self._pending, None
    if pending is not None:
      with self._one_line_errors(None):
        pending.result()

  def close(self) -> None:
    """Waits for the save under way and lets the thread go."""
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
      iterator: is set to the position that was saved.
      step: which checkpoint; by default the last.

    Returns:
      The step and the state, or None where there is no checkpoint.

    Raises:
      InputError: where the step, the shapes or the files are not right. The
        iterator is as it was then.
    """
    self.wait()
    if step is None and not self._saved:
      return None
    found = [s for s in self._saved if step is None or s.step == step]
    if not found:
      raise errors.InputError(
        "run_dir",
        self.folder,
        f"holds no checkpoint of step {step}",
        f"choose among {sorted({s.step for s in self._saved})}",
      )
    chosen = found[-1]
    note = _read_note(chosen.path)
    abstract = {k: _abstract(x) for k, x in _flatten(template).items()}
    _check_leaves(self.folder, note["leaves"], _specs(abstract))
    if iterator is not None and not note["iterator"]:
      raise errors.InputError(
        "run_dir",
        chosen.path,
        "the checkpoint must hold the position in the data, and does not",
        "name another run_dir to start anew",
      )
    position = _Position(None)
    items: dict[str, Any] = {"state": abstract}
    if iterator is not None:
      items["iterator"] = position
    try:
      with _context():
        arrays = ocp.load_checkpointables(str(chosen.path), items)["state"]
    except Exception as e:
      raise errors.InputError(
        "run_dir",
        chosen.path,
        f"the checkpoint must be readable ({type(e).__name__}: {e})",
        "remove that folder to go on from the one before it, if there is one",
      ) from e
    if iterator is not None:
      iterator.set_state(json.loads(position.text or "null"))
    leaves = [arrays[name] for name in _names(template)]
    return chosen.step, jax.tree.unflatten(jax.tree.structure(template), leaves)

  def _new_path(self, step: int) -> pathlib.Path:
    again = [s.path.name for s in self._saved if s.step == step]
    serials = [int(_NAME.fullmatch(n)[2] or 0) for n in again]  # type: ignore[index]
    name = f"{step}-{max(serials) + 1}" if serials else f"{step}"
    return self.folder / name

  def _finish(self, response: ocp.AsyncResponse[None], saved: Saved) -> None:
    """Waits for the write, then removes what is no longer kept."""
    response.result()
    # Later steps are of a future that was given up by restoring this past.
    known = [s for s in self._saved if s.step <= saved.step] + [saved]
    keep = {saved}
    if self._keep_best and (best := _best(known)):
      keep.add(best)
    old = [s for s in self._saved if s not in keep]
    self._saved = [s for s in known if s in keep]
    if jax.process_index() == 0:
      for s in old:
        _remove(s.path)

  @contextlib.contextmanager
  def _one_line_errors(self, step: int | None) -> Iterator[None]:
    try:
      yield
    except Exception as e:
      if jax.process_index() == 0:
        _clean(self.folder)  # the torn write gives its space back
      if not _disk_full(e):
        raise
      what = "a checkpoint" if step is None else f"the checkpoint of {step}"
      last = self.last()
      left = f"step {last.step} is intact" if last else "none was there before"
      raise errors.InputError(
        "run_dir",
        self.folder,
        f"the disk must have room for {what} ({left})",
        "free space and repeat the same command, or name another run_dir",
      ) from e

  def _check_fingerprint(self) -> None:
    theirs = _read_note(self._saved[-1].path)["fingerprint"]
    ours = self._fingerprint
    differing = _differences(
      {k: v for k, v in theirs.items() if k != ENVIRONMENT},
      {k: v for k, v in ours.items() if k != ENVIRONMENT},
    )
    if differing:
      more = f" ({len(differing)} settings differ)" if differing[1:] else ""
      raise errors.InputError(
        "run_dir",
        self.folder,
        f"holds a run with {differing[0]}{more}",
        "name another run_dir, or repeat the settings of its run.flags",
      )
    differing = _differences(
      {ENVIRONMENT: theirs.get(ENVIRONMENT)},
      {ENVIRONMENT: ours.get(ENVIRONMENT)},
    )
    if differing:
      warnings.warn(
        f"{self.folder} was written with {'; '.join(differing)}: the run goes"
        " on, but not bit for bit as it would have there",
        stacklevel=3,
      )


class _Position(ocp.StatefulCheckpointable):
  """The iterator's position as text, one file a process."""

  def __init__(self, text: str | None):
    self.text = text

  async def save(self, directory: Any) -> Any:
    async def write() -> None:
      folder = await directory.await_creation()
      (folder / self._file()).write_text(self.text)

    return write()

  async def load(self, directory: Any) -> Any:
    async def read() -> None:
      self.text = (directory / self._file()).read_text()

    return read()

  def _file(self) -> str:
    return f"process-{jax.process_index()}-of-{jax.process_count()}.json"


def _flatten(tree: PyTree) -> dict[str, Any]:
  """Leaves by path, such as `0.sae.W_enc`; anything but arrays becomes one."""
  leaves = [
    x if hasattr(x, "sharding") else jnp.asarray(x)
    for x in jax.tree.leaves(tree)
  ]
  return dict(zip(_names(tree), leaves, strict=True))


def _names(tree: PyTree) -> list[str]:
  paths = [path for path, _ in jax.tree.flatten_with_path(tree)[0]]
  names = [jax.tree_util.keystr(p, simple=True, separator=".") for p in paths]
  if len(set(names)) < len(names):
    names = [jax.tree_util.keystr(p) for p in paths]
  return names


def _specs(arrays: Mapping[str, Any]) -> dict[str, str]:
  return {k: f"{x.dtype}{list(x.shape)}" for k, x in arrays.items()}


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
  sharding = leaf.sharding
  if sharding is None:
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _check_leaves(
  folder: pathlib.Path, theirs: Mapping[str, str], ours: Mapping[str, str]
) -> None:
  differing = _differences(theirs, ours)
  if differing:
    raise errors.InputError(
      "run_dir",
      folder,
      f"holds a state of other shapes: {differing[0]}"
      f" ({len(differing)} of {len(ours)} arrays differ)",
      "name another run_dir, or repeat the settings of its run.flags",
    )


def _differences(theirs: Any, ours: Any, name: str = "") -> list[str]:
  """Lines `a.b=1 (now 2)` for every entry in which two trees differ."""
  if isinstance(theirs, Mapping) and ours is None:
    ours = {}
  if isinstance(ours, Mapping) and theirs is None:
    theirs = {}
  both_lists = isinstance(theirs, list) and isinstance(ours, list)
  if both_lists and len(theirs) == len(ours):
    theirs, ours = dict(enumerate(theirs)), dict(enumerate(ours))
  if not (isinstance(theirs, Mapping) and isinstance(ours, Mapping)):
    # Text, for NaN differs from itself and 1 from 1.0 nowhere else.
    same = json.dumps(theirs) == json.dumps(ours)
    return [] if same else [f"{name}={_shown(theirs)} (now {_shown(ours)})"]
  lines = []
  for key in [*theirs, *(k for k in ours if k not in theirs)]:
    inner = f"{name}.{key}" if name else str(key)
    lines += _differences(theirs.get(key), ours.get(key), inner)
  return lines


def _shown(value: Any) -> str:
  text = "absent" if value is None else str(value)
  return text if len(text) <= 60 else text[:57] + "..."


def _best(saved: list[Saved]) -> Saved | None:
  rated = [s for s in saved if s.metric is not None]
  return min(rated, key=lambda s: s.metric) if rated else None  # type: ignore[arg-type,return-value]


def _scan(folder: pathlib.Path) -> list[Saved]:
  """Complete checkpoints in order; other folders are none of ours."""
  found = []
  if folder.is_dir():
    for path in folder.iterdir():
      match = _NAME.fullmatch(path.name)
      if match and (note := _read_note(path)):
        order = (int(match[1]), int(match[2] or 0))
        found.append((order, Saved(note["step"], note["metric"], path)))
  return [saved for _, saved in sorted(found, key=lambda f: f[0])]


def _read_note(path: pathlib.Path) -> dict[str, Any]:
  """What `save` noted in a checkpoint, empty where it is not a whole one."""
  try:
    if not ocp.is_orbax_checkpoint(str(path)):
      return {}
    metadata = ocp.checkpointables_metadata(str(path))
  except (OSError, ValueError, KeyError):
    return {}
  noted: Any = metadata.custom_metadata
  return noted.get(_NOTE, {}) if isinstance(noted, dict) else {}


def _clean(folder: pathlib.Path) -> None:
  """Removes what killed saves and removals left behind."""
  if folder.is_dir():
    for path in folder.iterdir():
      if _LEFTOVER.fullmatch(path.name):
        shutil.rmtree(path, ignore_errors=True)


def _remove(path: pathlib.Path) -> None:
  """Renames first, so that no half-removed checkpoint looks whole."""
  trash = path.with_name(path.name + ".removed")
  with contextlib.suppress(OSError):
    path.rename(trash)
    shutil.rmtree(trash, ignore_errors=True)


def _context() -> ocp.Context:
  context = ocp.Context()
  # Weights do not compress, and who restores always says where to.
  context.array.saving.use_compression = False
  context.array.saving.enable_write_sharding_file = False
  return context


def _disk_full(e: BaseException | None) -> bool:
  """Whether no space, a quota or a file size limit stopped a write."""
  numbers = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
  while e is not None:
    if isinstance(e, OSError) and e.errno in numbers:
      return True
    # TensorStore gives the number of the system's error in its text.
    code = re.search(r"os_error_code='(\d+)'", str(e))
    if code and int(code[1]) in numbers:
      return True
    e = e.__cause__ or e.__context__
  return False


class _NotOfOrbax(logging.Filter):
  """Keeps Orbax from logging what is no news, or what we raise ourselves."""

  def filter(self, record: logging.LogRecord) -> bool:
    return "orbax" not in record.pathname
