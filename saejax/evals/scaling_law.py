"""The scaling law L(n, k) of sparse autoencoders, fitted with its uncertainty.

  L(n, k) = exp(alpha + beta_k log k + beta_n log n + gamma log n log k)
          + exp(zeta + eta log k)

The second term is the loss that no number of latents removes. The six
parameters are weakly identified on small grids (many values give nearly the
same surface): rely on predictions and their bands rather than on single
parameters.

References:
  Gao et al., Scaling and evaluating sparse autoencoders, 2024,
  arXiv:2406.04093, section 3 and appendix on scaling laws.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from saejax import errors
from saejax.evals import loss_grid, power_laws
from saejax.evals.loss_grid import Grid

PARAMETERS = power_laws.PARAMETERS


@dataclasses.dataclass(frozen=True)
class Law:
  """One variable's law: L = exp(a + b log v) + exp(c), c absent if None.

  Attributes:
    variable: "n" or "k", the v above.
    at: value of the other variable.
    a, b: log of the factor and the exponent.
    c: log of the irreducible loss; None where the law has no such term.
    r2: R^2 on log L of the seed means; None where all losses are equal.
    points: distinct values of v it was fitted to.
  """

  variable: str
  at: int
  a: float
  b: float
  c: float | None
  r2: float | None
  points: int

  def predict(self, v: Float[np.ndarray, "*b"]) -> Float[np.ndarray, "*b"]:
    """Loss at v."""
    loss = power_laws.exp(self.a + self.b * np.log(np.asarray(v, np.float64)))
    return loss if self.c is None else loss + math.exp(self.c)


@dataclasses.dataclass(frozen=True)
class Holdout:
  """Extrapolation: predictions at the largest n by a fit without it.

  Attributes:
    n: the largest n, left out of the fit.
    parameters: parameters fitted to the remaining points.
    cells: {n, k, loss, predicted, error} with error = log(predicted / loss).
    error: mean over the cells of |log(predicted / loss)|: 0.01 is 1 %.
  """

  n: int
  parameters: Float[np.ndarray, "6"]
  cells: tuple[dict, ...]
  error: float


@dataclasses.dataclass(frozen=True)
class Fit:
  """The fitted surface with what is needed to judge it.

  Attributes:
    parameters: alpha, beta_k, beta_n, gamma, zeta, eta.
    r2: R^2 on log L of seed means; None where all losses are equal.
    grid: the points used; `grid.dropped` lists the others.
    residuals: log(loss / fitted) of each point.
    samples: bootstrapped parameters, one row per resample.
    resampled: "points" or "seeds"; see `fit`.
    holdout: extrapolation to the largest n, or None.
    holdout_reason: why there is none.
    over_n: laws of L against n, one per k.
    over_k: laws of L against k, one per n.
  """

  parameters: Float[np.ndarray, "6"]
  r2: float | None
  grid: Grid
  residuals: Float[np.ndarray, "p"]
  samples: Float[np.ndarray, "r 6"]
  resampled: str
  holdout: Holdout | None
  holdout_reason: str | None
  over_n: tuple[Law, ...]
  over_k: tuple[Law, ...]

  def predict(self, n, k) -> Float[np.ndarray, "*b"]:
    """Fitted loss at n and k (broadcast against each other)."""
    return surface(self.parameters, n, k)

  def band(
    self, n, k, *, level: float = 0.95, noise: bool = True
  ) -> tuple[Float[np.ndarray, "*b"], Float[np.ndarray, "*b"]]:
    """Lower and upper loss at n and k, from the bootstrap.

    Deviations are scaled up by sqrt(p / (p - 6)) for the six numbers that were
    fitted to p points. On planted surfaces with 12 to 16 points and 1 % noise
    the 95 % bands covered 92 % of the surface and 90 % of new SAEs.

    Args:
      n, k: any grid, broadcast against each other.
      level: share of the resamples inside.
      noise: True for the band of one new SAE (the residual spread is added),
        False for the band of the surface itself.

    Returns:
      Two arrays of the broadcast shape; both are the fit itself where
      nothing could be resampled.
    """
    centre = power_laws.log_surface(self.parameters, n, k)
    if not len(self.samples):
      return power_laws.exp(centre), power_laws.exp(centre)
    draws = np.stack([power_laws.log_surface(s, n, k) for s in self.samples])
    if self.resampled == "points":
      draws = centre + self._shrinkage * (draws - centre)
    if noise:
      rng = np.random.default_rng(0)
      draws = np.repeat(draws, 4, axis=0)
      drawn = self._shrinkage * rng.choice(self.residuals, size=len(draws))
      draws = draws + drawn.reshape((-1,) + (1,) * centre.ndim)
    tail = (1 - level) / 2
    low, high = np.quantile(draws, [tail, 1 - tail], axis=0)
    return power_laws.exp(low), power_laws.exp(high)

  @property
  def _shrinkage(self) -> float:
    p = len(self.residuals)
    return math.sqrt(p / max(p - len(PARAMETERS), 1))

  def intervals(self, level: float = 0.95) -> dict[str, tuple[float, float]]:
    """Bootstrap percentile interval of each parameter."""
    if not len(self.samples):
      return {}
    tail = (1 - level) / 2
    low, high = np.quantile(self.samples, [tail, 1 - tail], axis=0)
    return {
      name: (float(a), float(b))
      for name, a, b in zip(PARAMETERS, low, high, strict=True)
    }

  def record(self) -> dict:
    """Everything above as plain numbers, for results.json."""
    values = zip(PARAMETERS, self.parameters, strict=True)
    held = self.holdout
    return {
      **{name: float(value) for name, value in values},
      "r2": self.r2,
      "intervals": {k: list(v) for k, v in self.intervals().items()},
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
      "bootstrap": {
        "over": self.resampled,
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
  """L(n, k) of the module's equation, n and k broadcast."""
  return power_laws.exp(power_laws.log_surface(parameters, n, k))


def fit(
  points: Sequence[Mapping],
  *,
  resamples: int = 300,
  seed: int = 0,
) -> Fit:
  """Fits the law to trained SAEs, with bands and extrapolation.

  Least squares on log L with the soft_l1 loss, from several starts, in
  centred and scaled log n and log k. The outlier scale is twice the robust
  standard deviation of a first fit's residuals, at least 1 %.

  Args:
    points: mappings with "n", "k", "nmse", and optionally "seed", "status"
      and "learning_rate". Those whose loss is not finite and positive, or
      whose status is not "ok", are dropped and listed, and so are all
      learning rates but the best at each (n, k).
    resamples: bootstrap size; 0 for none.
    seed: of the starts and of the bootstrap.

  Returns:
    The fit. With two or more seeds in every cell (n, k) the bootstrap redraws
    deviations from the cell's mean, scaled by sqrt(s / (s - 1)); otherwise
    it redraws points.

  Raises:
    InputError: fewer than 3 n, 3 k or 9 usable cells.
  """
  grid = loss_grid.usable(points)
  loss_grid.check(grid)
  log_loss = np.log(grid.loss)
  surface_fit = power_laws.Surface(grid.n, grid.k, log_loss)
  theta, scale = surface_fit.fit(seed)
  residuals = log_loss - power_laws.log_surface(theta, grid.n, grid.k)
  cells, cell = grid.cells()
  over_seeds = bool(np.bincount(cell).min() >= 2)
  samples = _bootstrap(
    grid,
    surface_fit,
    theta,
    scale,
    over_seeds=over_seeds,
    resamples=resamples,
    seed=seed,
  )
  holdout, reason = _extrapolate(grid, seed)
  fitted = power_laws.log_surface(theta, cells.n, cells.k)
  return Fit(
    parameters=theta,
    r2=_r2(np.log(cells.loss), fitted),
    grid=grid,
    residuals=residuals,
    samples=samples,
    resampled="seeds" if over_seeds else "points",
    holdout=holdout,
    holdout_reason=reason,
    over_n=laws(grid, "n"),
    over_k=laws(grid, "k"),
  )


def laws(grid: Grid, variable: str) -> tuple[Law, ...]:
  """The one-variable laws of a grid, at each value of the other variable.

  Against n: exp(a + b log n) + exp(c), the last term where there are at least
  four n. Against k: exp(a + b log k). Values of the other variable with
  fewer than three points are left out.
  """
  cells = grid.cells()[0]
  v, other = (cells.n, cells.k) if variable == "n" else (cells.k, cells.n)
  found = []
  for at in np.unique(other):
    x, y = np.log(v[other == at]), np.log(cells.loss[other == at])
    if len(x) < loss_grid.MIN_SIZES:
      continue
    a, b, c = power_laws.power_law(
      x, y, irreducible=variable == "n" and len(x) > 3
    )
    fitted = a + b * x if c is None else np.logaddexp(a + b * x, c)
    found.append(Law(variable, int(at), a, b, c, _r2(y, fitted), len(x)))
  return tuple(found)


def _r2(log_loss: np.ndarray, fitted: np.ndarray) -> float | None:
  """1 - residual / total sum of squares, None where nothing varies."""
  total = np.sum((log_loss - log_loss.mean()) ** 2)
  if not total > 1e-20 * len(log_loss):
    return None
  return float(1 - np.sum((log_loss - fitted) ** 2) / total)


def _bootstrap(
  grid: Grid,
  surface_fit: power_laws.Surface,
  theta: np.ndarray,
  scale: float,
  *,
  over_seeds: bool,
  resamples: int,
  seed: int,
) -> np.ndarray:
  """Parameters of `resamples` refits, each started at the fit itself."""
  rng = np.random.default_rng(seed + 1)
  cell = grid.cells()[1]
  samples = []
  for _ in range(resamples):
    if over_seeds:
      drawn = _redraw_seeds(np.log(grid.loss), cell, rng)
      samples.append(surface_fit.refit(theta, scale, log_loss=drawn))
    else:
      counts = _redraw_points(grid, rng)
      samples.append(surface_fit.refit(theta, scale, counts=counts))
  return np.asarray(samples).reshape(-1, len(PARAMETERS))


def _redraw_seeds(y, cell, rng) -> np.ndarray:
  """Cell means plus redrawn deviations, scaled to the unbiased variance."""
  drawn = np.empty_like(y)
  for c in np.unique(cell):
    (at,) = np.nonzero(cell == c)
    mean = y[at].mean()
    deviations = rng.choice(y[at] - mean, size=len(at))
    drawn[at] = mean + math.sqrt(len(at) / (len(at) - 1)) * deviations
  return drawn


def _redraw_points(grid: Grid, rng) -> np.ndarray:
  """Draws the count of each point; repeats draws that determine no surface."""
  p = len(grid.loss)
  counts = np.ones(p)
  for _ in range(100):
    counts = np.bincount(rng.integers(p, size=p), minlength=p).astype(float)
    kept = grid.select(counts > 0)
    if (
      len(kept.cells()[0].n) >= len(PARAMETERS)
      and len(np.unique(kept.n)) >= loss_grid.MIN_SIZES
      and len(np.unique(kept.k)) >= loss_grid.MIN_SIZES
    ):
      break
  return counts


def _extrapolate(grid: Grid, seed: int) -> tuple[Holdout | None, str | None]:
  """The fit without the largest n, or the reason why there is none."""
  largest = grid.n.max()
  rest = grid.select(grid.n < largest)
  try:
    loss_grid.check(rest)
  except errors.InputError:
    return None, (
      f"without n = {int(largest):,} fewer than {loss_grid.MIN_SIZES} n x {loss_grid.MIN_SIZES} k"
      f" and {loss_grid.MIN_POINTS} pairs are left"
    )
  theta, _ = power_laws.Surface(rest.n, rest.k, np.log(rest.loss)).fit(seed)
  cells = grid.select(grid.n == largest).cells()[0]
  predicted = surface(theta, cells.n, cells.k)
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
  return Holdout(int(largest), theta, rows, float(np.abs(error).mean())), None
