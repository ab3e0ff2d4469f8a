"""Points of a grid: the settings and the held-out metrics of its SAEs.

`grid` is a `runs.grid.Grid` in all of them.
"""

import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np

from saejax import terminal
from saejax.evals import reconstruction
from saejax.features import summary
from saejax.runs import held_out
from saejax.runs.config import SAEConfig
from saejax.sae import activations, files
from saejax.sae.context import Batch
from saejax.sae.sae import SAE
from saejax.training import loop


def points(
  grid: Any, n: int, trained: Sequence[loop.Trained]
) -> list[dict[str, Any]]:
  """The settings and the held-out metrics of each member, in both forms."""
  rows = lambda: held_out.batches(grid.held_out, grid.columns)
  frame = _frame(grid, trained[0].sae)
  found = reconstruction.evaluate_many(
    [t.sae for t in trained],
    rows(),
    means=[_mean(grid, frame)] * len(trained),
    frame=frame,
  )
  before = _before(grid, trained, found, rows)
  points = [
    {
      "n": n,
      "k": t.member.k,
      "seed": t.member.seed,
      "learning_rate": t.member.learning_rate,
      "arguments": {**grid.sae.fixed, **dict(t.member.arguments)},
      "status": _status(t, metrics),
      "tokens": grid.total_steps * grid.train.batch_rows,
      "seconds": round(t.seconds, 3),
      "group_seconds": round(float(sum(t.seconds for t in trained)), 3),
      **{k: _finite(v) for k, v in metrics.record().items()},
      "training_l0": _finite(training.l0),
      "training_fvu": _finite(training.fvu),
      "density": metrics.histogram(summary.density_edges(metrics.rows)),
      **_boosted_on(grid.sae),
    }
    for t, metrics, training in zip(trained, found, before, strict=True)
  ]
  for t, point in zip(trained, points, strict=True):
    if warning := reconstruction.form_warning(point):
      terminal.say(f"n{n}-{t.member.name}: {warning}")
  return points


def _before(
  grid: Any,
  trained: Sequence[loop.Trained],
  found: Sequence[reconstruction.Reconstruction],
  rows: Callable[[], Iterable[Any]],
) -> list[reconstruction.Reconstruction]:
  """The metrics of the training forms.

  They are those of the inference forms where both are one function of a row,
  which saves compiling it for another size of batch.
  """
  if all(_is_one_form(t) for t in trained):
    return list(found)
  return as_trained(grid, [(t.trained, t.stats) for t in trained], rows())


def _is_one_form(t: loop.Trained) -> bool:
  """Whether the inference form is the training form, a row at a time."""
  (ours, here), (theirs, there) = map(jax.tree.flatten, (t.sae, t.trained))
  return (
    isinstance(t.sae.activation, activations.TopK)
    and here == there
    and all(a is b for a, b in zip(ours, theirs, strict=True))
  )


def _boosted_on(sae: SAEConfig) -> dict[str, Any]:
  """The SAE on whose residual the others were trained, where there is one."""
  if not sae.residual_of:
    return {}
  folder = pathlib.Path(sae.residual_of)
  found = {"folder": str(folder.absolute()), "content": files.content(folder)}
  return {"residual_of": found}


def _status(t: loop.Trained, metrics: reconstruction.Reconstruction) -> str:
  """The loop's status, or diverged where the mean would reconstruct better."""
  if t.status != "ok" or metrics.fvu <= 1:
    return t.status
  return "diverged"


def _frame(grid: Any, sae: SAE) -> str:
  """Where errors are measured: in the units of the model if the SAE has a prep
  of its own or another target, else in the frame of the run's prep.
  """
  own = jax.tree.structure(sae.prep) != jax.tree.structure(grid.prep) or any(
    not np.array_equal(a, b)
    for a, b in zip(
      jax.tree.leaves(sae.prep), jax.tree.leaves(grid.prep), strict=True
    )
  )
  return "raw" if own or sae.target_prep is not None else "prep"


def _mean(grid: Any, frame: str) -> np.ndarray:
  """The mean of the training rows, or of their targets, in a frame."""
  if frame == "prep":
    return grid.mean
  if grid.target is not None:
    return np.asarray(grid.store.moments["target"]["mean"], np.float32)
  return np.asarray(grid.store.stats["mean"], np.float32)


def as_trained(
  grid: Any, forms, batches
) -> list[reconstruction.Reconstruction]:
  """Metrics of the training forms, in batches as large as in training."""
  frame = _frame(grid, forms[0][0])
  return reconstruction.evaluate_many(
    [sae for sae, _ in forms],
    batches,
    means=[_mean(grid, frame)] * len(forms),
    frame=frame,
    stats=[stats for _, stats in forms],
    batch_rows=grid.train.batch_rows,
  )


def during(grid: Any, forms, rows: Batch) -> list[dict[str, float]]:
  """Metrics of the members while they train, for the record.

  Those whose selection is that of a row are evaluated in the form and the size
  of batch of `points`, so that nothing is compiled for it.

  Args:
    grid: the grid.
    forms: the training form of each member, with its statistics.
    rows: held-out rows.
  """
  if all(isinstance(sae.activation, activations.TopK) for sae, _ in forms):
    frame = _frame(grid, forms[0][0])
    found = reconstruction.evaluate_many(
      [sae for sae, _ in forms],
      [rows],
      means=[_mean(grid, frame)] * len(forms),
      frame=frame,
      batch_rows=held_out.first_rows(grid.held_out),
    )
  else:
    found = as_trained(grid, forms, [rows])
  names = ("nmse", "fvu", "l0", "dead", "cosine")
  return [{name: getattr(one, name) for name in names} for one in found]


def _finite(value: Any) -> Any:
  """None for numbers that JSON cannot hold."""
  if isinstance(value, float) and not np.isfinite(value):
    return None
  return value
