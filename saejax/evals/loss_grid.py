"""Losses measured over a grid of n and k, as a scaling law reads them."""

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
  """Measured losses, one entry a trained SAE, as float64 columns.

  Attributes:
    n, k: latents and active latents of each SAE.
    seed: its seed.
    loss: its held-out loss (normalised mse), positive.
    dropped: what could not be used, with the reason.
  """

  n: Float[np.ndarray, "p"]
  k: Float[np.ndarray, "p"]
  seed: Float[np.ndarray, "p"]
  loss: Float[np.ndarray, "p"]
  dropped: tuple[dict, ...] = ()

  def select(self, keep: np.ndarray) -> "Grid":
    """The points where `keep` (mask or indices) says so."""
    return Grid(self.n[keep], self.k[keep], self.seed[keep], self.loss[keep])

  def cells(self) -> tuple["Grid", np.ndarray]:
    """Means over seeds, one point a cell (n, k), and each point's cell."""
    pairs = np.stack([self.n, self.k], axis=1)
    unique, cell = np.unique(pairs, axis=0, return_inverse=True)
    cell = cell.reshape(-1)
    count = np.bincount(cell, minlength=len(unique))
    mean = np.bincount(cell, self.loss, minlength=len(unique)) / count
    n, k = unique[:, 0], unique[:, 1]
    return Grid(n, k, np.zeros(len(n)), mean), cell


def without_largest(grid: Grid) -> tuple[Grid, Grid] | None:
  """The points below the largest n, and those at it.

  None where those below it are too few for six parameters.
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
  """1 - residual / total sum of squares, None where nothing varies."""
  total = np.sum((log_loss - log_loss.mean()) ** 2)
  if not total > 1e-20 * len(log_loss):
    return None
  return float(1 - np.sum((log_loss - fitted) ** 2) / total)


def usable(points: Sequence[Mapping]) -> Grid:
  """Columns of the points a law can be fitted to; the rest is listed."""
  rows, dropped = [], []
  for point in points:
    loss = point.get("nmse")
    status = point.get("status") or "ok"
    seed = int(point.get("seed") or 0)
    what = {"n": int(point["n"]), "k": int(point["k"]), "seed": seed}
    if min(what["n"], what["k"]) < 1:
      dropped.append({**what, "reason": "n and k must be at least 1"})
    elif status != "ok":
      dropped.append({**what, "reason": f"status {status}"})
    elif loss is None or not math.isfinite(loss):
      dropped.append({**what, "reason": "loss is not finite"})
    elif loss <= 0:
      dropped.append({**what, "reason": "loss is not positive"})
    else:
      rate = float(point.get("learning_rate") or 0)
      rows.append((what["n"], what["k"], seed, float(loss), rate))
  rows, beaten = _best_rates(rows)
  n, k, seeds, loss = np.asarray(rows, np.float64).reshape(-1, 4).T
  return Grid(n, k, seeds, loss, (*dropped, *beaten))


def _best_rates(rows: list[tuple]) -> tuple[list[tuple], list[dict]]:
  """Keeps the best learning rate at each (n, k), by the mean over seeds."""
  losses = collections.defaultdict(list)
  for n, k, _, loss, rate in rows:
    losses[n, k, rate].append(loss)
  best: dict[tuple, tuple] = {}
  for (n, k, rate), values in losses.items():
    found = (sum(values) / len(values), rate)
    best[n, k] = min(best.get((n, k), found), found, key=lambda v: v[0])
  kept, beaten = [], []
  for n, k, seed, loss, rate in rows:
    if rate == best[n, k][1]:
      kept.append((n, k, seed, loss))
    else:
      why = f"learning rate {best[n, k][1]:g} is better than {rate:g}"
      beaten.append({"n": n, "k": k, "seed": seed, "reason": why})
  return kept, beaten


def check(grid: Grid) -> None:
  """Raises InputError where a grid is too small for six parameters."""
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
