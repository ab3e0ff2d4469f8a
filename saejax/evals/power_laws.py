"""Robust least squares for sums of two power laws, on the log of the loss.

  surface   L(n, k) = exp(alpha + beta_k log k + beta_n log n
                          + gamma log n log k) + exp(zeta + eta log k)
  power law L(v)    = exp(a + b log v) + exp(c)

Both are log L = logaddexp(U s, V t), linear in s and in t: one residual, one
analytic Jacobian. The surface is fitted in centred and scaled log n and log
k, where the columns are nearly orthogonal, and converted back.
"""

import dataclasses
import math
from typing import Any

import numpy as np
import scipy.optimize
from jaxtyping import Float

PARAMETERS = ("alpha", "beta_k", "beta_n", "gamma", "zeta", "eta")

# Residuals below this are never outliers: one per cent of the loss.
SOFT_SCALE = 0.01
# The irreducible term stays above exp(-12) of the smallest loss, at mean k.
_FLOOR = 12.0


def log_surface(
  parameters: Float[np.ndarray, "6"], n, k
) -> Float[np.ndarray, "*b"]:
  """log L(n, k) of the module's equation, n and k broadcast."""
  alpha, beta_k, beta_n, gamma, zeta, eta = parameters
  x = np.log(np.asarray(n, np.float64))
  y = np.log(np.asarray(k, np.float64))
  first = alpha + beta_k * y + beta_n * x + gamma * x * y
  return np.logaddexp(first, zeta + eta * y)


def exp(log_loss: Float[np.ndarray, "*b"]) -> Float[np.ndarray, "*b"]:
  """exp without overflow, for surfaces evaluated far from their points."""
  return np.exp(np.clip(log_loss, -700.0, 700.0))


class Surface:
  """Fits of the surface to losses measured at fixed n and k.

  Args:
    n, k: [p] sizes.
    log_loss: [p] log of the losses.
  """

  def __init__(
    self,
    n: Float[np.ndarray, "p"],
    k: Float[np.ndarray, "p"],
    log_loss: Float[np.ndarray, "p"],
  ):
    self.log_loss = log_loss
    self.frame = _Frame.of(n, k)
    x, y = self.frame.columns(n, k)
    one = np.ones_like(x)
    self.problem = _Problem(
      np.stack([one, y, x, x * y], axis=1),
      np.stack([one, y], axis=1),
      float(log_loss.min()),
    )

  def fit(self, seed: int) -> tuple[Float[np.ndarray, "6"], float]:
    """The best of several starts.

    Returns:
      The parameters, and the residual beyond which a point counts as an
      outlier: twice the robust standard deviation of a first fit's
      residuals, at least 1 %.
    """
    starts = self._starts(np.random.default_rng(seed))
    found = [
      self.problem.solve(self.log_loss, start, 0.1, max_nfev=100)
      for start in starts
    ]
    found.sort(key=lambda f: f.cost)
    spread = 1.4826 * np.median(np.abs(found[0].fun))
    scale = max(2 * float(spread), SOFT_SCALE)
    refined = [
      self.problem.solve(self.log_loss, f.x, scale, max_nfev=1000)
      for f in found[:2]
    ]
    best = min(refined, key=lambda f: f.cost)
    return self.frame.raw(best.x), scale

  def refit(
    self,
    start: Float[np.ndarray, "6"],
    scale: float,
    *,
    log_loss: Float[np.ndarray, "p"] | None = None,
    counts: Float[np.ndarray, "p"] | None = None,
  ) -> Float[np.ndarray, "6"]:
    """Parameters for other losses or other counts of the same points."""
    found = self.problem.solve(
      self.log_loss if log_loss is None else log_loss,
      self.frame.framed(start),
      scale,
      1.0 if counts is None else np.sqrt(counts),
      max_nfev=60,
      tolerance=1e-7,
    )
    return self.frame.raw(found.x)

  def _starts(self, rng: np.random.Generator) -> list[np.ndarray]:
    """The floor at several shares of the losses, flat or sloping with them."""
    U, V, y = self.problem.U, self.problem.V, self.log_loss
    rise = np.linalg.lstsq(V, y, rcond=None)[0][1]
    starts = []
    for share in (0.02, 0.3, 0.6, 0.9):
      for slope in (0.0, 0.5 * rise):
        floor = slope * V[:, 1]
        floor = floor + (y - floor).min() + math.log(share)
        rest = np.log(np.exp(y) - np.exp(floor))
        first = np.linalg.lstsq(U, rest, rcond=None)[0]
        second = np.linalg.lstsq(V, floor, rcond=None)[0]
        start = np.concatenate([first, second])
        starts.append(start + 0.01 * rng.standard_normal(len(start)))
    return starts


def power_law(
  log_v: Float[np.ndarray, "p"],
  log_loss: Float[np.ndarray, "p"],
  *,
  irreducible: bool,
) -> tuple[float, float, float | None]:
  """(a, b, c) of log L = log(exp(a + b log v) + exp(c)); c None without it."""
  x = log_v - log_v.mean()
  U = np.stack([np.ones_like(x), x], axis=1)
  floor = float(log_loss.min())
  found = []
  for share in (0.02, 0.5, 0.9) if irreducible else (0.0,):
    rest = np.log(np.exp(log_loss) - share * math.exp(floor))
    start = np.linalg.lstsq(U, rest, rcond=None)[0]
    V = np.zeros((len(x), 0))
    if irreducible:
      start = np.append(start, floor + math.log(share))
      V = np.ones((len(x), 1))
    found.append(_Problem(U, V, floor).solve(log_loss, start, SOFT_SCALE))
  best = min(found, key=lambda f: f.cost).x
  a, b = float(best[0] - best[1] * log_v.mean()), float(best[1])
  return a, b, float(best[2]) if irreducible else None


class _Problem:
  """log L = logaddexp(U s, V t): residual, Jacobian and bounded solution.

  U [p, u] and V [p, v] are the columns of the two exponents; without columns
  in V there is no second term.
  """

  def __init__(self, U: np.ndarray, V: np.ndarray, floor: float):
    self.U, self.V = U, V
    parameters = U.shape[1] + V.shape[1]
    self.low = np.full(parameters, -50.0)
    self.low[U.shape[1] :][:1] = floor - _FLOOR
    self.high = np.full(parameters, 50.0)

  def solve(
    self,
    y,
    start,
    soft_scale,
    weight: Any = 1.0,
    *,
    max_nfev=200,
    tolerance=1e-10,
  ):
    """Robust least squares from `start`; weights multiply residuals."""
    residual, jacobian = self.functions(y, np.broadcast_to(weight, y.shape))
    return scipy.optimize.least_squares(
      residual,
      np.clip(start, self.low + 1e-6, self.high - 1e-6),
      jac=jacobian,  # pyright: ignore[reportArgumentType]
      bounds=(self.low, self.high),
      loss="soft_l1",
      f_scale=soft_scale,
      max_nfev=max_nfev,
      xtol=tolerance,
      ftol=tolerance,
      gtol=tolerance,
    )

  def functions(self, y, weight):
    """The weighted residual and its Jacobian, as functions of (s, t)."""
    U, V, split = self.U, self.V, self.U.shape[1]

    def terms(theta):
      second = V @ theta[split:] if V.shape[1] else np.full(len(y), -np.inf)
      return U @ theta[:split], second

    def residual(theta):
      return weight * (np.logaddexp(*terms(theta)) - y)

    def jacobian(theta):
      first, second = terms(theta)
      share = weight * np.exp(first - np.logaddexp(first, second))
      columns = [share[:, None] * U, (weight - share)[:, None] * V]
      return np.concatenate(columns, axis=1)

    return residual, jacobian


@dataclasses.dataclass(frozen=True)
class _Frame:
  """Centred and scaled log n (x) and log k (y), with the way back."""

  x0: float
  sx: float
  y0: float
  sy: float

  @classmethod
  def of(cls, n: np.ndarray, k: np.ndarray) -> "_Frame":
    x, y = np.log(n), np.log(k)
    return cls(
      float(x.mean()),
      float(x.std()) or 1.0,
      float(y.mean()),
      float(y.std()) or 1.0,
    )

  def columns(self, n, k) -> tuple[np.ndarray, np.ndarray]:
    return (np.log(n) - self.x0) / self.sx, (np.log(k) - self.y0) / self.sy

  def raw(self, theta: np.ndarray) -> np.ndarray:
    """Parameters of the module's equation from those in this frame."""
    p0, p1, p2, p3, q0, q1 = theta
    gamma = p3 / (self.sx * self.sy)
    beta_k = p1 / self.sy - gamma * self.x0
    beta_n = p2 / self.sx - gamma * self.y0
    alpha = (
      p0
      - p1 * self.y0 / self.sy
      - p2 * self.x0 / self.sx
      + gamma * self.x0 * self.y0
    )
    eta = q1 / self.sy
    return np.array([alpha, beta_k, beta_n, gamma, q0 - eta * self.y0, eta])

  def framed(self, parameters: np.ndarray) -> np.ndarray:
    """The inverse of `raw`."""
    alpha, beta_k, beta_n, gamma, zeta, eta = parameters
    p3 = gamma * self.sx * self.sy
    p1 = (beta_k + gamma * self.x0) * self.sy
    p2 = (beta_n + gamma * self.y0) * self.sx
    p0 = alpha + beta_k * self.y0 + beta_n * self.x0 + gamma * self.x0 * self.y0
    return np.array([p0, p1, p2, p3, zeta + eta * self.y0, eta * self.sy])
