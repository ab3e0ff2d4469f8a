"""The operations of published forward passes, in NumPy and float64."""

import numpy as np
from jaxtyping import Float

Rows = Float[np.ndarray, "b n"]


def relu(a: Rows) -> Rows:
  """max(a, 0).

  Args:
    a: pre-activations.
  """
  return np.maximum(a, 0)


def top(score: Rows, kept: Rows, k: int) -> Rows:
  """Keeps values where the score is among the k highest of its row.

  Args:
    score: what is ranked; equal ones lowest index first.
    kept: values.
    k: number per row.
  """
  which = np.argsort(-score, axis=1, kind="stable")[:, :k]
  found = np.zeros_like(kept)
  rows = np.arange(len(kept))[:, None]
  found[rows, which] = kept[rows, which]
  return found


def group_max(a: Rows, k: int) -> Rows:
  """The largest value of each of k contiguous groups of a row.

  Args:
    a: values.
    k: number of groups.
  """
  groups = a.reshape(len(a), k, -1)
  best = groups.argmax(axis=2)[..., None]
  found = np.zeros_like(groups)
  np.put_along_axis(found, best, np.take_along_axis(groups, best, 2), 2)
  return found.reshape(a.shape)


def above(a: Rows, theta: np.ndarray | float) -> Rows:
  """max(a, 0) where a > theta.

  Args:
    a: pre-activations.
    theta: thresholds.
  """
  return np.where(a > theta, relu(a), 0)


def pursue(
  x: Float[np.ndarray, "b d"],
  W: Float[np.ndarray, "n d"],
  *,
  residual: float,
  steps: int,
  stop_on_repeat: bool,
) -> Rows:
  """Matching pursuit, row by row.

  Args:
    x: rows.
    W: unit decoder rows.
    residual, steps, stop_on_repeat: as `sae.pursuit.Pursuit`.
  """
  z = np.zeros((len(x), len(W)))
  for row, rest in zip(z, x.copy(), strict=True):
    for _ in range(steps):
      scores = relu(W @ rest)
      best = int(scores.argmax())
      repeats = row[best] != 0 or scores[best] == 0
      row[best] += scores[best]
      rest -= scores[best] * W[best]
      if (stop_on_repeat and repeats) or np.linalg.norm(rest) < residual:
        break
  return z


def layer_norm(
  x: Float[np.ndarray, "b d"],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """(x - mean) / (std + 1e-5) with the unbiased deviation; mean and std.

  Args:
    x: rows.
  """
  mean = x.mean(axis=1, keepdims=True)
  std = x.std(axis=1, keepdims=True, ddof=1)
  return (x - mean) / (std + 1e-5), mean, std
