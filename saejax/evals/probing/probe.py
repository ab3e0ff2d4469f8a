"""Linear probes: fits, selection of features, and splits by document.

With s = w x + b, penalties as in scikit-learn (C = 1 / l2), b without penalty:

  logistic   sum_i log(1 + exp(-y_i s_i)) + l2/2 |w|^2 + l1 |w|_1,  y_i = +-1
  ridge      sum_i (y_i - s_i)^2 + l2 |w|^2
  lasso      1/(2 N) sum_i (y_i - s_i)^2 + alpha |w|_1

All are minimised to float64 accuracy, see `penalised`; every column of y is a
problem of its own (one versus rest). Columns of x are used as they are: a caller
standardises them where the penalty should not depend on their scale.

Splits and folds are by document, as rows of one document are alike.

References:
  Movva et al., Sparse Autoencoders for Hypothesis Generation, 2025,
  arXiv:2502.04382 (bisection of alpha, separation score).
"""

import dataclasses
from typing import Literal

import numpy as np
import scipy.linalg
from jaxtyping import Bool, Float, Shaped

from saejax.errors import InputError
from saejax.evals import metrics
from saejax.evals.probing import (
  document_splits,
  penalised,
  probe_input,
  selection,
)
from saejax.evals.probing.probe_input import Rows

ALPHAS, BISECTIONS = (1e-6, 1e4), 20

# Splits and selection have files of their own, and names here too.
folds = document_splits.folds
split = document_splits.split
mean_gap = selection.mean_gap
correlation = selection.correlation
separation = selection.separation
top = selection.top


@dataclasses.dataclass(frozen=True, eq=False)
class Linear:
  """C linear functions of rows.

  Attributes:
    weight: their weights.
    bias: their biases.
  """

  weight: Float[np.ndarray, "C d"]
  bias: Float[np.ndarray, "C"]

  def score(self, x: Rows) -> Float[np.ndarray, "N C"]:
    """Computes w x + b; a logistic probe predicts positive where it is above 0.

    Args:
      x: rows, of the columns that it was fitted on.
    """
    return x @ self.weight.T + self.bias


def logistic(
  x: Rows,
  y: Bool[np.ndarray, "N *C"],
  *,
  l2: float = 1.0,
  l1: float = 0.0,
  balanced: bool = False,
) -> Linear:
  """Fits logistic regressions; see the module.

  Args:
    x: rows.
    y: whether each row is positive, for one or several problems.
    l2, l1: penalties; scikit-learn's C is 1 / l2, and for its L1 penalty 1 / l1
      with l2=0.
    balanced: whether both classes have the weight of half of the rows.

  Raises:
    InputError: x and y have different numbers of rows, a value is not finite, a
      label is not 0 or 1, a problem has one class, or a penalty is negative.
  """
  x, y = probe_input.dense(x), probe_input.columns(metrics.binary(y, "y"), x)
  probe_input.not_negative(l1=l1, l2=l2)
  probe_input.two_classes(y)
  centre = x.mean(axis=0)
  x = x - centre
  # With L2 alone w is in the span of the rows: fewer unknowns if d > N.
  basis = None
  if not l1 and x.shape[1] > x.shape[0]:
    basis, triangle = np.linalg.qr(x.T)
    x = triangle.T
  fits = []
  for positive in y.T:
    weight = np.ones(len(x))
    if balanced:
      share = np.where(positive, positive.mean(), 1 - positive.mean())
      weight = 0.5 / share
    fits.append(
      penalised.minimise(
        x,
        positive.astype(np.float64),
        penalised.logistic,
        l1=l1,
        l2=l2,
        weight=weight,
      )
    )
  return _uncentred(fits, centre, basis)


def ridge(x: Rows, y: Float[np.ndarray, "N *C"], *, l2: float) -> Linear:
  """Fits ridge regressions in closed form; see the module.

  Args:
    x: rows.
    y: targets, for one or several problems.
    l2: penalty; 0 for least squares, of least norm where there are many.

  Raises:
    InputError: x and y have different numbers of rows, a value is not finite, or
      the penalty is negative.
  """
  x, y = (
    probe_input.dense(x),
    probe_input.columns(probe_input.finite(y, "y"), x),
  )
  probe_input.not_negative(l2=l2)
  centre, mean = x.mean(axis=0), y.mean(axis=0)
  x, y = x - centre, y - mean
  if l2 == 0:
    w = np.linalg.lstsq(x, y, rcond=None)[0]
  elif x.shape[1] <= x.shape[0]:
    H = x.T @ x + l2 * np.eye(x.shape[1])
    w = scipy.linalg.solve(H, x.T @ y, assume_a="pos")
  else:
    H = x @ x.T + l2 * np.eye(x.shape[0])
    w = x.T @ scipy.linalg.solve(H, y, assume_a="pos")
  return Linear(w.T, mean - centre @ w)


def lasso(x: Rows, y: Float[np.ndarray, "N *C"], *, alpha: float) -> Linear:
  """Fits lasso regressions; see the module.

  Args:
    x: rows.
    y: targets, for one or several problems.
    alpha: penalty, above 0.

  Raises:
    InputError: x and y have different numbers of rows, a value is not finite, or
      alpha is not above 0.
  """
  x, y = (
    probe_input.dense(x),
    probe_input.columns(probe_input.finite(y, "y"), x),
  )
  if not alpha > 0:
    rule = "must be above 0"
    raise InputError("alpha", alpha, rule, "use ridge with l2=0 for none")
  centre = x.mean(axis=0)
  fits = [
    penalised.minimise(x - centre, one, penalised.squared, l1=alpha * len(x))
    for one in y.T
  ]
  return _uncentred(fits, centre)


def lasso_to_count(
  x: Rows,
  y: Shaped[np.ndarray, "N *C"],
  *,
  count: int,
  loss: Literal["squared", "logistic"] = "squared",
) -> Linear:
  """Fits regressions with an L1 penalty that leaves `count` weights.

  alpha is bisected in log space on [1e-6, 1e4], at most 20 times. No alpha may
  give exactly `count`; the fit is then the one whose number of weights is nearest
  to it, the smaller one of two. Columns should be standardised.

  Args:
    x: rows.
    y: targets, for one or several problems.
    count: number of weights that are not 0.
    loss: "squared" for `lasso` with alpha; "logistic" for `logistic` with
      l1=alpha and l2=0, of labels.

  Raises:
    InputError: as `lasso` and `logistic`, the loss is unknown, or count is not
      in [1, d].
  """
  x = probe_input.dense(x)
  if loss not in ("squared", "logistic"):
    rule = "must be squared or logistic"
    raise InputError("loss", loss, rule, "use logistic for labels")
  if not 1 <= count <= x.shape[1]:
    rule = f"must be in [1, {x.shape[1]}], the number of columns"
    raise InputError("count", count, rule, "ask for fewer weights")
  if loss == "logistic":
    y = probe_input.columns(metrics.binary(y, "y"), x)
    probe_input.two_classes(y)
    function, unit = penalised.logistic, 1
  else:
    y = probe_input.columns(probe_input.finite(y, "y"), x)
    function, unit = penalised.squared, len(x)
  centre = x.mean(axis=0)
  return _uncentred(
    [
      _bisected(x - centre, one.astype(np.float64), function, unit, count)
      for one in y.T
    ],
    centre,
  )


def _bisected(x, y, loss, unit: int, count: int) -> penalised.Solution:
  low, high = np.log(ALPHAS)
  found, best, apart = None, None, (np.inf, np.inf)
  for _ in range(BISECTIONS):
    middle = (low + high) / 2
    l1 = float(np.exp(middle)) * unit
    found = penalised.minimise(x, y, loss, l1=l1, start=found)
    own = int(np.count_nonzero(found.weight))
    if (abs(own - count), own) < apart:
      best, apart = found, (abs(own - count), own)
    if own == count:
      break
    low, high = (middle, high) if own > count else (low, middle)
  assert best is not None
  return best


def _uncentred(fits, centre, basis: np.ndarray | None = None) -> Linear:
  weight = np.stack([fit.weight for fit in fits])
  weight = weight if basis is None else weight @ basis.T
  return Linear(weight, np.array([fit.bias for fit in fits]) - weight @ centre)
