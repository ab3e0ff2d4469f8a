"""Robust least squares for many small problems at once.

  log L = logaddexp(U s, V t)
  cost  = sum_i w_i scale^2 (sqrt(1 + (r_i / scale)^2) - 1),  r = log L - y

The method is Levenberg and Marquardt's with weights renewed in every step; the
problems of a batch step together, and one that has converged drops out. A fit
of a scaling law solves thousands of problems of 10 to 100 points: SciPy's
`least_squares` (one problem a call) needs 5 to 10 ms each, this 0.5 to 1 ms.
"""

import dataclasses

import numpy as np
from jaxtyping import Float

# A step changes no parameter by more: the columns have unit variance, so that
# this is a factor of 20 in the loss.
_LONGEST_STEP = 3.0
_EASED, _RAISED = 0.3, 4.0  # damping after a step taken, and after one refused
_LEAST_DAMPING, _MOST_DAMPING = 1e-9, 1e7
_QUIET_STEPS = 3  # steps in a row without gain, after which a problem is done


@dataclasses.dataclass(frozen=True)
class ExponentSum:
  """log L = logaddexp(U s, V t), with theta = (s, t).

  Attributes:
    U, V: columns of the two exponents; without columns in V there is no
      second term.
  """

  U: Float[np.ndarray, "p u"]
  V: Float[np.ndarray, "p v"]

  def terms(
    self, theta: Float[np.ndarray, "*r m"]
  ) -> tuple[Float[np.ndarray, "*r p"], Float[np.ndarray, "*r p"]]:
    """U s and V t."""
    split = self.U.shape[1]
    first = theta[..., :split] @ self.U.T
    if not self.V.shape[1]:
      return first, np.full_like(first, -np.inf)
    return first, theta[..., split:] @ self.V.T

  def predict(
    self, theta: Float[np.ndarray, "*r m"]
  ) -> Float[np.ndarray, "*r p"]:
    """log L."""
    return np.logaddexp(*self.terms(theta))

  def jacobian(
    self, theta: Float[np.ndarray, "*r m"]
  ) -> Float[np.ndarray, "*r p m"]:
    """Derivatives of log L by theta."""
    first, second = self.terms(theta)
    share = np.exp(first - np.logaddexp(first, second))[..., None]
    return np.concatenate([share * self.U, (1 - share) * self.V], axis=-1)


@dataclasses.dataclass(frozen=True)
class Solutions:
  """The minimum found from each start.

  Attributes:
    theta: parameters.
    cost: robust cost there.
    residuals: log L - y.
  """

  theta: Float[np.ndarray, "r m"]
  cost: Float[np.ndarray, "r"]
  residuals: Float[np.ndarray, "r p"]

  def select(self, index: np.ndarray) -> "Solutions":
    """The solutions at these indices."""
    return Solutions(self.theta[index], self.cost[index], self.residuals[index])

  def best(self, count: int) -> "Solutions":
    """The solutions of least cost, the best one first."""
    return self.select(np.argsort(self.cost, kind="stable")[:count])


def cost(
  residuals: Float[np.ndarray, "*r p"], scale: Float[np.ndarray, "*r"]
) -> Float[np.ndarray, "*r p"]:
  """Robust cost of each point: r^2 / 2 where |r| is far below `scale`."""
  ratio = residuals / np.asarray(scale)[..., None]
  # The equation times (sqrt + 1) / (sqrt + 1): exact for tiny residuals too.
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
  """Minimises the robust cost of every problem, each from its own start.

  Args:
    model: of all problems.
    y: log of the losses.
    start: parameters to start from.
    scale: residual beyond which a point counts as an outlier.
    weights: of the points; by default 1.
    within: columns that span the directions in which theta may move, each
      of unit length; by default all.
    low: least values of theta; not together with `within`.
    steps: most steps of a problem.
    tolerance: relative gain in cost below which a step counts as none.
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
  at = np.arange(count)  # the problems that still move
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
    taken = at[better]
    theta[taken], total[taken] = moved[better], new_total[better]
    residuals[taken] = new_residuals[better]
    at = at[(quiet[at] < _QUIET_STEPS) & (damping[at] < _MOST_DAMPING)]
    if not len(at):
      break
  return Solutions(theta, total, residuals)


def _step(jacobian, residuals, weight, damping, within) -> np.ndarray:
  """The damped Gauss-Newton step of each problem."""
  if within is not None:
    jacobian = jacobian @ within
  weighted = (weight[..., None] * jacobian).swapaxes(-1, -2)
  hessian = weighted @ jacobian
  gradient = weighted @ residuals[..., None]
  diagonal = np.diagonal(hessian, axis1=-2, axis2=-1)
  # A parameter that moves nothing (the floor, far below every loss) is held
  # by the others' damping.
  held = np.maximum(diagonal, 1e-6 * diagonal.max(axis=-1, keepdims=True))
  held = damping[:, None] * (held + 1e-300)
  identity = np.eye(hessian.shape[-1])
  step = -np.linalg.solve(hessian + held[..., None] * identity, gradient)
  step = step[..., 0] if within is None else (within @ step)[..., 0]
  longest = np.abs(step).max(axis=-1, keepdims=True)
  return step * np.minimum(1.0, _LONGEST_STEP / np.maximum(longest, 1e-300))
