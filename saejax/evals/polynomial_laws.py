"""Polynomials in log n and log k, as baselines of a scaling law.

  log-linear  log L = c0 + c1 log n + c2 log k
  quadratic   log L = c0 + c1 log n + c2 log k
                    + c3 log^2 n + c4 log n log k + c5 log^2 k

Over a small grid, any smooth surface is nearly quadratic. If a law's R^2 is not
higher than that of the polynomials, the points do not support its form.
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
  """Quality of fit and of extrapolation of a law.

  Attributes:
    law: name of the law.
    parameters: number of parameters.
    r2: R^2 on log L of the seed means; None where all losses are equal.
    holdout_error: mean of |log(predicted / loss)| at the largest n, for a fit
      without it; None where too few points are left.
  """

  law: str
  parameters: int
  r2: float | None
  holdout_error: float | None


def scores(grid: Grid) -> tuple[Score, ...]:
  """Fits each polynomial of `POWERS` by least squares.

  Args:
    grid: the measured losses; fits are to log L of the seed means.
  """
  cells = grid.cells()[0]
  log_loss = np.log(cells.loss)
  split = loss_grid.without_largest(grid)
  results = []
  for law, powers in POWERS.items():
    fitted = _predict(powers, cells, cells)
    error = None
    if split is not None:
      rest, held = (part.cells()[0] for part in split)
      error = np.abs(_predict(powers, rest, held) - np.log(held.loss)).mean()
      error = float(error)
    r2 = loss_grid.r2(log_loss, fitted)
    results.append(Score(law, len(powers), r2, error))
  return tuple(results)


def _predict(powers, cells: Grid, at: Grid) -> Float[np.ndarray, "a"]:
  """Predicts log L at some sizes from a polynomial fitted to the cells."""
  x0, y0 = np.log(cells.n).mean(), np.log(cells.k).mean()

  def columns(grid: Grid) -> np.ndarray:
    x, y = np.log(grid.n) - x0, np.log(grid.k) - y0
    return np.stack([x**i * y**j for i, j in powers], axis=1)

  coefficients = np.linalg.lstsq(
    columns(cells), np.log(cells.loss), rcond=None
  )[0]
  return columns(at) @ coefficients
