"""Minima of penalised losses of linear models, to float64 accuracy.

With rows x_i, targets y_i, weights v_i and s_i = w x_i + b, b without penalty,

  sum_i v_i loss(s_i, y_i) + l2/2 |w|^2 + l1 |w|_1

is minimised by Newton steps with a line search. Without l1 a step solves a linear
system; with it, coordinate descent on the quadratic model, finished by solving for
the weights that are not 0 with the signs found. With l1 only the columns that
break the optimality condition |slope_j| <= l1 are looked at, so that the cost is
that of the weights that are not 0. Of equal columns one is given weight.

References:
  Friedman et al., Regularization Paths for Generalized Linear Models via
  Coordinate Descent, 2010; Lee et al., Proximal Newton-type Methods, 2014.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.linalg
import scipy.special
from jaxtyping import Float, Int

_STEPS, _ROUNDS, _SWEEPS = 200, 1000, 10_000
_POLISH_SWEEPS = 8  # sweeps between attempts to solve for the signs found
_GAIN = 1e-13  # relative fall of the objective below which a step is the last
_SLACK = 1e-10  # relative excess of a slope over l1 that counts as none
_ADDED = 16  # columns that are added at once, at least
_LEAST_CURVATURE = 1e-10

Terms = tuple[np.ndarray, np.ndarray, np.ndarray]  # value, slope, curvature
Loss = Callable[[np.ndarray, np.ndarray], Terms]


class Solution(NamedTuple):
  """A minimum: weights [d] and bias."""

  weight: Float[np.ndarray, "d"]
  bias: float


def logistic(s: Float[np.ndarray, "N"], y: Float[np.ndarray, "N"]) -> Terms:
  """log(1 + exp(s)) - y s, with its first and second derivative in s.

  Args:
    s: scores.
    y: 0 or 1.
  """
  p = scipy.special.expit(s)
  curvature = np.maximum(p * (1 - p), _LEAST_CURVATURE)
  return np.logaddexp(0, s) - y * s, p - y, curvature


def squared(s: Float[np.ndarray, "N"], y: Float[np.ndarray, "N"]) -> Terms:
  """(s - y)^2 / 2, with its first and second derivative in s.

  Args:
    s: scores.
    y: targets.
  """
  return (s - y) ** 2 / 2, s - y, np.ones_like(s)


def minimise(
  x: Float[np.ndarray, "N d"],
  y: Float[np.ndarray, "N"],
  loss: Loss,
  *,
  l1: float = 0.0,
  l2: float = 0.0,
  weight: Float[np.ndarray, "N"] | None = None,
  start: Solution | None = None,
) -> Solution:
  """Computes the minimum of the module's docstring.

  Args:
    x: rows, float64, centred for speed.
    y: targets.
    loss: `logistic` or `squared`.
    l1, l2: penalties.
    weight: weights of the rows; 1 by default.
    start: where to start; 0 by default.
  """
  v = np.ones(len(x)) if weight is None else weight
  w, b = (np.zeros(x.shape[1]), 0.0) if start is None else start
  w = w.copy()
  used = np.flatnonzero(w) if l1 else np.arange(x.shape[1])
  for _ in range(_ROUNDS):
    A = np.concatenate([x[:, used], np.ones((len(x), 1))], axis=1)
    penalties = np.r_[np.full(len(used), 1.0), 0.0]
    theta = _newton(
      A, y, loss, v, l1 * penalties, l2 * penalties, np.r_[w[used], b]
    )
    w[used], b = theta[:-1], float(theta[-1])
    if not l1:
      break
    _, slope, _ = loss(A @ theta, y)
    more = _violating(np.abs(x.T @ (v * slope)), l1, used)
    if not len(more):
      break
    used = np.union1d(np.flatnonzero(w), more)
  return Solution(w, b)


def _violating(
  slope: Float[np.ndarray, "d"], l1: float, used: Int[np.ndarray, "u"]
) -> Int[np.ndarray, "m"]:
  """Columns to add: the steepest ones, and the first only of equal ones."""
  slope[used] = 0
  over = np.flatnonzero(slope > l1 * (1 + _SLACK))
  _, first = np.unique((slope[over] / l1).round(9), return_index=True)
  over = over[first]
  order = np.argsort(-slope[over], kind="stable")
  return over[order[: max(_ADDED, len(used))]]


def _newton(
  A: Float[np.ndarray, "N c"],
  y: Float[np.ndarray, "N"],
  loss: Loss,
  v: Float[np.ndarray, "N"],
  l1: Float[np.ndarray, "c"],
  l2: Float[np.ndarray, "c"],
  theta: Float[np.ndarray, "c"],
) -> Float[np.ndarray, "c"]:
  """The minimum over all columns, with a penalty of each."""

  def penalty(theta):
    return l2 @ theta**2 / 2 + l1 @ np.abs(theta)

  for _ in range(_STEPS):
    value, slope, curvature = loss(A @ theta, y)
    total = v @ value + penalty(theta)
    gradient = A.T @ (v * slope) + l2 * theta
    H = A.T @ ((v * curvature)[:, None] * A) + np.diag(l2)
    aim = _quadratic(H, H @ theta - gradient, l1, theta)
    step = aim - theta
    fall = gradient @ step + l1 @ (np.abs(aim) - np.abs(theta))
    if -fall <= _GAIN * (1 + abs(total)):
      return aim
    size, moved = 1.0, aim
    while v @ loss(A @ moved, y)[0] + penalty(moved) > (
      total + 1e-4 * size * fall
    ):
      size /= 2
      if size < 1e-12:  # rounding hides what is left to gain
        return theta
      moved = theta + size * step
    theta = moved
  return theta


def _quadratic(
  H: Float[np.ndarray, "c c"],
  r: Float[np.ndarray, "c"],
  l1: Float[np.ndarray, "c"],
  theta: Float[np.ndarray, "c"],
) -> Float[np.ndarray, "c"]:
  """Minimises theta H theta / 2 - r theta + l1 |theta|."""
  if not l1.any():
    return _solve(H, r)
  theta, diagonal = theta.copy(), np.diagonal(H)
  left = r - H @ theta
  usable = np.flatnonzero(diagonal > 0)
  for sweep in range(1, _SWEEPS + 1):
    most = 0.0
    for j in usable:
      here = left[j] + diagonal[j] * theta[j]
      over = abs(here) - l1[j] * (1 + _SLACK)
      new = 0.0
      if over > 0:
        new = (here - np.copysign(l1[j], here)) / diagonal[j]
      if new != theta[j]:
        left -= H[j] * (new - theta[j])
        most = max(most, diagonal[j] * (new - theta[j]) ** 2)
        theta[j] = new
    if most <= 1e-24 * max(abs(r @ theta), 1e-300):
      return theta
    if sweep % _POLISH_SWEEPS == 0:
      exact = _with_signs(H, r, l1, theta)
      if exact is not None:
        return exact
      left = r - H @ theta  # without what rounding has added up
  return theta


def _with_signs(H, r, l1, theta) -> np.ndarray | None:
  """The minimum if its signs are those of theta, or None."""
  on = (theta != 0) | (l1 == 0)
  sign = np.sign(theta[on])
  exact = np.zeros_like(theta)
  exact[on] = _solve(H[np.ix_(on, on)], r[on] - l1[on] * sign)
  slope = np.abs(r - H @ exact)
  agree = np.all((np.sign(exact[on]) == sign) | (l1[on] == 0))
  optimal = np.all(slope[~on] <= l1[~on] * (1 + _SLACK))
  close = np.abs(slope[on] - l1[on]) <= 1e-9 * (l1[on] + np.abs(r[on]))
  return exact if agree and optimal and close.all() else None


def _solve(H: np.ndarray, r: np.ndarray) -> np.ndarray:
  """H^-1 r; of least norm where H is singular."""
  try:
    return scipy.linalg.cho_solve(scipy.linalg.cho_factor(H), r)
  except np.linalg.LinAlgError:
    return np.linalg.lstsq(H, r, rcond=None)[0]
