"""Checks of the rows and labels of probes, and rows in float64."""

from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
import scipy.sparse
from jaxtyping import Bool, Float, Shaped

from saejax.errors import InputError

# Float[np.ndarray, "N d"], or a sparse array of SciPy of that shape, such as
# `features.pooling.Pooled.matrix`.
Rows: TypeAlias = Any
_BLOCK_ENTRIES = 2**24  # of x in float64 at once


def dense(x: Rows) -> Float[np.ndarray, "N d"]:
  """Returns rows as an array in float64.

  Args:
    x: rows, sparse or not.

  Raises:
    InputError: there are no rows or columns, or a value is not finite.
  """
  x = finite(x.toarray() if scipy.sparse.issparse(x) else x, "x")
  if x.ndim != 2 or not x.size:
    rule = "must be rows with columns [N, d]"
    raise InputError("x", f"shape {x.shape}", rule, "give at least one")
  return x


def blocks(
  x: Rows,
) -> Iterator[tuple[slice, Float[np.ndarray, "N c"]]]:
  """Yields columns and their values in float64, some at a time.

  Args:
    x: rows.

  Raises:
    InputError: as `dense`.
  """
  if scipy.sparse.issparse(x):
    x = x.tocsc()
  step = max(1, _BLOCK_ENTRIES // max(1, x.shape[0]))
  for start in range(0, x.shape[1], step):
    columns = slice(start, min(start + step, x.shape[1]))
    yield columns, dense(x[:, columns])


def finite(
  value: Shaped[np.ndarray, "*s"], field: str
) -> Float[np.ndarray, "*s"]:
  """Returns values in float64.

  Args:
    value: numbers.
    field: name of the argument in errors.

  Raises:
    InputError: one is not finite.
  """
  value = np.asarray(value, np.float64)
  bad = ~np.isfinite(value)
  if bad.any():
    rule = f"must be finite ({int(bad.sum())} values are not)"
    raise InputError(field, value[bad][0], rule, "leave out these rows")
  return value


def columns(y: Shaped[np.ndarray, "N *C"], x: Rows) -> np.ndarray:
  """Returns labels or targets as columns [N, C].

  Args:
    y: one or several per row.
    x: the rows.

  Raises:
    InputError: there are more or fewer than rows.
  """
  if y.ndim not in (1, 2) or len(y) != x.shape[0]:
    rule = f"must be [N] or [N, C] with the N={x.shape[0]} rows of x"
    raise InputError("y", f"shape {y.shape}", rule, "give one per row")
  return y.reshape(len(y), -1)


def two_classes(y: Bool[np.ndarray, "N C"]) -> None:
  """Refuses a column of one class.

  Args:
    y: labels.

  Raises:
    InputError: a column is all positive or all negative.
  """
  one = y.all(axis=0) | ~y.any(axis=0)
  if one.any():
    column = int(one.argmax())
    raise InputError(
      "y",
      f"column {column}, all {bool(y[:1, column].any())}",
      "must have positive and negative rows",
      "add rows of the other class, or leave the column out",
    )


def not_negative(**penalties: float) -> None:
  """Refuses negative penalties.

  Args:
    **penalties: values by name.

  Raises:
    InputError: one is negative or not finite.
  """
  for name, value in penalties.items():
    if not 0 <= value < np.inf:
      rule = "must be finite and at least 0"
      raise InputError(name, value, rule, "use 0 for no penalty")
