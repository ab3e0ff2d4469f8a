"""The folder of a run's checkpoints: finds complete, damaged and stale ones.

After Orbax has renamed a checkpoint, each process hashes its share of the files
and writes `sums.json` beside them; with it the checkpoint is complete. The
first process's file also holds the note of the checkpoint: step, metric,
fingerprint, the specs of the leaves.
"""

import contextlib
import math
import os
import pathlib
import re
import shutil
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from saejax import durable
from saejax.errors import InputError

FOLDER = "checkpoints"  # in that of a run
SUMS = "sums.json"
WAIT_SECONDS = 600.0  # for the sums of other processes

_NAME = re.compile(r"(\d+)(?:-(\d+))?")
_LEFTOVER = re.compile(r".*(\.orbax-checkpoint-tmp.*|\.removed|\.damaged)")
_OF_ORBAX = "_CHECKPOINT_METADATA"


class Saved(NamedTuple):
  """A complete checkpoint: its step, its metric (lower is better), its path."""

  step: int
  metric: float | None
  path: pathlib.Path


class Found(NamedTuple):
  """The checkpoints found in a folder.

  Attributes:
    complete: complete checkpoints in the order in which they were saved.
    damaged: folders whose note cannot be read, with the reason.
    incomplete: folders that Orbax finished and that have no sums.
  """

  complete: list[Saved]
  damaged: dict[pathlib.Path, str]
  incomplete: list[pathlib.Path]


def scan(folder: pathlib.Path) -> Found:
  """Finds the checkpoints in a folder; ignores other folders.

  Args:
    folder: folder of the checkpoints.
  """
  found, damaged, incomplete = [], {}, []
  for path in sorted(folder.iterdir()) if folder.is_dir() else []:
    match = _NAME.fullmatch(path.name)
    if match is None or not path.is_dir():
      continue
    sums = list(path.glob("sums*.json"))
    if not sums:
      if (path / _OF_ORBAX).exists():
        incomplete.append(path)
      continue
    try:
      note = read_note(path)
      if len(sums) < note["processes"]:
        incomplete.append(path)
        continue
      if note["step"] != int(match[1]):
        damaged[path] = f"it is the checkpoint of step {note['step']}"
        continue
      order = (int(match[1]), int(match[2] or 0))
      found.append((order, Saved(note["step"], note["metric"], path)))
    except InputError as error:
      damaged[path] = f"{SUMS} {error.rule}"
  complete = [saved for _, saved in sorted(found, key=lambda f: f[0])]
  return Found(complete, damaged, incomplete)


def new_path(folder: pathlib.Path, step: int) -> pathlib.Path:
  """An unused path for a checkpoint of a step.

  Args:
    folder: folder of the checkpoints.
    step: the step.
  """
  path, serial = folder / f"{step}", 0
  while path.exists():
    serial += 1
    path = folder / f"{step}-{serial}"
  return path


def write_sums(
  path: pathlib.Path,
  note: Mapping[str, Any],
  *,
  process: int = 0,
  processes: int = 1,
) -> None:
  """Completes a checkpoint: syncs, hashes and lists its files.

  Args:
    path: folder of the checkpoint.
    note: JSON-serialisable note, written by process 0.
    process: index of this process; it hashes every processes-th file.
    processes: number of processes; process 0 waits for the others.
  """
  mine = _files(path)[process::processes]
  for name in mine:
    durable.sync_file(path / name)
  sums = {name: list(durable.checksum(path / name)) for name in mine}
  record: dict[str, Any] = {"files": sums}
  if process == 0:
    record["note"] = {**note, "processes": processes}
  for parent in {(path / name).parent for name in mine}:
    durable.sync_folder(parent)
  durable.write_sealed(path / _sums(process), record, field="run_dir")
  due = time.monotonic() + WAIT_SECONDS
  others = [path / _sums(i) for i in range(processes)] if process == 0 else []
  while not all(other.exists() for other in others):
    if time.monotonic() > due:
      raise TimeoutError(f"{path}: a process did not write its sums")
    time.sleep(0.05)


def read_note(path: pathlib.Path) -> dict[str, Any]:
  """Reads the note of a complete checkpoint.

  Args:
    path: folder of the checkpoint.

  Raises:
    InputError: the file is missing or damaged.
  """
  return _read(path / SUMS)["note"]


def fault(path: pathlib.Path) -> str | None:
  """The first damaged file of a checkpoint and the reason; None if intact.

  Args:
    path: folder of the checkpoint.
  """
  try:
    for process in range(read_note(path)["processes"]):
      for name, wanted in _read(path / _sums(process))["files"].items():
        file = path / name
        if file.stat().st_size != wanted[0]:
          return f"{name} has another size"
        if durable.checksum(file)[1] != wanted[1]:
          return f"{name} has another checksum"
  except InputError as error:
    return f"{pathlib.Path(str(error.value)).name} {error.rule}"
  except OSError as error:
    name = os.path.relpath(str(error.filename), path)
    return f"{name} cannot be read ({error.strerror})"
  return None


def best(saved: list[Saved]) -> Saved | None:
  """The checkpoint with the lowest metric, the earliest of ties.

  Args:
    saved: the checkpoints.
  """
  rated = [(s.metric, s) for s in saved if s.metric is not None]
  return min(rated, key=lambda r: r[0])[1] if rated else None


def finite(metric: float | None) -> float | None:
  """Returns the metric, or None where it is not finite.

  Args:
    metric: the metric, or None.
  """
  if metric is None or not math.isfinite(metric):
    return None
  return float(metric)


def clean(folder: pathlib.Path) -> None:
  """Removes leftovers of killed saves and removals.

  Args:
    folder: folder of the checkpoints.
  """
  if folder.is_dir():
    for path in folder.iterdir():
      if _LEFTOVER.fullmatch(path.name):
        shutil.rmtree(path, ignore_errors=True)


def remove(path: pathlib.Path) -> None:
  """Removes a checkpoint; renames it first, so that no part looks complete.

  Args:
    path: folder of the checkpoint.
  """
  trash = path.with_name(path.name + ".removed")
  with contextlib.suppress(OSError):
    path.rename(trash)
    shutil.rmtree(trash, ignore_errors=True)


def set_aside(path: pathlib.Path) -> None:
  """Renames a damaged checkpoint, so that its step can be saved again.

  It is kept for inspection until the run is opened again.

  Args:
    path: folder of the checkpoint.
  """
  aside = path.with_name(path.name + ".damaged")
  shutil.rmtree(aside, ignore_errors=True)
  with contextlib.suppress(OSError):
    path.rename(aside)


def _sums(process: int) -> str:
  return SUMS if process == 0 else f"sums-{process}.json"


def _files(path: pathlib.Path) -> list[str]:
  """Names of all files but the sums, from the folder of the checkpoint."""
  return sorted(
    str(file.relative_to(path))
    for file in path.rglob("*")
    if file.is_file() and not (file.parent == path and "sums" in file.name)
  )


def _read(path: pathlib.Path) -> dict[str, Any]:
  return durable.read_sealed(path, field="run_dir", remedy="remove it")
