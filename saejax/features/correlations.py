"""Correlations of latents with each other and with the dimensions of a site.

Sums of products over rows in float64, from active latents alone: sum z_i z_j [L, n]
and sum z_i x_k [L, d]. No array has an axis for rows beside one for latents.
"""

from collections.abc import Sequence

import numpy as np
import scipy.sparse
from jaxtyping import Float, Int

from saejax.data.store.reader import Store
from saejax.features.summary import Active

_PAIRS = 2**28  # products of pairs of latents in memory, 2 GiB


class Correlations:
  """Sums over the rows that `add` was given.

  Attributes:
    latents: numbers of the L latents, ascending.
    has_pairs: whether products of latents are kept: L n is at most 2^28.
    sums: sums over rows: "rows", of 1; "sum" and "square", of z and z^2 [n];
      "pairs" and "with_x", of products [L, n] and [L, d].
  """

  def __init__(self, latents: Sequence[int] | np.ndarray, n: int, d: int):
    self.latents = np.asarray(latents, int)
    L = len(self.latents)
    self.has_pairs = L * n <= _PAIRS
    self._place = np.full(n, -1)
    self._place[self.latents] = np.arange(L)
    self.sums = {
      "rows": np.zeros(1, np.int64),
      "sum": np.zeros(n),
      "square": np.zeros(n),
      "pairs": np.zeros((L, n if self.has_pairs else 0)),
      "with_x": np.zeros((L, d)),
    }

  @property
  def rows(self) -> int:
    """Number of rows."""
    return int(self.sums["rows"][0])

  def add(
    self, part: Active, numbers: np.ndarray, x: Float[np.ndarray, "B d"]
  ) -> None:
    """Adds rows.

    Args:
      part: what is active on some of the rows.
      numbers: the numbers of the rows, ascending.
      x: the rows.
    """
    sums, n = self.sums, len(self._place)
    sums["rows"] += part.rows
    value = part.value.astype(np.float64)
    sums["sum"] += np.bincount(part.latent, value, n)
    sums["square"] += np.bincount(part.latent, value * value, n)
    row = np.searchsorted(numbers, part.row)
    place = self._place[part.latent]
    mine = place >= 0
    shape = len(x), len(self.latents)
    A = scipy.sparse.csr_array((value[mine], (row[mine], place[mine])), shape)
    used = np.unique(row)  # the others may be no finite rows
    sums["with_x"] += A[used].T @ x[used].astype(np.float64)
    if self.has_pairs:
      Z = scipy.sparse.csr_array((value, (row, part.latent)), (len(x), n))
      both = (A.T @ Z).tocoo()
      sums["pairs"][both.row, both.col] += both.data

  def with_latents(self, count: int) -> list[tuple[list, list, list]]:
    """The other latents of the largest correlation.

    Args:
      count: number of them.

    Returns:
      For each latent the numbers, Pearson correlations and cosines; none where
      products are not kept.
    """
    found, total, square = [], self.sums["sum"], self.sums["square"]
    for i, latent in enumerate(self.latents):
      if not self.has_pairs:
        found.append(([], [], []))
        continue
      own = total[latent], square[latent]
      pearson, cosine = self._scores(self.sums["pairs"][i], own, total, square)
      pearson[latent] = -np.inf
      pearson[square == 0] = -np.inf
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
          self.sums["with_x"][i],
          (self.sums["sum"][latent], self.sums["square"][latent]),
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
    N = self.rows
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
