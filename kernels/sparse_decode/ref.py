"""The definitions: products of a sparse code with dense matrices.

Values of 0 are padding and count as absent.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

HIGHEST = jax.lax.Precision.HIGHEST


def decode(
  values: Float[Array, "b k"], indices: Int[Array, "b k"], W: Array
) -> Float[Array, "b d"]:
  """sum_j values[b, j] W[indices[b, j]].

  See `op.decode_rows` for the arguments.
  """
  rows = jnp.where(values[..., None] != 0, W[indices], 0)
  return jnp.einsum("bk,bkd->bd", values, rows, precision=HIGHEST)


def sampled_product(
  g: Float[Array, "b d"], W: Float[Array, "n d"], indices: Int[Array, "b k"]
) -> Float[Array, "b k"]:
  """<g[b], W[indices[b, j]]>.

  See `op.sampled_product` for the arguments.
  """
  return jnp.einsum("bd,bkd->bk", g, W[indices], precision=HIGHEST)


def scatter_rows(
  values: Float[Array, "b k"],
  indices: Int[Array, "b k"],
  y: Float[Array, "b d"],
  n: int,
) -> Float[Array, "n d"]:
  """Row i: the sum of values[b, j] y[b] over all (b, j) with indices = i.

  See `op.scatter_rows` for the arguments.
  """
  z = jax.vmap(lambda v, i: jnp.zeros((n,), v.dtype).at[i].add(v))(
    values, indices
  )
  return jnp.einsum("bn,bd->nd", z, y, precision=HIGHEST)
