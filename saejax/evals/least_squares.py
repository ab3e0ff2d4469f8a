"""Robust least squares for a batch of small problems.

  log L = logaddexp(U s, V t)
  cost  = sum_i w_i scale^2 (sqrt(1 + (r_i / scale)^2) - 1),  r = log L - y

The algorithm is Levenberg-Marquardt with weights updated in every step. All
problems of a batch step together until each has converged. A fit of a scaling
law solves thousands of problems of 10 to 100 points; SciPy's `least_squares`
(one problem per call) takes 5 to 10 ms per problem, this 0.5 to 1 ms.
"""

import dataclasses

import numpy as np
from jaxtyping import Float

# Largest change of a parameter in a step. Columns have unit variance, so that
# this is a factor of 20 in the loss.
_LONGEST_STEP = 3.0
_EASED, _RAISED = 0.3, 4.0  # factors of damping after accepted, rejected steps
_LEAST_DAMPING, _MOST_DAMPING = 1e-9, 1e7
_QUIET_STEPS = 3  # consecutive steps without gain at which a problem converged


@dataclasses.dataclass(frozen=True)
class ExponentSum:
  """The model log L = logaddexp(U s, V t), with theta = (s, t).

  Attributes:
    U: columns of the first exponent.
    V: columns of the second exponent; there is no second term if V has no
      columns.
  """

  U: Float[np.ndarray, "p u"]
  V: Float[np.ndarray, "p v"]

  def terms(
    self, theta: Float[np.ndarray, "*r m"]
  ) -> tuple[Float[np.ndarray, "*r p"], Float[np.ndarray, "*r p"]]:
    """Computes U s and V t.

    Args:
      theta: parameters.
    """
    split = self.U.shape[1]
    first = theta[..., :split] @ self.U.T
    if not self.V.shape[1]:
      return first, np.full_like(first, -np.inf)
    return first, theta[..., split:] @ self.V.T

  def predict(
    self, theta: Float[np.ndarray, "*r m"]
  ) -> Float[np.ndarray, "*r p"]:
    """Computes log L.

    Args:
      theta: parameters.
    """
    return np.logaddexp(*self.terms(theta))

  def jacobian(
    self, theta: Float[np.ndarray, "*r m"]
  ) -> Float[np.ndarray, "*r p m"]:
    """Computes the derivatives of log L with respect to theta.

    Args:
      theta: parameters.
    """
    first, second = self.terms(theta)
    share = np.exp(first - np.logaddexp(first, second))[..., None]
    return np.concatenate([share * self.U, (1 - share) * self.V], axis=-1)


@dataclasses.dataclass(frozen=True)
class Solutions:
  """Minima, one per start.

  Attributes:
    theta: parameters at the minimum.
    cost: robust cost.
    residuals: log L - y.
  """

  theta: Float[np.ndarray, "r m"]
  cost: Float[np.ndarray, "r"]
  residuals: Float[np.ndarray, "r p"]

  def select(self, index: np.ndarray) -> "Solutions":
    """Returns some of the solutions.

    Args:
      index: their indices.
    """
    return Solutions(self.theta[index], self.cost[index], self.residuals[index])

  def best(self, count: int) -> "Solutions":
    """Returns the solutions of lowest cost, the best one first.

    Args:
      count: number of solutions.
    """
    return self.select(np.argsort(self.cost, kind="stable")[:count])


def cost(
  residuals: Float[np.ndarray, "*r p"], scale: Float[np.ndarray, "*r"]
) -> Float[np.ndarray, "*r p"]:
  """Computes the robust cost per point.

  It is r^2 / 2 where |r| is far below the scale, and |r| scale far above it.

  Args:
    residuals: residuals r.
    scale: residual beyond which a point counts as an outlier.
  """
  ratio = residuals / np.asarray(scale)[..., None]
  # The equation times (sqrt + 1) / (sqrt + 1), accurate for tiny residuals too.
  return residuals**2 / (1 + np.sqrt(1 + ratio**2))


def solve(
  model: ExponentSum,
  y: Float[np.ndarray, "*#r p"],
  start: Float[np.ndarray, "r m"],
  scale: float | Float[np.ndarray, "r"],
  *,
  weights: Float[np.ndarray, "r p"] | None = None,
  within: Float[np.ndarray, "r m q"] | None = None,
  low: Float[np.ndarray, "m"] | None = None,
  steps: int = 150,
  tolerance: float = 1e-9,
) -> Solutions:
  """Minimises the robust cost of every problem, from one start each.

  Args:
    model: the model of all problems.
    y: log of the losses.
    start: parameters to start from, per problem.
    scale: residual beyond which a point counts as an outlier.
    weights: weights of the points; 1 by default.
    within: orthonormal columns that span the directions in which theta may
      move; all directions by default.
    low: lower bounds of theta; not together with `within`.
    steps: maximum number of steps.
    tolerance: relative gain in cost below which a step counts as without gain.
  """
  count, points = len(start), y.shape[-1]
  y = np.broadcast_to(y, (count, points))
  scale = np.broadcast_to(np.asarray(scale, np.float64), (count,))
  weight = np.broadcast_to(1.0 if weights is None else weights, y.shape)

  def evaluate(theta, at):
    residuals = model.predict(theta) - y[at]
    return residuals, np.sum(weight[at] * cost(residuals, scale[at]), axis=-1)

  theta = np.array(start, np.float64)
  theta = theta if low is None else np.maximum(theta, low)
  residuals, total = evaluate(theta, np.arange(count))
  damping, quiet = np.full(count, 1e-3), np.zeros(count, int)
  at = np.arange(count)  # problems that have not converged
  for _ in range(steps):
    moved = theta[at] + _step(
      model.jacobian(theta[at]),
      residuals[at],
      weight[at] / np.sqrt(1 + (residuals[at] / scale[at, None]) ** 2),
      damping[at],
      None if within is None else within[at],
    )
    if low is not None:
      moved = np.maximum(moved, low)
    new_residuals, new_total = evaluate(moved, at)
    better = new_total <= total[at]
    gain = total[at] - new_total
    idle = better & (gain < tolerance * total[at] + 1e-18)
    quiet[at] = np.where(idle, quiet[at] + 1, np.where(better, 0, quiet[at]))
    damping[at] *= np.where(better, _EASED, _RAISED)
    damping[at] = np.maximum(damping[at], _LEAST_DAMPING)
    accepted = at[better]
    theta[accepted], total[accepted] = moved[better], new_total[better]
    residuals[accepted] = new_residuals[better]
    at = at[(quiet[at] < _QUIET_STEPS) & (damping[at] < _MOST_DAMPING)]
    if not len(at):
      break
  return Solutions(theta, total, residuals)


def _step(jacobian, residuals, weight, damping, within) -> np.ndarray:
  """Computes the damped Gauss-Newton step of each problem."""
  if within is not None:
    jacobian = jacobian @ within
  weighted = (weight[..., None] * jacobian).swapaxes(-1, -2)
  hessian = weighted @ jacobian
  gradient = weighted @ residuals[..., None]
  diagonal = np.diagonal(hessian, axis1=-2, axis2=-1)
  # A parameter without influence (the floor, far below every loss) gets damping
  # relative to that of the others.
  held = np.maximum(diagonal, 1e-6 * diagonal.max(axis=-1, keepdims=True))
  held = damping[:, None] * (held + 1e-300)
  identity = np.eye(hessian.shape[-1])
  step = -np.linalg.solve(hessian + held[..., None] * identity, gradient)
  step = step[..., 0] if within is None else (within @ step)[..., 0]
  longest = np.abs(step).max(axis=-1, keepdims=True)
  return step * np.minimum(1.0, _LONGEST_STEP / np.maximum(longest, 1e-300))
