"""Latents of a batch: sparse where their number is bounded, else dense.

At most k per row, entries whose number is that of the batch, or all. The classes
have the same methods, so that losses, statistics and metrics take any:
`decode(W)`, `decode_runs(W, ends)`, `dense()`, `sum(weights)`, `squares()`,
`count()`, `fired()`.
"""

import itertools
import math
from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from saejax.kernels.entries import op as entries
from saejax.kernels.nested_decode import groups
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

  def decode_runs(
    self, W: Float[Array, "n d"], ends: Sequence[int], dtype: str = "float32"
  ) -> list[Float[Array, "*b d"]]:
    """z W of the latents from 0 or the end before up to each end.

    Args:
      W: decoder rows.
      ends: first latent after each run, not decreasing, at most n.
      dtype: dtype of the operands.
    """
    parts = []
    for low, high in itertools.pairwise((0, *ends)):
      inside = (self.indices >= low) & (self.indices < high)
      part = self.replace(values=jnp.where(inside, self.values, 0))
      parts.append(part.decode(W, dtype))
    return parts

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


class EntryLatents(Part):
  """Active latents as a list of entries, row by row; a value of 0 is padding.

  For selections over a batch, whose number of entries is fixed while that of a
  row is not.

  Attributes:
    values: values of the active latents [e].
    rows: row of each value, leading axes of the batch flattened [e].
    indices: index of each value's latent [e], in [0, n).
    n: number of latents.
    shape: leading axes of the batch.
  """

  values: Float[Array, "e"]
  rows: Int[Array, "e"]
  indices: Int[Array, "e"]
  n: int = flax.struct.field(pytree_node=False)
  shape: tuple[int, ...] = flax.struct.field(pytree_node=False)

  def decode(
    self, W: Float[Array, "n d"], dtype: str = "float32"
  ) -> Float[Array, "*b d"]:
    """z W without a dense z.

    Args:
      W: decoder rows.
      dtype: dtype of the operands.
    """
    return self.decode_runs(W, (self.n,), dtype)[0]

  def decode_runs(
    self, W: Float[Array, "n d"], ends: Sequence[int], dtype: str = "float32"
  ) -> list[Float[Array, "*b d"]]:
    """z W of the latents from 0 or the end before up to each end.

    Args:
      W: decoder rows.
      ends: first latent after each run, not decreasing, at most n.
      dtype: dtype of the operands.
    """
    out = entries.decode(
      self.values,
      self.rows,
      self.indices,
      W,
      size=math.prod(self.shape),
      ends=tuple(ends),
      dtype=dtype,
    )
    return [part.reshape(*self.shape, W.shape[-1]) for part in out]

  def dense(self) -> Float[Array, "*b n"]:
    """z with every latent, zeros included."""
    zeros = jnp.zeros((math.prod(self.shape), self.n), self.values.dtype)
    z = zeros.at[self.rows, self.indices].add(self.values)
    return z.reshape(*self.shape, self.n)

  def sum(self, weights: Float[Array, "n"] | None = None) -> Float[Array, "*b"]:
    """sum_i |z_i| weights_i of each row.

    Args:
      weights: weight per latent; 1 by default.
    """
    size = jnp.abs(self.values)
    return self._of_rows(
      size if weights is None else size * weights[self.indices]
    )

  def squares(self) -> Float[Array, "*b"]:
    """sum_i z_i^2 of each row."""
    return self._of_rows(jnp.square(self.values))

  def count(self) -> Float[Array, "*b"]:
    """Number of non-zero latents of each row (L0)."""
    return self._of_rows((self.values != 0).astype(jnp.float32))

  def fired(self, weight: Float[Array, "*b"] | None = None) -> Bool[Array, "n"]:
    """Latents that are non-zero on at least one row of weight other than 0.

    Args:
      weight: weight per row; all rows count by default.
    """
    hits = self.values != 0
    if weight is not None:
      hits &= weight.reshape(-1)[self.rows] != 0
    # As integers: GPUs have no atomic maximum of bytes, and would retry.
    none = jnp.zeros((self.n,), jnp.int32)
    return none.at[self.indices].max(hits.astype(jnp.int32)) > 0

  def _of_rows(self, terms: Float[Array, "e"]) -> Float[Array, "*b"]:
    sums = entries.row_sums(terms, self.rows, math.prod(self.shape))
    return sums.reshape(self.shape)


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

  def decode_runs(
    self, W: Float[Array, "n d"], ends: Sequence[int], dtype: str = "float32"
  ) -> list[Float[Array, "*b d"]]:
    """z W of the latents from 0 or the end before up to each end.

    Args:
      W: decoder rows.
      ends: first latent after each run, not decreasing, at most n.
      dtype: dtype of the operands.
    """
    return groups.decode(self.z, W, ends, dtype)

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


Latents = SparseLatents | EntryLatents | DenseLatents


def _counted(hits, weight):
  """Restricts hits to rows of non-zero weight."""
  return hits if weight is None else hits & (weight != 0)[..., None]


def _spread(values, indices, n: int):
  """Scatters values to a last axis of length n; repeated indices add."""
  k = values.shape[-1]
  one = lambda v, i: jnp.zeros((n,), values.dtype).at[i].add(v)
  rows = jax.vmap(one)(values.reshape(-1, k), indices.reshape(-1, k))
  return rows.reshape(*values.shape[:-1], n)
