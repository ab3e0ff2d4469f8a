"""Similarity of the geometry of paired rows: SVCCA and RSA, with their nulls.

A [m, d_a] and B [m, d_b] are m pairs of rows, such as decoder rows of matched
latents.

  SVCCA  columns are centred and reduced to the principal directions of 99 % of the
         variance each, at most m / 4 of them; mean of the canonical correlations
  RSA    similarity matrices [m, m] of the rows of A and of B; Spearman correlation
         of their upper triangles

Canonical correlations are biased upwards where m is close to d: shuffled pairs give
0.21 for m = 512, d = 32 and 0.64 for m = 64. So m >= 4 d is required without
the reduction, and a score without its null says nothing. RSA compares rows by
cosine; inner="correlation" subtracts each row's mean over dimensions first, as the
reference does, and then depends on a rotation of the space.

The null of a score is that of R shuffled pairings; of a subset of pairs also that
of random subsets of equal size.

References:
  Raghu et al., SVCCA, 2017, arXiv:1706.05806.
  Kriegeskorte et al., Representational similarity analysis, 2008.
  Lan et al., Sparse Autoencoders Reveal Universal Feature Spaces Across Large
  Language Models, 2024, arXiv:2410.06981.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.stats
from jaxtyping import Float, Int

from saejax.errors import InputError
from saejax.evals import null

SHARE = 0.99  # of the variance
PER_DIRECTION = 4  # pairs for each direction
INNERS = ("cosine", "correlation")
COMPAT = ("", "reference")
COUNT = 100  # shuffles

# Score of A with the rows of B in another order, [m] -> number.
Score = Callable[[Int[np.ndarray, "m"]], float]
Rows = Float[np.ndarray, "m d"]


@dataclasses.dataclass(frozen=True, eq=False)
class Similarity:
  """A score and its null.

  Attributes:
    score: of the pairs.
    pairs: number of them.
    shuffled: the null of shuffled pairings.
    subsets: that of random subsets of equal size, for a subset.
  """

  score: float
  pairs: int
  shuffled: null.Null
  subsets: null.Null | None = None

  def record(self) -> dict[str, Any]:
    """Score, and mean, sd and p of the nulls, for results.json."""
    found: dict[str, Any] = {"score": self.score, "pairs": self.pairs}
    for name in ("shuffled", "subsets"):
      draws = getattr(self, name)
      if draws is not None:
        found[name] = {"mean": draws.mean, "sd": draws.sd, "p": draws.p}
    return found


def svcca(
  A: Rows,
  B: Rows,
  *,
  share: float | None = SHARE,
  compat: str = "",
  count: int = COUNT,
  seed: int = 0,
) -> Similarity:
  """Computes the mean canonical correlation of paired rows, with its null.

  Args:
    A, B: the rows.
    share: share of the variance of the principal directions; None for all.
    compat: "reference" to keep as many as its code, which compares a share with
      `share` times the variance: one, where the variance is above 1.
    count: number of shuffles.
    seed: seed of the shuffles.

  Raises:
    InputError: there are fewer than 4 pairs, or without a share fewer than 4 per
      dimension; or numbers of rows differ.
  """
  return with_null(
    svcca_score(A, B, share=share, compat=compat),
    len(A),
    count=count,
    seed=seed,
  )


def svcca_score(
  A: Rows, B: Rows, *, share: float | None = SHARE, compat: str = ""
) -> Score:
  """Returns the score of `svcca` as a function of the order of B's rows.

  Args:
    A, B, share, compat: as for `svcca`.

  Raises:
    InputError: as `svcca`.
  """
  _check(A, B)
  if compat not in COMPAT:
    rule = "must be reference, or empty"
    raise InputError("compat", compat, rule, "leave it out")
  m, widest = len(A), max(A.shape[1], B.shape[1])
  if share is None and m < PER_DIRECTION * widest:
    rule = f"must be at least {PER_DIRECTION} for each of {widest} dimensions"
    remedy = "give more pairs, or a share, for principal directions"
    raise InputError("pairs", m, rule, remedy)
  if share is not None and not 0 < share <= 1:
    raise InputError("share", share, "must be in (0, 1]", "use 0.99")
  U, V = (_basis(rows, share, compat) for rows in (A, B))
  return lambda order: float(correlations(U, V[order]).mean())


def canonical(A: Rows, B: Rows) -> Float[np.ndarray, "k"]:
  """Canonical correlations of two sets of columns, largest first, unreduced.

  Args:
    A, B: the rows; columns are centred.
  """
  return correlations(_basis(A, None), _basis(B, None))


def correlations(
  U: Float[np.ndarray, "m a"], V: Float[np.ndarray, "m b"]
) -> Float[np.ndarray, "k"]:
  """Cosines of the principal angles of two subspaces.

  Args:
    U, V: orthonormal columns.
  """
  found = np.linalg.svd(U.T @ V, compute_uv=False)
  return np.minimum(found, 1.0) if len(found) else np.zeros(1)


def _basis(
  rows: Rows, share: float | None, compat: str = ""
) -> Float[np.ndarray, "m k"]:
  """Orthonormal columns that span the principal components of the rows."""
  centred = np.asarray(rows, np.float64)
  centred = centred - centred.mean(axis=0)
  U, s, _ = np.linalg.svd(centred, full_matrices=False)
  rank = int((s > 1e-10 * max(s.max(initial=0), 1e-300)).sum())
  if share is None:
    return U[:, :rank]
  explained = np.cumsum(s**2) / max(float(np.sum(s**2)), 1e-300)
  if compat:
    total = float(np.sum(s**2)) / (len(rows) - 1)
    reached = explained >= share * total
    return U[:, : int(reached.argmax()) + 1]
  k = int(np.searchsorted(explained, share - 1e-12)) + 1
  return U[:, : max(1, min(k, rank, len(rows) // PER_DIRECTION))]


def rsa(
  A: Rows,
  B: Rows,
  *,
  inner: str = "cosine",
  count: int = COUNT,
  seed: int = 0,
) -> Similarity:
  """Computes the rank correlation of the rows' similarities, with its null.

  Args:
    A, B: the rows.
    inner: similarity of two rows, "cosine" or "correlation".
    count: number of shuffles.
    seed: seed of the shuffles.

  Raises:
    InputError: there are fewer than 4 pairs, numbers of rows differ, or there is
      no such similarity.
  """
  return with_null(rsa_score(A, B, inner=inner), len(A), count=count, seed=seed)


def rsa_score(A: Rows, B: Rows, *, inner: str = "cosine") -> Score:
  """Returns the score of `rsa` as a function of the order of B's rows.

  A shuffle permutes rows and columns of a matrix, which keeps the ranks of its
  entries: they are computed once.

  Args:
    A, B, inner: as for `rsa`.

  Raises:
    InputError: as `rsa`.
  """
  _check(A, B)
  if inner not in INNERS:
    rule = f"must be one of {', '.join(INNERS)}"
    raise InputError("inner", inner, rule, f"use {INNERS[0]}")
  upper = np.triu_indices(len(A), 1)
  of_a, of_b = (_ranks(rows, inner, upper) for rows in (A, B))
  if np.ptp(of_a) == 0 or np.ptp(of_b) == 0:
    return lambda order: 0.0  # equal similarities have no order
  scale = np.sqrt((of_a**2).sum() * (of_b**2).sum())
  square = np.zeros((len(A), len(A)))
  square[upper] = of_b
  square = square + square.T

  def score(order: Int[np.ndarray, "m"]) -> float:
    return float(of_a @ square[order[upper[0]], order[upper[1]]] / scale)

  return score


def _ranks(rows: Rows, inner: str, upper) -> Float[np.ndarray, "p"]:
  """Centred ranks of the similarities of all pairs of rows."""
  rows = np.asarray(rows, np.float64)
  if inner == "correlation":
    rows = rows - rows.mean(axis=1, keepdims=True)
  norm = np.linalg.norm(rows, axis=1, keepdims=True)
  rows = rows / np.where(norm > 0, norm, 1)
  ranks = scipy.stats.rankdata((rows @ rows.T)[upper])
  return ranks - ranks.mean()


def of_subset(
  A: Rows,
  B: Rows,
  chosen: Int[np.ndarray, "s"],
  score: Callable[[Rows, Rows], Score],
  *,
  count: int = COUNT,
  seed: int = 0,
) -> Similarity:
  """Computes the score of some pairs, with both nulls.

  Args:
    A, B: the rows of all pairs.
    chosen: places of the pairs, such as those of a meaning.
    score: `svcca_score` or `rsa_score`, with its options bound.
    count: number of shuffles, and of subsets.
    seed: seed of both.

  Raises:
    InputError: as `svcca` and `rsa`.
  """
  found = with_null(
    score(A[chosen], B[chosen]), len(chosen), count=count, seed=seed
  )
  rng, size = np.random.default_rng(seed + 1), len(chosen)
  draws = np.empty(count)
  for i in range(count):
    other = rng.choice(len(A), size, replace=False)
    draws[i] = score(A[other], B[other])(np.arange(size))
  subsets = null.Null(found.score, draws)
  return dataclasses.replace(found, subsets=subsets)


def with_null(
  score: Score, m: int, *, count: int = COUNT, seed: int = 0
) -> Similarity:
  """Computes a score, and that of shuffled pairs.

  Args:
    score: of the order of the rows.
    m: number of pairs.
    count: number of shuffles.
    seed: seed of the shuffles.
  """
  rng = np.random.default_rng(seed)
  observed = score(np.arange(m))
  draws = np.array([score(rng.permutation(m)) for _ in range(count)])
  return Similarity(observed, m, null.Null(observed, draws))


def _check(A: Rows, B: Rows) -> None:
  if len(A) != len(B):
    rule = f"must have as many rows as A, {len(A)}"
    raise InputError("B", B.shape, rule, "give pairs of rows")
  if len(A) < PER_DIRECTION:
    rule = f"must be at least {PER_DIRECTION}"
    raise InputError("pairs", len(A), rule, "match more latents")
