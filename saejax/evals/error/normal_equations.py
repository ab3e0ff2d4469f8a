"""Linear least squares over rows that are read once.

  W, b = argmin sum_r |y_r - x_r W - b|^2

from sums over rows alone, in float64: memory has no axis for rows, and sums of parts
merge to those of the whole. With X the rows (less their mean, where there is an
intercept) the solution is (X^T X)^+ X^T Y, of columns scaled to equal size, since
the dimensions of activations differ in size by orders of magnitude. Directions
whose eigenvalue is below `rcond`^2 of the largest, or below the accuracy of the
sums, about 1e-13, are left out: they would need rows, not sums.
"""

import dataclasses

import numpy as np
from jaxtyping import Float

RCOND = 1e-9  # of the singular values of X


@dataclasses.dataclass(frozen=True, eq=False)
class Linear:
  """The map x -> x W + b.

  Attributes:
    weight: W.
    bias: b, zeros without an intercept.
  """

  weight: Float[np.ndarray, "p q"]
  bias: Float[np.ndarray, "q"]

  def __call__(self, x: Float[np.ndarray, "B p"]) -> Float[np.ndarray, "B q"]:
    """Computes x W + b, in float64.

    Args:
      x: rows.
    """
    return np.asarray(x, np.float64) @ self.weight + self.bias


class NormalEquations:
  """Sums over rows from which a linear map is fitted.

  Args:
    p: width of x.
    q: width of y.
    intercept: whether the map has one.

  >>> x = np.array([[0.0], [1.0], [2.0]])
  >>> equations = NormalEquations(1, 1)
  >>> equations.add(x, 3 * x + 1)
  >>> equations.solve()(np.array([[10.0]])).round(6).tolist()
  [[31.0]]
  """

  def __init__(self, p: int, q: int, *, intercept: bool = True):
    self.intercept = intercept
    self.rows = 0
    self._x, self._y = np.zeros(p), np.zeros(q)
    self._xx, self._xy = np.zeros((p, p)), np.zeros((p, q))

  def add(
    self, x: Float[np.ndarray, "B p"], y: Float[np.ndarray, "B q"]
  ) -> None:
    """Adds rows.

    Args:
      x, y: the rows.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    self.rows += len(x)
    self._x += x.sum(axis=0)
    self._y += y.sum(axis=0)
    self._xx += x.T @ x
    self._xy += x.T @ y

  def solve(self, *, rcond: float = RCOND) -> Linear:
    """Returns the map of least squares; zeros where nothing is known.

    Args:
      rcond: singular values of X below this share of the largest count as 0.
    """
    rows = max(self.rows, 1)
    xx, xy = self._xx, self._xy
    x, y = self._x / rows, self._y / rows
    if self.intercept:
      xx, xy = xx - rows * np.outer(x, x), xy - rows * np.outer(x, y)
    size = np.sqrt(np.maximum(np.diagonal(xx), 0))
    # What is left of a constant column is rounding.
    known = size > 1e-7 * np.sqrt(np.diagonal(self._xx))
    scale = np.where(known, 1 / np.where(known, size, 1), 0)
    values, V = np.linalg.eigh(scale[:, None] * xx * scale)
    limit = max(rcond**2, len(values) * np.finfo(np.float64).eps)
    kept = values > limit * values[-1]
    inverse = np.where(kept, 1 / np.where(kept, values, 1), 0)
    W = scale[:, None] * ((V * inverse) @ (V.T @ (scale[:, None] * xy)))
    return Linear(W, y - x @ W if self.intercept else np.zeros_like(y))
