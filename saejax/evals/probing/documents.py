"""Activations and latents pooled by document, and ablations of pooled rows.

With x_g and z_g the means over the tokens of document g of activations and latents,
and d_f what a unit of latent f adds to x, setting the latents S to 0 in every token
while the error is kept gives the mean

  x'_g = x_g - sum_{f in S} z_gf d_f

so that no token is read again. Latents are pooled in units in which d_f has norm 1,
as in SAEBench: gaps of means and penalties of probes depend on their scale.

References:
  Karvonen et al., SAEBench, 2025, arXiv:2503.09532.
"""

import dataclasses

import numpy as np
import scipy.sparse
from jaxtyping import Bool, Float, Int, Shaped

from saejax.data.store.reader import Store
from saejax.errors import InputError
from saejax.evals.probing import probe
from saejax.evals.probing.probe_input import Rows
from saejax.features import pooling
from saejax.sae.sae import SAE


@dataclasses.dataclass(frozen=True, eq=False)
class Documents:
  """Means over the tokens of documents.

  Attributes:
    x: activations.
    z: latents, of the same tokens; sparse or not.
    directions: what a unit of each latent adds to x: `SAE.direction`.
    groups: which rows stay together in a split; None where each is its own.
  """

  x: Float[np.ndarray, "N d"]
  z: Rows
  directions: Float[np.ndarray, "n d"]
  groups: Shaped[np.ndarray, "N"] | None = None

  def __post_init__(self):
    for field, wanted in (
      ("z", (len(self.x), len(self.directions))),
      ("directions", (self.z.shape[-1], self.x.shape[-1])),
    ):
      shape = np.shape(getattr(self, field))
      if shape != wanted:
        rule = f"must be {wanted}: the rows of x, a direction of each latent"
        raise InputError(field, f"shape {shape}", rule, "pool x and z alike")

  def split(self, test: float, seed: int) -> Bool[np.ndarray, "N"]:
    """Which rows are for training.

    Args:
      test: share of the rows for testing.
      seed: of the draw.
    """
    groups = np.arange(len(self.x)) if self.groups is None else self.groups
    return probe.split(groups, test=test, seed=seed)

  def without(
    self, latents: Int[np.ndarray, "m"], rows: Int[np.ndarray, "r"]
  ) -> Float[np.ndarray, "r d"]:
    """Computes x' of some rows.

    Args:
      latents: latents that are set to 0.
      rows: numbers of the rows.
    """
    z = self.z[rows][:, latents]
    z = z.toarray() if scipy.sparse.issparse(z) else z
    return self.x[rows] - z @ self.directions[latents]


def pooled(
  sae: SAE,
  store: Store,
  groups: Shaped[np.ndarray, "rows"],
  *,
  batch_rows: int = 4096,
) -> tuple[Shaped[np.ndarray, "G"], Documents]:
  """Pools a store by document; it is read twice.

  Args:
    sae: the SAE, in the inference form.
    store: the rows.
    groups: document of each row, see `features.pooling`; padding and special
      tokens have none.
    batch_rows: largest number of rows on the device at once.

  Returns:
    (labels of the documents, ascending; their means, in this order, with
      directions of norm 1).

  Raises:
    InputError: a document has no finite row; or as `pooling.pooled`.
    NotImplementedError: the prep depends on the row, and so does a direction.
  """
  names, x = means(store, groups, batch_rows=batch_rows)
  found = pooling.pooled(sae, store, groups, batch_rows=batch_rows)
  return names, Documents(x, *unit(found, sae))


def means(
  store: Store,
  groups: Shaped[np.ndarray, "rows"],
  *,
  batch_rows: int = 4096,
) -> tuple[Shaped[np.ndarray, "G"], Float[np.ndarray, "G d"]]:
  """Computes mean activations by document.

  Args:
    store, groups, batch_rows: as for `pooled`.

  Returns:
    (labels of the documents, ascending; their means).

  Raises:
    InputError: a document has no finite row; or as `pooling.row_means`.
  """
  names, x = pooling.row_means(store, groups, batch_rows=batch_rows)
  empty = ~np.isfinite(x).all(axis=1)
  if empty.any():
    value = f"document {names[empty][0]}"
    rule, remedy = "must have a finite row", "give its rows no document"
    raise InputError("groups", value, rule, remedy)
  return names, x


def unit(
  found: pooling.Pooled, sae: SAE
) -> tuple[scipy.sparse.csr_array, Float[np.ndarray, "n d"]]:
  """Returns mean latents in units of directions of norm 1, and the directions.

  Args:
    found: latents of the SAE, pooled.
    sae: the SAE.

  Raises:
    NotImplementedError: the prep depends on the row, and so does a direction.
  """
  directions = np.asarray(sae.direction(np.arange(sae.n)), np.float64)
  norm = np.linalg.norm(directions, axis=1)
  norm = np.where(norm > 0, norm, 1)
  z = found.matrix("mean").multiply(norm).tocsr()
  return z, directions / norm[:, None]
