"""A core evaluation on disk: resumed after a kill, merged at the end.

folder/
  training.npz             facts of training rows: those of the process that had
                           them first
  part-00000-of-00004/     see `features.parts`
    training.npz           facts that this process computed
    sums.npz               its sums
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from saejax import durable
from saejax.evals import core, core_controls, embeddings, in_model, splices
from saejax.features import parts

TRAINING = "training.npz"
Batch = tuple[int, splices.Tokens]  # with the number of windows before it


def training(
  kept: parts.Pass,
  names: Iterable[str],
  make: Callable[[], core_controls.Training],
) -> core_controls.Training:
  """Returns the facts of training rows, which are the same in all processes.

  Args:
    kept: the folder, in which this process holds its place.
    names: names of the SAEs; files have their order alone.
    make: computes them.

  Raises:
    InputError: the file is damaged.
  """
  file = kept.folder / TRAINING
  if not file.exists():
    facts = make()
    arrays = {
      name: np.asarray(value)
      for name, value in vars(facts).items()
      if name != "k"
    }
    own = kept.own / TRAINING
    parts.write(own, arrays, {"k": list(facts.k.values())})
    first = contextlib.suppress(FileExistsError)  # another one was first
    field, where = parts.FIELD, kept.folder
    with durable.disk_errors(where, field=field, what=TRAINING), first:
      os.link(own, file)
  arrays, about = parts.read(file)
  for name in ("square_in", "square", "limit"):
    arrays[name] = float(arrays[name])
  return core_controls.Training(
    **arrays, k=dict(zip(names, about["k"], strict=True))
  )


def numbered(batches: Iterable[splices.Tokens]) -> Iterator[Batch]:
  """Yields batches with the number of windows before each.

  Args:
    batches: all batches of the text, in order.
  """
  first = 0
  for batch in batches:
    yield first, batch
    first += len(batch.ids)


class Work(parts.Work[core.Sums, Batch]):
  """The sums of an evaluation.

  Args:
    evaluation: what is computed of each batch.
  """

  def __init__(self, evaluation: core.Core):
    self._core = evaluation

  def nothing(self) -> core.Sums:
    return self._core.nothing()

  def added(self, total: core.Sums, batch: Batch) -> core.Sums:
    first, tokens = batch
    return total.merged(self._core.part(tokens, first))

  def merged(self, total: core.Sums, other: core.Sums) -> core.Sums:
    return total.merged(other)

  def arrays(self, total: core.Sums) -> dict[str, np.ndarray]:
    arrays = {"error": total.error}
    for sae, rows in enumerate(total.rows.values()):
      for number, leaf in enumerate(jax.tree.leaves(rows)):
        arrays[f"rows/{sae}/{number}"] = np.asarray(leaf)
    for field, value in vars(total.model).items():
      if field == "by_position":
        arrays |= {f"by_position/{k}": v for k, v in value.items()}
      elif field != "names":
        arrays[f"model/{field}"] = value
    return arrays

  def restored(self, arrays: dict[str, Any]) -> core.Sums:
    nothing = self._core.nothing()
    rows = {}
    for sae, (name, empty) in enumerate(nothing.rows.items()):
      leaves, tree = jax.tree.flatten(empty)
      found = [arrays[f"rows/{sae}/{i}"] for i in range(len(leaves))]
      rows[name] = jax.tree.unflatten(tree, [a[()] for a in found])
    given = {
      name.removeprefix("model/"): value
      for name, value in arrays.items()
      if name.startswith("model/")
    }
    names = nothing.model.names
    if isinstance(nothing.model, embeddings.Embeddings):
      model = embeddings.Embeddings(names, **given)
    else:
      by_position = {
        name: arrays[f"by_position/{name}"]
        for name in nothing.model.by_position
      }
      model = in_model.InModel(names, by_position=by_position, **given)
    return core.Sums(rows, arrays["error"], model)
