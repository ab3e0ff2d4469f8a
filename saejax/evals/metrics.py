"""Metrics of scores, predictions and clusterings, in float64.

  AUROC     P(s+ > s-) + P(s+ = s-) / 2 over pairs of a positive and a negative
  FPR95     share of negatives at or above the highest threshold that at least
            95 % of the positives reach
  F1        2 TP / (2 TP + FP + FN)
  balanced accuracy   mean over classes of the share of their rows found
  AMI       (I(a, b) - E[I]) / ((H(a) + H(b)) / 2 - E[I]), the expectation over
            all pairs of partitions with clusters of these sizes
  silhouette   mean of (b_i - a_i) / max(a_i, b_i), with a_i the mean distance of
            row i to the others of its cluster and b_i the smallest mean distance
            to another cluster; 0 for a row that is alone in its cluster

References:
  Vinh et al., Information Theoretic Measures for Clusterings Comparison, JMLR
  2010 (AMI; the arithmetic mean, as in scikit-learn).
  Rousseeuw, Silhouettes, J. Comput. Appl. Math. 20, 1987.
"""

import numpy as np
import scipy.special
import scipy.stats
from jaxtyping import Bool, Float, Int, Shaped
from scipy.spatial import distance

from saejax.errors import InputError

_BLOCK_ENTRIES = 2**22  # distances in memory at once


def auroc(score: Float[np.ndarray, "N"], label: Bool[np.ndarray, "N"]) -> float:
  """Computes the area under the ROC curve; ties count one half.

  Args:
    score: a score per row, higher for positives.
    label: whether each row is positive.

  Raises:
    InputError: the lengths differ, a score is NaN, or there is one class.

  >>> auroc(np.array([0.1, 0.4, 0.4, 0.8]), np.array([False, False, True, True]))
  0.875
  """
  score, label = _scored(score, label)
  positives = int(label.sum())
  ranks = scipy.stats.rankdata(score)[label].sum()
  pairs = positives * (len(label) - positives)
  return float((ranks - positives * (positives + 1) / 2) / pairs)


def fpr95(score: Float[np.ndarray, "N"], label: Bool[np.ndarray, "N"]) -> float:
  """Computes the false positive rate where 95 % of the positives are found.

  Args:
    score: a score per row, higher for positives.
    label: whether each row is positive.

  Raises:
    InputError: as `auroc`.

  >>> fpr95(np.array([1.0, 2.0, 3.0, 4.0]), np.array([False, True, False, True]))
  0.5
  """
  score, label = _scored(score, label)
  found = np.sort(score[label])[::-1]
  needed = -(-95 * len(found) // 100)  # in integers: 0.95 * 20 is above 19
  return float((score[~label] >= found[needed - 1]).mean())


def f1(predicted: Bool[np.ndarray, "N"], label: Bool[np.ndarray, "N"]) -> float:
  """Computes F1 of the positive class; 0 where nothing is predicted.

  Args:
    predicted: whether each row is predicted to be positive.
    label: whether each row is positive.

  Raises:
    InputError: the lengths differ, there are no rows, or values are not 0 and 1.

  >>> round(f1(np.array([1, 1, 0]), np.array([1, 0, 0])), 3)
  0.667
  """
  predicted, label = binary(predicted, "predicted"), binary(label, "label")
  _same(predicted, label, "predicted")
  found = 2 * int((predicted & label).sum())
  wrong = int((predicted != label).sum())
  return found / (found + wrong) if found else 0.0


def balanced_accuracy(
  predicted: Shaped[np.ndarray, "N"], label: Shaped[np.ndarray, "N"]
) -> float:
  """Computes the mean over classes of the share of their rows that is found.

  Args:
    predicted: predicted class of each row.
    label: class of each row, of any number of classes.

  Raises:
    InputError: the lengths differ, or there are no rows.

  >>> balanced_accuracy(np.array([1, 1, 1, 1]), np.array([0, 1, 1, 1]))
  0.5
  """
  predicted, label = np.asarray(predicted), np.asarray(label)
  _same(predicted, label, "predicted")
  _, own = np.unique(label, return_inverse=True)
  found = np.bincount(own, predicted == label)
  return float((found / np.bincount(own)).mean())


def ami(a: Shaped[np.ndarray, "N"], b: Shaped[np.ndarray, "N"]) -> float:
  """Computes the adjusted mutual information of two partitions.

  0 is expected for independent partitions, 1 means equal ones. It is 1 where
  neither divides the rows.

  Args:
    a: cluster of each row.
    b: cluster of each row, in the other partition.

  Raises:
    InputError: the lengths differ, or there are no rows.

  >>> round(ami(np.array([0, 0, 1, 1]), np.array([5, 5, 2, 2])), 9)
  1.0
  """
  a, b = np.asarray(a), np.asarray(b)
  _same(a, b, "a")
  _, a = np.unique(a, return_inverse=True)
  _, b = np.unique(b, return_inverse=True)
  size_a, size_b = np.bincount(a), np.bincount(b)
  if len(size_a) == len(size_b) and len(size_a) in (1, len(a)):
    return 1.0
  key, joint = np.unique(a * len(size_b) + b, return_counts=True)
  expected_joint = size_a[key // len(size_b)] * size_b[key % len(size_b)]
  ratio = np.log(joint) + np.log(len(a)) - np.log(expected_joint)
  information = float((joint / len(a) * ratio).sum())
  expected = _expected_information(size_a, size_b)
  entropy = (_entropy(size_a) + _entropy(size_b)) / 2
  room, tiny = entropy - expected, np.finfo(float).eps
  room = min(room, -tiny) if room < 0 else max(room, tiny)
  return float((information - expected) / room)


def _entropy(size: Int[np.ndarray, "c"]) -> float:
  p = size / size.sum()
  return float(-(p * np.log(p)).sum())


def _expected_information(
  size_a: Int[np.ndarray, "a"], size_b: Int[np.ndarray, "b"]
) -> float:
  """E[I] over partitions with these sizes: joint counts are hypergeometric.

  Pairs of clusters with equal sizes have equal terms, which are computed once.
  """
  rows = int(size_a.sum())
  log_factorial = scipy.special.gammaln(np.arange(rows + 1) + 1.0)
  total = 0.0
  firsts, times_first = np.unique(size_a, return_counts=True)
  seconds, times_second = np.unique(size_b, return_counts=True)
  for first, times in zip(firsts, times_first, strict=True):
    for second, often in zip(seconds, times_second, strict=True):
      n = np.arange(max(1, first + second - rows), min(first, second) + 1)
      log_p = (
        log_factorial[first]
        + log_factorial[second]
        + log_factorial[rows - first]
        + log_factorial[rows - second]
        - log_factorial[rows]
        - log_factorial[n]
        - log_factorial[first - n]
        - log_factorial[second - n]
        - log_factorial[rows - first - second + n]
      )
      ratio = np.log(rows * n) - np.log(float(first) * float(second))
      total += times * often * float((n / rows * ratio * np.exp(log_p)).sum())
  return total


def silhouette(
  x: Float[np.ndarray, "N d"], label: Shaped[np.ndarray, "N"]
) -> float:
  """Computes the mean silhouette of clusters, with Euclidean distances.

  All pairs of rows are compared, in blocks.

  Args:
    x: rows.
    label: cluster of each row.

  Raises:
    InputError: the lengths differ, a value is not finite, or the number of
      clusters is not in [2, N - 1].
  """
  x, label = np.asarray(x, np.float64), np.asarray(label)
  if x.ndim != 2 or not np.isfinite(x).all():
    rule = "must be finite rows [N, d]"
    raise InputError("x", f"shape {x.shape}", rule, "leave out other rows")
  if label.shape != x.shape[:1]:
    rule = f"must have one label for each of the {len(x)} rows of x"
    raise InputError("label", f"shape {label.shape}", rule, "label every row")
  _, own = np.unique(label, return_inverse=True)
  size = np.bincount(own)
  if not 2 <= len(size) < len(x):
    raise InputError(
      "label",
      f"{len(size)} clusters",
      f"must be in [2, {len(x) - 1}]: fewer than the {len(x)} rows",
      "divide the rows, into clusters of more than one",
    )
  member = np.eye(len(size))[own]
  total, step = 0.0, max(1, _BLOCK_ENTRIES // len(x))
  for start in range(0, len(x), step):
    at = np.arange(start, min(start + step, len(x)))
    sums = distance.cdist(x[at], x) @ member  # [rows, clusters]
    inside = np.arange(len(at)), own[at]
    a = sums[inside] / np.maximum(size[own[at]] - 1, 1)
    others = sums / size
    others[inside] = np.inf
    b = others.min(axis=1)
    width = np.maximum(np.maximum(a, b), np.finfo(float).tiny)
    total += float(np.where(size[own[at]] > 1, (b - a) / width, 0).sum())
  return total / len(x)


def binary(
  value: Shaped[np.ndarray, "*s"], field: str
) -> Bool[np.ndarray, "*s"]:
  """Returns labels as booleans.

  Args:
    value: booleans, or 0 and 1.
    field: name of the argument in errors.

  Raises:
    InputError: there is another value.
  """
  value = np.asarray(value)
  if value.dtype == bool:
    return value
  other = value[(value != 0) & (value != 1)]
  if len(other):
    rule, remedy = "must be booleans, or 0 and 1", "compare with a class"
    raise InputError(field, other.flat[0], rule, remedy)
  return value == 1


def _scored(score, label) -> tuple[np.ndarray, np.ndarray]:
  """Scores and labels of two classes."""
  score, label = np.asarray(score, np.float64), binary(label, "label")
  _same(score, label, "score")
  if np.isnan(score).any():
    rule = f"must not be NaN ({int(np.isnan(score).sum())} rows are)"
    raise InputError("score", "NaN", rule, "leave out these rows")
  if label.all() or not label.any():
    which = "positive" if label.all() else "negative"
    rule = "must have positive and negative rows"
    raise InputError("label", f"all {which}", rule, "add rows of the other")
  return score, label


def _same(a: np.ndarray, label: np.ndarray, field: str) -> None:
  if a.ndim != 1 or a.shape != label.shape or not len(a):
    raise InputError(
      field,
      f"shape {a.shape}",
      f"must be one value per row, as the other has shape {label.shape}",
      "give at least one row, and both of the same rows",
    )
