"""Scores of columns, such as latents, that a probe is then fitted on.

References:
  Karvonen et al., SAEBench, 2025, arXiv:2503.09532 (gap of means).
  Movva et al., Sparse Autoencoders for Hypothesis Generation, 2025,
  arXiv:2502.04382 (correlation, separation score).
"""

import numpy as np
import scipy.sparse
from jaxtyping import Bool, Float, Int, Shaped

from saejax.errors import InputError
from saejax.evals import metrics
from saejax.evals.probing import probe_input
from saejax.evals.probing.probe_input import Rows


def mean_gap(x: Rows, y: Bool[np.ndarray, "N *C"]) -> Float[np.ndarray, "C d"]:
  """Computes the mean of each column over positives minus that over negatives.

  Args:
    x: rows.
    y: whether each row is positive, for one or several problems.

  Raises:
    InputError: as `logistic`.
  """
  y = probe_input.columns(metrics.binary(y, "y"), x)
  probe_input.two_classes(y)
  each = y / y.sum(axis=0) - ~y / (~y).sum(axis=0)
  return _summed(x, each)


def correlation(
  x: Rows, y: Shaped[np.ndarray, "N *C"]
) -> Float[np.ndarray, "C d"]:
  """Computes Pearson's r of each column with y; 0 where one does not vary.

  Args:
    x: rows.
    y: labels or targets, for one or several problems.

  Raises:
    InputError: x and y have different numbers of rows, or a value is not finite.
  """
  y = probe_input.columns(probe_input.finite(y, "y"), x)
  y, of_y = _centred(y)
  found = np.zeros((y.shape[1], x.shape[1]))
  for columns, part in probe_input.blocks(x):
    part, of_part = _centred(part)
    found[:, columns] = y.T @ part * np.outer(of_y, of_part)
  return found


def _centred(x: Float[np.ndarray, "N d"]) -> tuple[np.ndarray, np.ndarray]:
  """Columns less their mean, and 1 / norm of each, 0 where it does not vary."""
  centred = x - x.mean(axis=0)
  size = np.linalg.norm(centred, axis=0)
  # What rounding leaves of a constant is not variation.
  varies = size > 1e-12 * np.linalg.norm(x, axis=0)
  return centred, np.where(varies, 1 / np.where(varies, size, 1), 0)


def separation(
  x: Rows,
  y: Shaped[np.ndarray, "N *C"],
  *,
  largest: int = 100,
  compat: str | None = None,
) -> Float[np.ndarray, "C d"]:
  """Computes E[y | the `largest` rows of a column] - E[y | it is 0].

  Only rows with x > 0 are among the largest ones, earlier rows first where equal;
  0 for a column that is never above 0, or never 0.

  Args:
    x: rows, such as latents.
    y: labels or targets, for one or several problems.
    largest: number of rows.
    compat: "hypothesaes" for its own score, where rows with x = 0 fill up the
      largest ones of a rare column.

  Raises:
    InputError: x and y have different numbers of rows, a value is not finite, or
      compat is unknown.
  """
  if compat not in (None, "hypothesaes"):
    rule = "must be hypothesaes"
    raise InputError("compat", compat, rule, "leave it out")
  y = probe_input.columns(probe_input.finite(y, "y"), x)
  found = np.zeros((y.shape[1], x.shape[1]))
  for columns, part in probe_input.blocks(x):
    order = np.argsort(-part, axis=0, kind="stable")[:largest]
    high = np.take_along_axis(part, order, axis=0)
    use = (high >= 0) if compat else (high > 0)
    off = part == 0
    some = use.any(axis=0) & off.any(axis=0)
    top = np.einsum("kdc,kd->cd", y[order], use.astype(float))
    top = top / np.maximum(use.sum(axis=0), 1)
    rest = y.T @ off / np.maximum(off.sum(axis=0), 1)
    found[:, columns] = np.where(some, top - rest, 0)
  return found


def top(scores: Float[np.ndarray, "C d"], k: int) -> Int[np.ndarray, "C k"]:
  """Returns the k columns with the largest |score|, the largest first.

  Args:
    scores: scores of columns; of equal ones the first column is taken.
    k: number of columns.

  Raises:
    InputError: k is not in [1, d].
  """
  scores = np.atleast_2d(scores)
  if not 1 <= k <= scores.shape[1]:
    rule = f"must be in [1, {scores.shape[1]}], the number of columns"
    raise InputError("k", k, rule, "lower it, or give more columns")
  return np.argsort(-np.abs(scores), axis=1, kind="stable")[:, :k]


def _summed(x: Rows, each: Float[np.ndarray, "N C"]) -> np.ndarray:
  """each^T x, [C, d]."""
  if scipy.sparse.issparse(x):
    probe_input.finite(x.data, "x")
    return np.asarray((x.T @ each).T)
  found = np.zeros((each.shape[1], x.shape[1]))
  for columns, part in probe_input.blocks(x):
    found[:, columns] = each.T @ part
  return found
