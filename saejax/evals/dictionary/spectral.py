"""Spectral clustering of items by an affinity, deterministic given a seed.

With A the affinity without its diagonal, D the diagonal of its sums, and u_1 .. u_K
the eigenvectors of the K largest eigenvalues of D^-1/2 A D^-1/2, k-means of the rows of
D^-1/2 (u_1 .. u_K). The best of several starts of k-means is kept. Eigenvectors of
many items are computed by Lanczos iterations, which only multiply by A.

References:
  Ng, Jordan and Weiss, On Spectral Clustering, 2001; von Luxburg, A Tutorial on
  Spectral Clustering, 2007, arXiv:0711.0189.
"""

import jax
import numpy as np
import scipy.linalg
import scipy.sparse.linalg
from jaxtyping import Float, Int

from saejax.errors import InputError
from saejax.evals import matching
from saejax.sae import archetypal

LIMIT = 16384  # items; n^2 numbers of 4 bytes are 1 GiB
RESTARTS = 10  # starts of k-means
STEPS = 50  # of Lloyd's algorithm
_DENSE = 1024  # items up to which all eigenvectors are computed
_ROWS = 1024


def cluster(
  affinity: Float[np.ndarray, "n n"],
  count: int,
  *,
  seed: int = 42,
  restarts: int = RESTARTS,
) -> Int[np.ndarray, "n"]:
  """Divides items into clusters, numbered by their first item.

  Args:
    affinity: symmetric, at least 0.
    count: number of clusters; some may be empty and have no number.
    seed: seeds k-means.
    restarts: starts of k-means.

  Raises:
    InputError: there are more than 16384 items, the count is not in [1, n], or
      an affinity is negative or not finite.
  """
  rows = embedding(affinity, count, seed=seed)
  best, least = np.zeros(len(rows), np.int64), np.inf
  for key in jax.random.split(jax.random.key(seed), restarts):
    centres = np.asarray(
      archetypal.kmeans(key, rows.astype(np.float32), count, STEPS), np.float64
    )
    label, spread = _nearest(rows, centres)
    if spread < least:
      best, least = label, spread
  _, first, label = np.unique(best, return_index=True, return_inverse=True)
  return np.argsort(np.argsort(first))[label]


def embedding(
  affinity: Float[np.ndarray, "n n"], count: int, *, seed: int = 42
) -> Float[np.ndarray, "n k"]:
  """Computes the rows that are clustered; see the module.

  The entry of largest size of each eigenvector is positive, and columns are scaled
  by sqrt(n) to be independent of the number of items.

  Args:
    affinity: symmetric, at least 0.
    count: number of columns.
    seed: seeds the start of Lanczos iterations.

  Raises:
    InputError: as `cluster`.
  """
  n = len(affinity)
  _check(affinity, count)
  A = np.array(affinity, np.float64 if n <= _DENSE else np.float32)
  np.fill_diagonal(A, 0)
  degree = A.sum(axis=1, dtype=np.float64)
  root = np.sqrt(np.where(degree > 0, degree, 1)).astype(A.dtype)
  A /= root[:, None]
  A /= root
  if n <= _DENSE:
    _, u = scipy.linalg.eigh(A, subset_by_index=(n - count, n - 1))
  else:
    start = np.random.default_rng(seed).standard_normal(n).astype(A.dtype)
    _, u = scipy.sparse.linalg.eigsh(A, k=count, which="LA", v0=start)
  u = u[:, ::-1].astype(np.float64)
  largest = np.take_along_axis(u, np.abs(u).argmax(axis=0)[None], axis=0)
  # D^-1/2 alone would make rows as small as affinities are large.
  mean = np.sqrt(np.mean(root.astype(np.float64) ** 2))
  return u * np.sign(largest) * np.sqrt(n) * (mean / root[:, None])


def angular(W: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n n"]:
  """Computes the affinity 1 - arccos(cosine) / pi of rows, float32.

  Args:
    W: rows; one of norm 0 has the cosine 0 with any.

  Raises:
    InputError: there are more than 16384 rows.

  >>> angular(np.array([[1.0, 0.0], [0.0, 2.0]])).tolist()
  [[1.0, 0.5], [0.5, 1.0]]
  """
  _limit("W", len(W))
  unit = matching.unit(W)
  found = np.empty((len(W), len(W)), np.float32)
  for start in range(0, len(W), _ROWS):
    cosine = unit[start : start + _ROWS] @ unit.T
    found[start : start + _ROWS] = 1 - np.arccos(np.clip(cosine, -1, 1)) / np.pi
  return found


def _nearest(rows, centres) -> tuple[np.ndarray, float]:
  """The nearest centre of each row, and the sum of squared distances."""
  squares = np.sum(centres**2, axis=1)
  label = np.concatenate(
    [
      np.argmin(squares - 2 * rows[i : i + _ROWS] @ centres.T, axis=1)
      for i in range(0, len(rows), _ROWS)
    ]
  )
  return label, float(np.sum((rows - centres[label]) ** 2))


def _check(affinity: np.ndarray, count: int) -> None:
  n = len(affinity)
  _limit("affinity", n)
  if not 1 <= count <= n:
    rule = f"must be in [1, {n}], the number of items"
    raise InputError("count", count, rule, "ask for fewer clusters")
  least = affinity.min()
  if not (least >= 0 and np.isfinite(affinity.max())):
    rule = "must be finite and at least 0"
    raise InputError("affinity", least, rule, "add a constant, as phi + 1 does")


def _limit(field: str, n: int) -> None:
  if n > LIMIT:
    rule = f"must be at most {LIMIT:,} items: the affinity is of pairs"
    raise InputError(field, f"{n:,}", rule, "choose some of them")
