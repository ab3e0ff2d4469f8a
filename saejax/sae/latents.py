"""Latents of a batch: sparse where rows have at most k, else dense.

Both classes have the same methods, so that losses, statistics and metrics take
either: `decode(W)`, `dense()`, `sum(weights)`, `squares()`, `count()`,
`fired()`.
"""

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from saejax.kernels.sparse_decode import op as sparse_decode
from saejax.sae.part import Part


class SparseLatents(Part):
  """At most k active latents per row; a value of 0 is padding.

  Attributes:
    values: values of the active latents [*b, k].
    indices: index of each value's latent [*b, k], in [0, n).
    n: number of latents.
  """

  values: Float[Array, "*b k"]
  indices: Int[Array, "*b k"]
  n: int = flax.struct.field(pytree_node=False)

  def decode(
    self, W: Float[Array, "n d"], dtype: str = "float32"
  ) -> Float[Array, "*b d"]:
    """z W without a dense z.

    Args:
      W: decoder rows.
      dtype: dtype of the operands.
    """
    return sparse_decode.decode(self.values, self.indices, W, dtype)

  def dense(self) -> Float[Array, "*b n"]:
    """z with every latent, zeros included."""
    return _spread(self.values, self.indices, self.n)

  def sum(self, weights: Float[Array, "n"] | None = None) -> Float[Array, "*b"]:
    """sum_i |z_i| weights_i of each row.

    Args:
      weights: weight per latent; 1 by default.
    """
    size = jnp.abs(self.values)
    return jnp.sum(
      size if weights is None else size * weights[self.indices], axis=-1
    )

  def squares(self) -> Float[Array, "*b"]:
    """sum_i z_i^2 of each row."""
    return jnp.sum(jnp.square(self.values), axis=-1)

  def count(self) -> Float[Array, "*b"]:
    """Number of non-zero latents of each row (L0)."""
    return jnp.sum(self.values != 0, axis=-1).astype(jnp.float32)

  def fired(self, weight: Float[Array, "*b"] | None = None) -> Bool[Array, "n"]:
    """Latents that are non-zero on at least one row of weight other than 0.

    Args:
      weight: weight per row; all rows count by default.
    """
    hits = _counted(self.values != 0, weight).reshape(-1)
    # As integers: GPUs have no atomic maximum of bytes, and would retry.
    none = jnp.zeros((self.n,), jnp.int32)
    return none.at[self.indices.reshape(-1)].max(hits.astype(jnp.int32)) > 0


class DenseLatents(Part):
  """All latents of each row, z [*b, n]."""

  z: Float[Array, "*b n"]

  def decode(
    self, W: Float[Array, "n d"], dtype: str = "float32"
  ) -> Float[Array, "*b d"]:
    """z W.

    Args:
      W: decoder rows.
      dtype: dtype of the operands.
    """
    return jnp.matmul(
      self.z.astype(dtype),
      W.astype(dtype),
      preferred_element_type=jnp.float32,
    )

  def dense(self) -> Float[Array, "*b n"]:
    """z."""
    return self.z

  def sum(self, weights: Float[Array, "n"] | None = None) -> Float[Array, "*b"]:
    """sum_i |z_i| weights_i of each row.

    Args:
      weights: weight per latent; 1 by default.
    """
    size = jnp.abs(self.z)
    return jnp.sum(size if weights is None else size * weights, axis=-1)

  def squares(self) -> Float[Array, "*b"]:
    """sum_i z_i^2 of each row."""
    return jnp.sum(jnp.square(self.z), axis=-1)

  def count(self) -> Float[Array, "*b"]:
    """Number of non-zero latents of each row (L0)."""
    return jnp.sum(self.z != 0, axis=-1).astype(jnp.float32)

  def fired(self, weight: Float[Array, "*b"] | None = None) -> Bool[Array, "n"]:
    """Latents that are non-zero on at least one row of weight other than 0.

    Args:
      weight: weight per row; all rows count by default.
    """
    hits = _counted(self.z != 0, weight)
    return jnp.any(hits, axis=tuple(range(self.z.ndim - 1)))


Latents = SparseLatents | DenseLatents


def _counted(hits, weight):
  """Restricts hits to rows of non-zero weight."""
  return hits if weight is None else hits & (weight != 0)[..., None]


def _spread(values, indices, n: int):
  """Scatters values to a last axis of length n; repeated indices add."""
  k = values.shape[-1]
  one = lambda v, i: jnp.zeros((n,), values.dtype).at[i].add(v)
  rows = jax.vmap(one)(values.reshape(-1, k), indices.reshape(-1, k))
  return rows.reshape(*values.shape[:-1], n)
