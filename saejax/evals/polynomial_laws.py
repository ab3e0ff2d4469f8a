"""Polynomials in log n and log k, which a scaling law is compared with.

  log-linear  log L = c0 + c1 log n + c2 log k
  quadratic   the same + c3 log^2 n + c4 log n log k + c5 log^2 k

Any smooth surface over a small grid is nearly a quadratic one: where a law has
an R^2 no higher than theirs, its form was not tested by these points.
"""

import dataclasses

import numpy as np
from jaxtyping import Float

from saejax.evals import loss_grid
from saejax.evals.loss_grid import Grid

# Powers of (log n, log k) in each law.
POWERS = {
  "log-linear": ((0, 0), (1, 0), (0, 1)),
  "quadratic": ((0, 0), (1, 0), (0, 1), (2, 0), (1, 1), (0, 2)),
}


@dataclasses.dataclass(frozen=True)
class Score:
  """How well one law describes the points, and predicts the largest n.

  Attributes:
    law: its name.
    parameters: how many were fitted.
    r2: R^2 on log L of the seed means; None where all losses are equal.
    holdout_error: mean of |log(predicted / loss)| at the largest n, fitted
      without it; None where too few points are left.
  """

  law: str
  parameters: int
  r2: float | None
  holdout_error: float | None


def scores(grid: Grid) -> tuple[Score, ...]:
  """Least squares on log L of the seed means, for each of `POWERS`."""
  cells = grid.cells()[0]
  log_loss = np.log(cells.loss)
  split = loss_grid.without_largest(grid)
  found = []
  for law, powers in POWERS.items():
    fitted = _predict(powers, cells, cells)
    error = None
    if split is not None:
      rest, held = (part.cells()[0] for part in split)
      error = np.abs(_predict(powers, rest, held) - np.log(held.loss)).mean()
      error = float(error)
    r2 = loss_grid.r2(log_loss, fitted)
    found.append(Score(law, len(powers), r2, error))
  return tuple(found)


def _predict(powers, cells: Grid, at: Grid) -> Float[np.ndarray, "a"]:
  """log L at some sizes, of the polynomial fitted to the cells."""
  x0, y0 = np.log(cells.n).mean(), np.log(cells.k).mean()

  def columns(grid: Grid) -> np.ndarray:
    x, y = np.log(grid.n) - x0, np.log(grid.k) - y0
    return np.stack([x**i * y**j for i, j in powers], axis=1)

  found = np.linalg.lstsq(columns(cells), np.log(cells.loss), rcond=None)[0]
  return columns(at) @ found
