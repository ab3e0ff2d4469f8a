"""One member of a run as it was at a checkpoint.

A checkpoint holds the states of all members, each in arrays of its own or in one
row of stacked ones; its note says where each lies and how its SAE is built.
"""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from saejax.errors import InputError
from saejax.sae import files
from saejax.sae.sae import SAE
from saejax.training import checkpoint_folder as folders
from saejax.training import orbax_io
from saejax.training.parts import rounding
from saejax.training.state import TrainState

MEMBERS = "members"  # entry of a note, and of what a checkpoint holds


def listed(
  names: Sequence[str], forms: Sequence[SAE], states: Any
) -> list[dict[str, Any]]:
  """Returns where each member lies in a checkpoint, for its note.

  Args:
    names: of the members, in order.
    forms: the training form of each, of arrays or shapes.
    states: states of all members, of `Group` or of `Stacks`.
  """
  nodes = jax.tree_util.tree_leaves_with_path(
    {MEMBERS: states}, is_leaf=lambda node: isinstance(node, TrainState)
  )
  places = []
  for path, state in nodes:
    prefix = jax.tree_util.keystr(path, simple=True, separator=".")
    count = np.shape(state.step)  # stacked: one for each member
    rows = range(count[0]) if count else [None]
    places += [{"path": prefix, "row": row} for row in rows]
  return [
    {"name": name, **place, "sae": files.describe(form)}
    for name, place, form in zip(names, places, forms, strict=True)
  ]


def load_checkpoint(
  run_dir: str | os.PathLike[str],
  name: str | None = None,
  *,
  step: int | None = None,
  parts: Mapping[str, type] | None = None,
) -> SAE:
  """Reads the SAE of one member as it was at a checkpoint, in its training form.

  It has the weights of that step, not their average, and selects as in training:
  for BatchTopK over a batch. The SAEs that a finished run saved are in their
  inference form; `saejax.load` reads those.

  Args:
    run_dir: folder of a run: of `fit`, `fit_grid`, or one size of a command's
      run, such as `runs/a/n4096`.
    name: of the member, such as "k16-seed0"; None where there is one.
    step: of the checkpoint; the last by default.
    parts: classes of parts defined outside saejax, by their name in the file.

  Raises:
    InputError: there is no such checkpoint or member, or it is damaged.
  """
  path = _checkpoint(pathlib.Path(run_dir) / folders.FOLDER, step)
  note = folders.read_note(path)
  members = {one["name"]: one for one in note.get(MEMBERS, ())}
  if not members:
    rule = "must say where its members lie; an earlier version wrote it"
    raise InputError("run_dir", path, rule, "continue the run to save another")
  if name is None and len(members) == 1:
    (name,) = members
  if name not in members:
    raise InputError(
      "name",
      name,
      f"must be one of the members of the run: {', '.join(members)}",
      "name one",
    )
  own = members[name]
  prefix = f"{own['path']}.sae."
  arrays = orbax_io.load_some(
    path,
    {
      leaf: _shape(spec)
      for leaf, spec in note["leaves"].items()
      if leaf.startswith(prefix)
    },
  )
  row = ... if own["row"] is None else own["row"]
  arrays = {leaf[len(prefix) :]: a[row] for leaf, a in arrays.items()}
  # Training widens weights before their use.
  return rounding.widened(files.build(own["sae"], arrays, "", parts or {}))


def _checkpoint(folder: pathlib.Path, step: int | None) -> pathlib.Path:
  """The intact checkpoint of a step, or the last one."""
  found = folders.scan(folder).complete
  chosen = [one for one in found if step in (None, one.step)]
  if not chosen:
    steps = ", ".join(f"{one.step:,}" for one in found) or "none"
    raise InputError(
      "run_dir" if step is None else "step",
      folder if step is None else step,
      f"must have a complete checkpoint (there: {steps})",
      "give the folder of a run that has saved one, such as runs/a/n4096",
    )
  path = chosen[-1].path
  if fault := folders.fault(path):
    rule = f"the checkpoint is damaged ({fault})"
    raise InputError("run_dir", path, rule, "read another step")
  return path


def _shape(spec: str) -> jax.ShapeDtypeStruct:
  """The shape and type that `orbax_io.specs` wrote."""
  kind, sizes = spec.removesuffix("]").split("[")
  shape = tuple(int(size) for size in sizes.split(",") if size)
  return jax.ShapeDtypeStruct(shape, kind)
