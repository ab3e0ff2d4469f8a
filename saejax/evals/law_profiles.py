"""Intervals of a scaling law's parameters, by profiling its cost.

The interval of a parameter is the set of values v at which the best fit with
that parameter held at v costs little more than the best fit:

  2 (C(v) - C_min) / lambda <= t^2
  lambda = sum_c (sum_{i in c} psi_i)^2 / (c - 6) / (sum_i psi'_i / c)

with the robust cost C, its derivatives psi and psi' in the residuals, c cells
(n, k) and t the quantile of Student's distribution with c - 6 degrees of
freedom. For a linear model and squared residuals this is the usual t interval.

The law is not linear. Where its second term is weakly identified, C(v) is flat on
one side and steep on the other, and becomes constant where the term vanishes. A
symmetric interval or a scaled bootstrap does not cover there; this interval is
infinite at that end. Seeds of one cell have the misfit of the law in common, so
that lambda is estimated from cells instead of SAEs. Measured coverage is in the
docstring of `scaling_law.Fit.intervals`.

References:
  Bates and Watts, Nonlinear regression analysis and its applications, 1988,
  chapter 6 (profile t).
  Schrader and Hettmansperger, Robust analysis of variance based upon a
  likelihood ratio criterion, 1980 (lambda, the drop in robust cost).
"""

import numpy as np
import scipy.special
from jaxtyping import Float, Int

from saejax.evals import least_squares, power_laws

# A parameter that moves this far in standardised units (a factor of e^20 in the
# loss) without a sufficient rise in cost is not bounded.
_FAR = 20.0
_GROWTH = 2.0  # growth of the steps outwards
_REFINEMENTS = 6  # interpolations between the last value inside and outside
_MINIMA = 2  # minima of the fit to start from, in addition to fresh starts
# Losses are known to 1e-6 at best; equal losses would have no spread.
_LEAST_VARIANCE = 1e-12


def intervals(
  minima: power_laws.Minima,
  cell: Int[np.ndarray, "p"],
  level: float = 0.95,
) -> Float[np.ndarray, "6 2"]:
  """Computes the interval of each parameter, infinite at unbounded ends.

  Args:
    minima: minima of the fit.
    cell: index of each point's cell (n, k).
    level: nominal coverage of the true value.

  Returns:
    Lower and upper end of each parameter.
  """
  cells = int(cell.max()) + 1
  freedom = cells - len(power_laws.PARAMETERS)
  t = float(scipy.special.stdtrit(freedom, (1 + level) / 2))
  residuals = minima.found.residuals[0]
  root = np.sqrt(1 + (residuals / minima.scale) ** 2)
  spread = np.sum(np.bincount(cell, residuals / root) ** 2) / freedom
  variance = max(float(spread / (np.sum(root**-3) / cells)), _LEAST_VARIANCE)
  return _Profile(minima, t**2 * variance / 2).ends()


class _Profile:
  """Minimum cost of a surface with one of its parameters fixed.

  The 12 sides, the lower and the upper one of each parameter, are computed at
  the same time. A distance is that of a parameter from the best fit, where the
  parameter is a direction of unit length in the surface's units.

  Args:
    minima: minima of the fit.
    allowed: rise in cost at the ends of the interval.
  """

  def __init__(self, minima: power_laws.Minima, allowed: float):
    self.surface, self.scale = minima.surface, minima.scale
    self.allowed, self.least = allowed, float(minima.found.cost[0])
    # Minima whose costs differ by less than 1 % of the rise count as one.
    height = np.round(100 * (minima.found.cost - self.least) / allowed)
    different = np.sort(np.unique(height, return_index=True)[1])
    best = minima.found.theta[different[:_MINIMA]]
    # Fresh starts are needed because the cost is flat where the second term has
    # vanished, so that a fit there cannot recover it.
    fresh = minima.surface.starts((0.3, 0.6, 0.9), (0.0, 1.0))
    self.starts = np.concatenate([best, fresh])
    rows = minima.surface.units.matrix
    self.length = np.repeat(np.linalg.norm(rows, axis=1), 2)
    self.rows = np.repeat(rows, 2, axis=0) / self.length[:, None]
    # Directions that do not change a parameter, [12, 6, 5].
    self.within = np.stack([np.linalg.svd(r[None])[2][1:].T for r in self.rows])
    self.sign = np.tile([-1.0, 1.0], len(rows))
    self.centre = self.rows @ self.starts[0]
    # The last distance inside and the first outside, the square root of rise /
    # allowed at both, and the parameters at the inner one.
    self.inner, self.outer = np.zeros(12), np.full(12, np.inf)
    self.inner_rise, self.outer_rise = np.zeros(12), np.full(12, np.inf)
    self.theta = np.tile(self.starts[0], (12, 1))

  def ends(self) -> Float[np.ndarray, "6 2"]:
    """Computes the points of the allowed rise, in the equation's units."""
    distance = self._first_steps()
    at = np.arange(12)
    while len(at):
      self._measure(at, distance[at])
      distance[at] *= _GROWTH
      at = at[np.isinf(self.outer[at]) & (distance[at] < _FAR)]
    bounded = np.flatnonzero(np.isfinite(self.outer))
    for _ in range(_REFINEMENTS if len(bounded) else 0):
      self._measure(bounded, self._crossing(bounded, 0.1))
    end = np.full(12, np.inf)
    end[bounded] = self._crossing(bounded)
    return (self.length * (self.centre + self.sign * end)).reshape(-1, 2)

  def _first_steps(self) -> Float[np.ndarray, "12"]:
    """Computes half the distance to the ends of the linearised model."""
    jacobian = self.surface.model.jacobian(self.starts[0])
    inverse = np.linalg.pinv(jacobian.T @ jacobian, rcond=1e-12)
    spread = np.einsum("sm,mn,sn->s", self.rows, inverse, self.rows)
    return np.clip(np.sqrt(0.5 * self.allowed * spread), 1e-4, 1.0)

  def _crossing(self, at: np.ndarray, margin: float = 0.0) -> np.ndarray:
    """Interpolates the distance at which sqrt(rise / allowed) is 1."""
    inner, outer = self.inner[at], self.outer[at]
    low, high = self.inner_rise[at], self.outer_rise[at]
    share = np.clip((1 - low) / (high - low), margin, 1 - margin)
    return inner + share * (outer - inner)

  def _measure(self, at: np.ndarray, distance: np.ndarray) -> None:
    """Computes the cost at a distance; updates the inner or the outer end."""
    value = (self.centre[at] + self.sign[at] * distance)[:, None]
    rows = self.rows[at][:, None]
    minima = np.broadcast_to(self.starts, (len(at), *self.starts.shape))
    starts = np.concatenate([self.theta[at][:, None], minima], axis=1)
    missing = value - np.sum(rows * starts, axis=-1)
    starts = starts + rows * missing[..., None]
    each = starts.shape[1]
    solutions = least_squares.solve(
      self.surface.model,
      self.surface.log_loss,
      starts.reshape(-1, starts.shape[-1]),
      self.scale,
      within=np.repeat(self.within[at], each, axis=0),
      steps=80,
      tolerance=1e-6,
    )
    best = solutions.cost.reshape(-1, each).argmin(axis=1)
    solutions = solutions.select(best + each * np.arange(len(at)))
    self.least = min(self.least, float(solutions.cost.min()))
    rise = np.sqrt((solutions.cost - self.least) / self.allowed)
    near, far = at[rise <= 1], at[rise > 1]
    self.inner[near], self.outer[far] = distance[rise <= 1], distance[rise > 1]
    self.inner_rise[near], self.outer_rise[far] = (
      rise[rise <= 1],
      rise[rise > 1],
    )
    self.theta[near] = solutions.theta[rise <= 1]
