"""What a run keeps in its folder to be resumed: its settings and checkpoints."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from saejax import durable, processes
from saejax.errors import InputError
from saejax.training import checkpoint_folder, saved_member, sharding
from saejax.training.checkpoint import ENVIRONMENT, Checkpoints
from saejax.training.fingerprint import differences
from saejax.training.groups import Stacks
from saejax.training.members import Group
from saejax.training.sources import Source

SETTINGS = "fingerprint.json"


class RunFolder:
  """The folder of a run, opened to be written.

  The fingerprint is written before the first checkpoint, so that another run is
  refused in the folder of one that has none.

  Args:
    folder: of the run.
    fingerprint: JSON-able settings that must be equal on resume.
    group: the members' programs.

  Raises:
    InputError: another run is in the folder, or it is damaged. Nothing is
      changed then.
  """

  def __init__(
    self,
    folder: pathlib.Path,
    fingerprint: Mapping[str, Any],
    group: Group | Stacks,
  ):
    self.path = folder
    self._group = group
    self._about: dict[str, Any] | None = None  # is the same at every step
    _check(folder, json.loads(json.dumps(fingerprint)))
    self._checkpoints = Checkpoints(
      folder / checkpoint_folder.FOLDER, fingerprint=fingerprint
    )
    processes.sync()  # all have read what is there
    if jax.process_index() == 0:
      record = {"settings": json.dumps(fingerprint)}  # as text: it may hold NaN
      durable.write_sealed(folder / SETTINGS, record, field="run_dir")

  def __enter__(self) -> "RunFolder":
    self._checkpoints.__enter__()
    return self

  def __exit__(self, *exception: Any) -> None:
    self._checkpoints.__exit__(*exception)

  def restore(
    self, states: Any, source: Source, members: int
  ) -> tuple[int, Any, np.ndarray]:
    """The step, the states and the seconds of each member that were saved last.

    Args:
      states: before the first step; returned where nothing was saved.
      source: set to the saved position.
      members: how many.
    """
    seconds = np.zeros(members, np.float32)
    template = _saved(states, seconds)
    restored = self._checkpoints.restore(template, source)
    if restored is None:
      return 0, states, seconds
    step, saved = restored
    return step, saved[saved_member.MEMBERS], np.array(saved["seconds"])

  def save(
    self,
    step: int,
    states: Any,
    seconds: Sequence[float] | np.ndarray,
    source: Source,
    rating: float | None,
  ) -> None:
    """Saves a checkpoint in the background.

    Args:
      step: number of completed steps.
      states: states of all members.
      seconds: training time of each member, in seconds.
      source: source whose position is saved.
      rating: held-out metric, lower is better; None if there is none.

    Raises:
      InputError: the disk is full, for this save or the one before.
    """
    if self._about is None:
      names = [member.name for member in self._group.members]
      forms = jax.eval_shape(self._group.trained, states)
      listed = saved_member.listed(names, [sae for sae, _ in forms], states)
      self._about = {saved_member.MEMBERS: listed}
    state = _saved(states, seconds)
    self._checkpoints.save(
      step, state, source, metric=rating, about=self._about
    )

  def wait(self) -> None:
    """Waits until the last checkpoint is complete."""
    self._checkpoints.wait()


def _saved(states: Any, seconds: Sequence[float] | np.ndarray) -> Any:
  """What a checkpoint holds; seconds are those of process 0."""
  if jax.process_count() == 1:
    return {saved_member.MEMBERS: states, "seconds": jnp.asarray(seconds)}
  shared = processes.gathered([float(s) for s in seconds])[0]
  seconds = np.asarray(shared, np.float32)
  mesh = jax.tree.leaves(states)[0].sharding.mesh
  where = NamedSharding(mesh, PartitionSpec())
  return {
    saved_member.MEMBERS: states,
    "seconds": sharding.place(seconds, where),
  }


def _check(folder: pathlib.Path, ours: Any) -> None:
  """Refuses a folder of another run; hardware is left to the checkpoints."""
  path = folder / SETTINGS
  if not path.exists():
    return
  remedy = f"restore it, or remove {folder}"
  record = durable.read_sealed(path, field="run_dir", remedy=remedy)
  theirs = json.loads(record["settings"])
  differing = differences(
    {k: v for k, v in theirs.items() if k != ENVIRONMENT},
    {k: v for k, v in ours.items() if k != ENVIRONMENT},
  )
  if differing:
    more = f" ({len(differing)} settings differ)" if differing[1:] else ""
    raise InputError(
      "run_dir",
      folder,
      f"holds a run with {differing[0]}{more}",
      "choose another run_dir, or repeat the settings of its run.flags",
    )
