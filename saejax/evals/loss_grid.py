"""Losses measured over a grid of n and k, for fitting a scaling law."""

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from saejax import errors

MIN_SIZES = 3  # distinct n, and distinct k
MIN_POINTS = 9


@dataclasses.dataclass(frozen=True)
class Grid:
  """Measured losses as float64 columns, with one entry per trained SAE.

  Attributes:
    n: number of latents.
    k: number of active latents.
    seed: seed of the SAE.
    loss: held-out loss (normalised mse), positive.
    dropped: records that were not usable, with the reason.
  """

  n: Float[np.ndarray, "p"]
  k: Float[np.ndarray, "p"]
  seed: Float[np.ndarray, "p"]
  loss: Float[np.ndarray, "p"]
  dropped: tuple[dict, ...] = ()

  def select(self, keep: np.ndarray) -> "Grid":
    """Returns some of the points.

    Args:
      keep: mask or indices of the points.
    """
    return Grid(self.n[keep], self.k[keep], self.seed[keep], self.loss[keep])

  def cells(self) -> tuple["Grid", np.ndarray]:
    """Returns means over seeds, one per cell (n, k), and each point's cell."""
    pairs = np.stack([self.n, self.k], axis=1)
    unique, cell = np.unique(pairs, axis=0, return_inverse=True)
    cell = cell.reshape(-1)
    count = np.bincount(cell, minlength=len(unique))
    mean = np.bincount(cell, self.loss, minlength=len(unique)) / count
    n, k = unique[:, 0], unique[:, 1]
    return Grid(n, k, np.zeros(len(n)), mean), cell


def without_largest(grid: Grid) -> tuple[Grid, Grid] | None:
  """Splits a grid into the points below the largest n and those at it.

  Args:
    grid: the grid.

  Returns:
    The two parts, or None where the first has too few points for six
      parameters.
  """
  largest = grid.n.max()
  rest = grid.select(grid.n < largest)
  try:
    check(rest)
  except errors.InputError:
    return None
  return rest, grid.select(grid.n == largest)


def r2(
  log_loss: Float[np.ndarray, "c"], fitted: Float[np.ndarray, "c"]
) -> float | None:
  """Computes R^2, 1 - residual / total sum of squares; None without variation.

  Args:
    log_loss: log of the losses.
    fitted: fitted log losses.

  >>> r2(np.array([0.0, 1.0, 2.0]), np.array([0.0, 1.0, 2.0]))
  1.0
  """
  total = np.sum((log_loss - log_loss.mean()) ** 2)
  if not total > 1e-20 * len(log_loss):
    return None
  return float(1 - np.sum((log_loss - fitted) ** 2) / total)


def usable(points: Sequence[Mapping]) -> Grid:
  """Selects the points that a law can be fitted to.

  Args:
    points: mappings with "n", "k", "nmse" and optionally "seed", "status" and
      "learning_rate".

  Returns:
    The grid; its `dropped` lists the other points.
  """
  rows, dropped = [], []
  for point in points:
    loss = point.get("nmse")
    status = point.get("status") or "ok"
    seed = int(point.get("seed") or 0)
    entry = {"n": int(point["n"]), "k": int(point["k"]), "seed": seed}
    if min(entry["n"], entry["k"]) < 1:
      dropped.append({**entry, "reason": "n and k must be at least 1"})
    elif status != "ok":
      dropped.append({**entry, "reason": f"status {status}"})
    elif loss is None or not math.isfinite(loss):
      dropped.append({**entry, "reason": "loss is not finite"})
    elif loss <= 0:
      dropped.append({**entry, "reason": "loss is not positive"})
    else:
      rate = float(point.get("learning_rate") or 0)
      rows.append((entry["n"], entry["k"], seed, float(loss), rate))
  rows, beaten = _best_rates(rows)
  n, k, seeds, loss = np.asarray(rows, np.float64).reshape(-1, 4).T
  return Grid(n, k, seeds, loss, (*dropped, *beaten))


def _best_rates(rows: list[tuple]) -> tuple[list[tuple], list[dict]]:
  """Selects the learning rate with the lowest mean over seeds per (n, k)."""
  losses = collections.defaultdict(list)
  for n, k, _, loss, rate in rows:
    losses[n, k, rate].append(loss)
  best: dict[tuple, tuple] = {}
  for (n, k, rate), values in losses.items():
    candidate = (sum(values) / len(values), rate)
    best[n, k] = min(best.get((n, k), candidate), candidate, key=lambda v: v[0])
  selected, beaten = [], []
  for n, k, seed, loss, rate in rows:
    if rate == best[n, k][1]:
      selected.append((n, k, seed, loss))
    else:
      why = f"learning rate {best[n, k][1]:g} is better than {rate:g}"
      beaten.append({"n": n, "k": k, "seed": seed, "reason": why})
  return selected, beaten


def check(grid: Grid) -> None:
  """Checks that a grid is large enough for six parameters.

  Args:
    grid: the grid.

  Raises:
    InputError: there are too few n, k or cells.
  """
  rule = (
    f"the scaling law needs at least {MIN_SIZES} n x {MIN_SIZES} k and"
    f" {MIN_POINTS} usable points"
  )
  if grid.dropped:
    rule += f" ({len(grid.dropped)} were dropped)"
  for name, values in (("n", grid.n), ("k", grid.k)):
    sizes = sorted({int(v) for v in values})
    if len(sizes) < MIN_SIZES:
      shown = ",".join(map(str, sizes)) or "none"
      raise errors.InputError(
        f"sae.{name}", shown, rule, f"train more values of {name}"
      )
  cells = grid.cells()[0]
  if len(cells.n) < MIN_POINTS:
    raise errors.InputError(
      "sae.n",
      f"{len(cells.n)} pairs (n, k)",
      rule,
      "train every k at every n",
    )
