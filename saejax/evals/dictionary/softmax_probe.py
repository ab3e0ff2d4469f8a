"""Softmax regression: a linear probe of one of C classes.

With scores s_i = x_i W^T + b,

  sum_i (log sum_c exp s_ic - s_i,label(i)) + l2 / 2 |W|^2,  b without penalty

is minimised by L-BFGS, whose steps cost N d C operations. `probe.logistic` fits each
class against the others; it has Newton steps, which are exact and cost N d^2. The
penalty is that of scikit-learn's LogisticRegression with C = 1 / l2.
"""

import numpy as np
import scipy.optimize
from jaxtyping import Float, Shaped

from saejax.errors import InputError
from saejax.evals.probing.probe import Linear

_TOLERANCE = 1e-5  # of the gradient, per row


def fit(
  x: Float[np.ndarray, "N d"],
  label: Shaped[np.ndarray, "N"],
  *,
  l2: float = 1.0,
  steps: int = 1000,
  tolerance: float = _TOLERANCE,
) -> tuple[Linear, Shaped[np.ndarray, "C"]]:
  """Fits a softmax regression.

  Args:
    x: rows.
    label: class of each row.
    l2: penalty.
    steps: maximum number of L-BFGS steps.
    tolerance: largest entry of the gradient, per row, at which it stops.

  Returns:
    (scores of the classes, the classes in ascending order).

  Raises:
    InputError: labels are not one for each row, or l2 is not positive.
  """
  x = np.asarray(x, np.float64)
  kinds, own = np.unique(np.asarray(label), return_inverse=True)
  if len(own) != len(x) or not len(x):
    rule = f"must have one for each of the {len(x)} rows"
    raise InputError("label", len(own), rule, "give rows, and a label for each")
  if not l2 > 0:
    raise InputError("l2", l2, "must be above 0", "use 1")
  wanted = np.eye(len(kinds))[own]
  shape = len(kinds), x.shape[1]

  def loss(flat):
    W, b = flat[: -len(kinds)].reshape(shape), flat[-len(kinds) :]
    s = x @ W.T + b
    total = np.logaddexp.reduce(s, axis=1)
    slope = np.exp(s - total[:, None]) - wanted
    value = total.sum() - s[np.arange(len(x)), own].sum()
    grad = np.concatenate([(slope.T @ x + l2 * W).ravel(), slope.sum(axis=0)])
    return (value + l2 / 2 * np.sum(W * W)) / len(x), grad / len(x)

  found = scipy.optimize.minimize(
    loss,
    np.zeros(len(kinds) * (shape[1] + 1)),
    jac=True,
    method="L-BFGS-B",
    options={"maxiter": steps, "gtol": tolerance, "ftol": 0.0},
  ).x
  W, b = found[: -len(kinds)].reshape(shape), found[-len(kinds) :]
  return Linear(W, b - b.mean()), kinds
