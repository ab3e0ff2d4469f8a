"""Least squares and logistic regression of several variables, with p-values.

  OLS     y = X w + b + e;   p of w_j from Student's t, N - rank degrees of freedom
  logit   P(y = 1) = 1 / (1 + exp(-X w - b));   p of w_j from the likelihood ratio

The likelihood ratio 2 (log L - log L without j), chi-squared with one degree of
freedom, holds where classes are separated and the usual z = w / se does not: there w
grows without bound, and its se faster. A variable that is constant, or a combination
of those before it, has the coefficient 0 and the p-value 1.
"""

import dataclasses

import numpy as np
import scipy.special
import scipy.stats
from jaxtyping import Bool, Float

from saejax.errors import InputError

_RIDGE = (
  1e-6  # of the logit, so that separated classes have finite coefficients
)
_STEPS = 50


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Fit:
  """A linear model of y, and how sure its coefficients are.

  Attributes:
    coefficient: w [h].
    p: two-sided p-value of each [h].
    intercept: b.
    logistic: whether it is a logit.
  """

  coefficient: Float[np.ndarray, "h"]
  p: Float[np.ndarray, "h"]
  intercept: float
  logistic: bool

  def predict(self, X: Float[np.ndarray, "N h"]) -> Float[np.ndarray, "N"]:
    """X w + b.

    Args:
      X: the variables.
    """
    return np.asarray(X, np.float64) @ self.coefficient + self.intercept


def fit(X: Float[np.ndarray, "N h"], y: np.ndarray) -> Fit:
  """Fits a logit to y of True and False, and OLS to others.

  Args:
    X: the variables.
    y: the target [N].

  Raises:
    InputError: shapes do not agree, values are not finite, there are too few rows,
      or y does not vary.
  """
  X, y = np.asarray(X, np.float64), np.asarray(y)
  if X.ndim != 2 or y.shape != X.shape[:1]:
    rule = f"must be one value for each row of X, {X.shape}"
    raise InputError("y", y.shape, rule, "give rows of one set of texts")
  if not np.isfinite(X).all() or not np.isfinite(y.astype(float)).all():
    rule = "must be finite"
    raise InputError("X, y", "NaN or infinite", rule, "leave these rows out")
  if not len(y) or np.all(y == y[0]):
    rule = "must take two values"
    raise InputError("y", f"{len(y)} rows", rule, "give more rows")
  used = independent(X)
  if len(y) < used.sum() + 3:
    rule = f"must be at least {used.sum() + 3} for {used.sum()} variables"
    raise InputError("X", len(y), rule, "give more rows, or fewer variables")
  logistic = y.dtype == bool
  # Centred and scaled, which no p-value depends on.
  mean, scale = X[:, used].mean(axis=0), X[:, used].std(axis=0)
  A = np.column_stack([np.ones(len(y)), (X[:, used] - mean) / scale])
  w, p = (_logit if logistic else _ols)(A, y.astype(np.float64))
  coefficient, every = np.zeros(X.shape[1]), np.ones(X.shape[1])
  coefficient[used], every[used] = w[1:] / scale, p
  return Fit(
    coefficient=coefficient,
    p=every,
    intercept=float(w[0] - mean @ coefficient[used]),
    logistic=logistic,
  )


def independent(X: Float[np.ndarray, "N h"]) -> Bool[np.ndarray, "h"]:
  """Variables that are no combination of a constant and those before them.

  Args:
    X: the variables.
  """
  basis = [np.full(len(X), len(X) ** -0.5)]
  used = np.zeros(X.shape[1], bool)
  for j, column in enumerate(X.T):
    rest = column.astype(np.float64)
    for _ in range(2):  # twice, for rounding
      for b in basis:
        rest = rest - (b @ rest) * b
    size = np.linalg.norm(rest)
    if size > 1e-8 * max(np.linalg.norm(column), 1e-300):
      used[j] = True
      basis.append(rest / size)
  return used


def _ols(A: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  w = np.linalg.lstsq(A, y, rcond=None)[0]
  free = len(y) - A.shape[1]
  variance = float(np.sum((y - A @ w) ** 2)) / free
  se = np.sqrt(np.maximum(variance * np.diag(np.linalg.inv(A.T @ A)), 1e-300))
  return w, 2 * scipy.stats.t.sf(np.abs(w / se), free)[1:]


def _logit(A: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  w, best = _newton(A, y)
  p = []
  for j in range(1, A.shape[1]):
    _, without = _newton(np.delete(A, j, axis=1), y)
    p.append(scipy.stats.chi2.sf(max(0.0, 2 * (best - without)), 1))
  return w, np.array(p)


def _newton(A: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, float]:
  """Coefficients and log-likelihood, by Newton's method with step halving."""
  penalty = np.full(A.shape[1], _RIDGE)
  penalty[0] = 0

  def loss(w):
    a = A @ w
    value = np.sum(np.logaddexp(0, a) - y * a)
    return value + 0.5 * float(penalty @ w**2), value

  w = np.zeros(A.shape[1])
  share = np.clip(y.mean(), 1e-6, 1 - 1e-6)
  w[0] = scipy.special.logit(share)
  now = loss(w)
  for _ in range(_STEPS):
    q = scipy.special.expit(A @ w)
    gradient = A.T @ (q - y) + penalty * w
    curve = A.T @ (A * (q * (1 - q))[:, None]) + np.diag(penalty + 1e-12)
    step = np.linalg.solve(curve, gradient)
    size = 1.0
    while size > 1e-6 and loss(w - size * step)[0] > now[0]:
      size /= 2
    new = loss(w - size * step)
    if now[0] - new[0] <= 1e-10 * (1 + abs(now[0])):
      break
    w, now = w - size * step, new
  return w, -float(now[1])
