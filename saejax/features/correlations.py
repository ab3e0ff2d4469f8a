"""Correlations of latents with each other and with the dimensions of a site.

Sums of products over rows, from active latents alone: sum z_i z_j [L, n] and
sum z_i x_k [L, d]. No array has an axis for rows beside one for latents.
"""

from collections.abc import Sequence

import numpy as np
import scipy.sparse
from jaxtyping import Float, Int

from saejax.data.store.reader import Store
from saejax.features.summary import Active

_PAIRS = 2**28  # products of pairs of latents in memory, 1 GiB


class Correlations:
  """Sums over the rows that `add` was given.

  Attributes:
    latents: numbers of the L latents, ascending.
    rows: number of rows.
    has_pairs: whether products of latents are kept: L n is at most 2^28.
  """

  def __init__(self, latents: Sequence[int] | np.ndarray, n: int, d: int):
    self.latents = np.asarray(latents, int)
    self.rows = 0
    L = len(self.latents)
    self.has_pairs = L * n <= _PAIRS
    self._place = np.full(n, -1)
    self._place[self.latents] = np.arange(L)
    self._sum, self._square = np.zeros((2, n))
    self._pairs = np.zeros((L, n if self.has_pairs else 0), np.float32)
    self._with_x = np.zeros((L, d), np.float32)

  def add(
    self, part: Active, numbers: np.ndarray, x: Float[np.ndarray, "B d"]
  ) -> None:
    """Adds rows.

    Args:
      part: what is active on some of the rows.
      numbers: the numbers of the rows, ascending.
      x: the rows.
    """
    self.rows += part.rows
    n = len(self._sum)
    value = part.value.astype(np.float64)
    self._sum += np.bincount(part.latent, value, n)
    self._square += np.bincount(part.latent, value * value, n)
    row = np.searchsorted(numbers, part.row)
    place = self._place[part.latent]
    mine = place >= 0
    shape = len(x), len(self.latents)
    A = scipy.sparse.csr_array(
      (part.value[mine], (row[mine], place[mine])), shape
    )
    used = np.unique(row)  # the others may be no finite rows
    self._with_x += A[used].T @ x[used].astype(np.float32)
    if self.has_pairs:
      Z = scipy.sparse.csr_array((part.value, (row, part.latent)), (len(x), n))
      both = (A.T @ Z).tocoo()
      self._pairs[both.row, both.col] += both.data

  def with_latents(self, count: int) -> list[tuple[list, list, list]]:
    """The other latents of the largest correlation.

    Args:
      count: number of them.

    Returns:
      For each latent the numbers, Pearson correlations and cosines; none where
      products are not kept.
    """
    found = []
    for i, latent in enumerate(self.latents):
      if not self.has_pairs:
        found.append(([], [], []))
        continue
      own = self._sum[latent], self._square[latent]
      pearson, cosine = self._scores(
        self._pairs[i], own, self._sum, self._square
      )
      pearson[latent] = -np.inf
      pearson[self._square == 0] = -np.inf
      found.append(_largest(pearson, cosine, count))
    return found

  def with_site(self, store: Store, count: int) -> list[tuple]:
    """The dimensions of the site of the largest correlation.

    Args:
      store: the store of the rows, with the moments of x.
      count: number of dimensions.

    Returns:
      For each latent the numbers, Pearson correlations and cosines.
    """
    moments = store.moments["x"]
    mean, variance = moments["mean"], moments["variance"]
    total = self.rows * mean
    square = self.rows * (variance + mean * mean)
    return [
      _largest(
        *self._scores(
          self._with_x[i],
          (self._sum[latent], self._square[latent]),
          total,
          square,
        ),
        count,
      )
      for i, latent in enumerate(self.latents)
    ]

  def _scores(
    self,
    product: Float[np.ndarray, "m"],
    own: tuple[float, float],
    total: Float[np.ndarray, "m"],
    square: Float[np.ndarray, "m"],
  ) -> tuple[np.ndarray, np.ndarray]:
    """Pearson correlation and cosine from sums."""
    N, product = self.rows, product.astype(np.float64)
    spread = (N * own[1] - own[0] ** 2) * (N * square - total**2)
    pearson = N * product - own[0] * total
    pearson = pearson / np.sqrt(np.maximum(spread, 1e-12))
    cosine = product / np.sqrt(np.maximum(own[1] * square, 1e-12))
    return np.where(spread > 1e-12, pearson, 0), cosine


def _largest(
  pearson: np.ndarray, cosine: np.ndarray, count: int
) -> tuple[list, list, list]:
  order: Int[np.ndarray, "c"] = np.argsort(-pearson, kind="stable")[:count]
  order = order[np.isfinite(pearson[order])]
  return (
    order.tolist(),
    [round(float(v), 3) for v in pearson[order]],
    [round(float(v), 3) for v in cosine[order]],
  )
