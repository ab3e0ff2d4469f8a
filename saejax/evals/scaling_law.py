"""The scaling law L(n, k) of sparse autoencoders, fitted with its uncertainty.

  L(n, k) = exp(alpha + beta_k log k + beta_n log n + gamma log n log k)
          + exp(zeta + eta log k)

The second term is the irreducible loss, which does not depend on n. The six
parameters are weakly identified on small grids, where many values give nearly
equal surfaces; rely on predictions and their bands instead of single parameters.

References:
  Gao et al., Scaling and evaluating sparse autoencoders, 2024,
  arXiv:2406.04093, section 3 and appendix on scaling laws.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
import scipy.special
from jaxtyping import Float

from saejax.evals import (
  law_profiles,
  loss_grid,
  polynomial_laws,
  power_laws,
)
from saejax.evals.loss_grid import Grid

PARAMETERS = power_laws.PARAMETERS


@dataclasses.dataclass(frozen=True)
class Law:
  """A law of one variable v: L = exp(a + b log v) + exp(c).

  Attributes:
    variable: the variable v, "n" or "k".
    at: value of the other variable.
    a, b: log of the factor, and the exponent.
    c: log of the irreducible loss; None where the law has no such term.
    r2: R^2 on log L of the seed means; None where all losses are equal.
    points: number of distinct values of v in the fit.
  """

  variable: str
  at: int
  a: float
  b: float
  c: float | None
  r2: float | None
  points: int

  def predict(self, v: Float[np.ndarray, "*b"]) -> Float[np.ndarray, "*b"]:
    """Computes the loss.

    Args:
      v: values of the variable.
    """
    loss = power_laws.exp(self.a + self.b * np.log(np.asarray(v, np.float64)))
    return loss if self.c is None else loss + math.exp(self.c)


@dataclasses.dataclass(frozen=True)
class Holdout:
  """Extrapolation to the largest n from the points below it.

  Attributes:
    n: the largest n, which is not in the fit.
    parameters: parameters fitted to the other points.
    cells: {n, k, loss, predicted, error} with error = log(predicted / loss).
    error: mean over the cells of |log(predicted / loss)|; 0.01 means 1 %.
  """

  n: int
  parameters: Float[np.ndarray, "6"]
  cells: tuple[dict, ...]
  error: float


@dataclasses.dataclass(frozen=True)
class Fit:
  """The fitted surface, its uncertainty and baselines.

  Attributes:
    parameters: alpha, beta_k, beta_n, gamma, zeta, eta.
    r2: R^2 on log L of the seed means; None where all losses are equal.
    grid: points of the fit; `grid.dropped` lists the others.
    residuals: log(loss / fitted) of each point.
    minima: the best minimum of the cost, and others.
    samples: bootstrapped parameters, one row per resample of the cells (n, k).
    holdout: extrapolation to the largest n, or None.
    holdout_reason: reason why there is no extrapolation, or None.
    polynomials: scores of a log-linear and a quadratic law of these points.
    over_n: laws of L against n, one per k.
    over_k: laws of L against k, one per n.
  """

  parameters: Float[np.ndarray, "6"]
  r2: float | None
  grid: Grid
  residuals: Float[np.ndarray, "p"]
  minima: power_laws.Minima
  samples: Float[np.ndarray, "r 6"]
  holdout: Holdout | None
  holdout_reason: str | None
  polynomials: tuple[polynomial_laws.Score, ...]
  over_n: tuple[Law, ...]
  over_k: tuple[Law, ...]

  def predict(self, n, k) -> Float[np.ndarray, "*b"]:
    """Computes the fitted loss.

    Args:
      n: numbers of latents.
      k: numbers of active latents, broadcast against n.
    """
    return surface(self.parameters, n, k)

  def band(
    self, n, k, *, level: float = 0.95, noise: bool = True
  ) -> tuple[Float[np.ndarray, "*b"], Float[np.ndarray, "*b"]]:
    """Computes lower and upper losses from the bootstrap over cells.

    Deviations from the fit are multiplied by `widening`. On planted surfaces of
    4 x 4 cells with 0.2 or 1 % of noise and one or two seeds, 95 % bands
    covered 95 to 98 % of the surface, and 96 to 98 % of new SAEs
    (benchmarks/law_coverage.py).

    Args:
      n, k: sizes, broadcast against each other.
      level: share of the resamples within the band.
      noise: True for the band of a new SAE, which includes the residual spread;
        False for the band of the surface.

    Returns:
      Two arrays of the broadcast shape; both are the fit if there are no
      resamples.
    """
    centre = power_laws.log_surface(self.parameters, n, k)
    if not len(self.samples):
      return power_laws.exp(centre), power_laws.exp(centre)
    draws = np.stack([power_laws.log_surface(s, n, k) for s in self.samples])
    deviations = self.widening(level) * (draws - centre)
    if noise:
      rng = np.random.default_rng(0)
      deviations = np.repeat(deviations, 4, axis=0)
      noises = rng.choice(self.residuals, size=len(deviations))
      noises = self.widening(level, len(self.residuals)) * noises
      deviations = deviations + noises.reshape((-1,) + (1,) * centre.ndim)
    tail = (1 - level) / 2
    low, high = np.quantile(deviations, [tail, 1 - tail], axis=0)
    return power_laws.exp(centre + low), power_laws.exp(centre + high)

  def widening(self, level: float = 0.95, count: int | None = None) -> float:
    """Computes sqrt(count / (count - 6)) t / z.

    The root corrects for the six fitted parameters, which shrink residuals. t
    and z are the quantiles of Student's distribution with c - 6 degrees of
    freedom and of the normal one, since the spread is estimated from c cells.

    Args:
      level: level of the two-sided interval.
      count: number of residuals; the number of cells c by default.
    """
    cells = len(self.grid.cells()[0].n)
    count, six = count or cells, len(PARAMETERS)
    t = scipy.special.stdtrit(cells - six, (1 + level) / 2)
    z = scipy.special.ndtri((1 + level) / 2)
    return math.sqrt(count / (count - six)) * float(t / z)

  def intervals(self, level: float = 0.95) -> dict[str, tuple[float, float]]:
    """Computes the interval of each parameter from the profile of the cost.

    See `law_profiles` for the equation. An end is infinite where the points do
    not bound the parameter on that side. On the surfaces of `band`, the 95 %
    interval of a parameter covered in 92.5 to 100 % of 400 data sets, 96 % on
    average. Bootstrap intervals, widened as the bands, cover in 68 to 100 %,
    because the points often do not identify the second term.

    Args:
      level: nominal coverage.

    Returns:
      (low, high) by the name of the parameter.
    """
    ends = law_profiles.intervals(self.minima, self.grid.cells()[1], level)
    return {
      name: (float(low), float(high))
      for name, (low, high) in zip(PARAMETERS, ends, strict=True)
    }

  def comparison(self) -> tuple[polynomial_laws.Score, ...]:
    """Returns the scores of this law and of the polynomials."""
    error = None if self.holdout is None else self.holdout.error
    mine = polynomial_laws.Score("scaling law", len(PARAMETERS), self.r2, error)
    return mine, *self.polynomials

  def record(self) -> dict:
    """Returns the fit as plain numbers, for results.json.

    Infinite ends of intervals are None.
    """
    values = zip(PARAMETERS, self.parameters, strict=True)
    held = self.holdout
    return {
      **{name: float(value) for name, value in values},
      "r2": self.r2,
      "intervals": {
        name: [v if math.isfinite(v) else None for v in ends]
        for name, ends in self.intervals().items()
      },
      "holdout_error": None if held is None else held.error,
      "holdout": None
      if held is None
      else {
        "n": held.n,
        "cells": list(held.cells),
        **dict(zip(PARAMETERS, map(float, held.parameters), strict=True)),
      },
      "holdout_reason": self.holdout_reason,
      "residuals": [
        {"n": int(n), "k": int(k), "seed": int(s), "log_residual": float(r)}
        for n, k, s, r in zip(
          self.grid.n,
          self.grid.k,
          self.grid.seed,
          self.residuals,
          strict=True,
        )
      ],
      "comparison": [dataclasses.asdict(s) for s in self.comparison()],
      "bootstrap": {
        "over": "cells",
        "resamples": len(self.samples),
        "level": 0.95,
      },
      "loss_against_n": [dataclasses.asdict(law) for law in self.over_n],
      "loss_against_k": [dataclasses.asdict(law) for law in self.over_k],
      "dropped": list(self.grid.dropped),
    }


def surface(
  parameters: Float[np.ndarray, "6"], n, k
) -> Float[np.ndarray, "*b"]:
  """Computes L(n, k) of the module's equation.

  Args:
    parameters: alpha, beta_k, beta_n, gamma, zeta, eta.
    n: numbers of latents.
    k: numbers of active latents, broadcast against n.
  """
  return power_laws.exp(power_laws.log_surface(parameters, n, k))


def fit(
  points: Sequence[Mapping],
  *,
  resamples: int = 300,
  seed: int = 0,
) -> Fit:
  """Fits the law to trained SAEs, with bands and extrapolation.

  The fit is by least squares on log L with the soft_l1 loss, from several starts,
  in standardised log n and log k. The outlier scale is twice the robust standard
  deviation of a first fit's residuals, at least 1 %. The bootstrap draws cells
  (n, k) with all their seeds, because seeds of one cell have the misfit of the
  law in common.

  Args:
    points: mappings with "n", "k", "nmse", and optionally "seed", "status" and
      "learning_rate". Points are dropped and listed if their loss is not finite
      and positive, their status is not "ok", or another learning rate is better
      at their (n, k).
    resamples: number of bootstrap resamples; 0 for none.
    seed: seed of the starts and of the bootstrap.

  Raises:
    InputError: there are fewer than 3 n, 3 k or 9 usable cells.
  """
  grid = loss_grid.usable(points)
  loss_grid.check(grid)
  minima = power_laws.Surface(grid.n, grid.k, np.log(grid.loss)).fit(seed)
  rng = np.random.default_rng(seed + 1)
  counts = [_redraw_cells(grid, rng) for _ in range(resamples)]
  counts = np.asarray(counts, np.float64).reshape(-1, len(grid.loss))
  holdout, reason = _extrapolate(grid, seed)
  cells = grid.cells()[0]
  fitted = power_laws.log_surface(minima.parameters, cells.n, cells.k)
  return Fit(
    parameters=minima.parameters,
    r2=loss_grid.r2(np.log(cells.loss), fitted),
    grid=grid,
    residuals=minima.residuals,
    minima=minima,
    samples=minima.refit(counts),
    holdout=holdout,
    holdout_reason=reason,
    polynomials=polynomial_laws.scores(grid),
    over_n=laws(grid, "n"),
    over_k=laws(grid, "k"),
  )


def laws(grid: Grid, variable: str) -> tuple[Law, ...]:
  """Fits laws of one variable, one per value of the other variable.

  Against n: exp(a + b log n) + exp(c), where the last term needs at least four n.
  Against k: exp(a + b log k). Values of the other variable with fewer than three
  points are left out.

  Args:
    grid: the measured losses.
    variable: "n" or "k".
  """
  cells = grid.cells()[0]
  v, other = (cells.n, cells.k) if variable == "n" else (cells.k, cells.n)
  results = []
  for at in np.unique(other):
    x, y = np.log(v[other == at]), np.log(cells.loss[other == at])
    if len(x) < loss_grid.MIN_SIZES:
      continue
    a, b, c = power_laws.power_law(
      x, y, irreducible=variable == "n" and len(x) > 3
    )
    fitted = a + b * x if c is None else np.logaddexp(a + b * x, c)
    results.append(
      Law(variable, int(at), a, b, c, loss_grid.r2(y, fitted), len(x))
    )
  return tuple(results)


def _redraw_cells(grid: Grid, rng) -> Float[np.ndarray, "p"]:
  """Draws counts of points by cells, again if they determine no surface."""
  cells, cell = grid.cells()
  count = len(cells.n)
  counts = np.ones(count)
  for _ in range(100):
    counts = np.bincount(rng.integers(count, size=count), minlength=count)
    drawn = cells.select(counts > 0)
    if (
      len(drawn.n) >= len(PARAMETERS)
      and len(np.unique(drawn.n)) >= loss_grid.MIN_SIZES
      and len(np.unique(drawn.k)) >= loss_grid.MIN_SIZES
    ):
      break
  return counts[cell].astype(np.float64)


def _extrapolate(grid: Grid, seed: int) -> tuple[Holdout | None, str | None]:
  """Fits without the largest n; returns the result or why there is none."""
  largest = int(grid.n.max())
  split = loss_grid.without_largest(grid)
  if split is None:
    sizes, points = loss_grid.MIN_SIZES, loss_grid.MIN_POINTS
    return None, (
      f"without n = {largest:,} fewer than {sizes} n x {sizes} k and {points}"
      " pairs are left"
    )
  rest, held = split
  minima = power_laws.Surface(rest.n, rest.k, np.log(rest.loss)).fit(seed)
  cells = held.cells()[0]
  predicted = surface(minima.parameters, cells.n, cells.k)
  error = np.log(predicted / cells.loss)
  rows = tuple(
    {
      "n": int(n),
      "k": int(k),
      "loss": float(loss),
      "predicted": float(p),
      "error": float(e),
    }
    for n, k, loss, p, e in zip(
      cells.n, cells.k, cells.loss, predicted, error, strict=True
    )
  )
  mean = float(np.abs(error).mean())
  return Holdout(largest, minima.parameters, rows, mean), None
