"""Sparse products in C++ calls on a CPU, in float32.

Entries are sorted by latent once a call, and each row of the result is summed by
one thread in the order of the entries: the result does not depend on the number
of threads. Decode is left to XLA, which a call did not beat.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from saejax.kernels.entries import native as entries


def fits(values: Float[Array, "b k"]) -> bool:
  """Whether a code has few enough entries: their positions are int32.

  Args:
    values: entries of the code.
  """
  return values.size < 2**31


def scatter_rows(
  values: Float[Array, "b k"],
  indices: Int[Array, "b k"],
  y: Float[Array, "b d"],
  n: int,
) -> Float[Array, "n d"]:
  """Row i: the sum of values[b, j] y[b] over all (b, j) with indices = i.

  See `op.scatter_rows` for the arguments.
  """
  entry = values.reshape(-1), indices.reshape(-1), _rows(values)
  return entries.add_rows(*entry, y, size=n)


def gradients(
  values: Float[Array, "b k"],
  indices: Int[Array, "b k"],
  g: Float[Array, "b d"],
  W: Float[Array, "n d"],
) -> tuple[Float[Array, "b k"], Float[Array, "n d"]]:
  """`sampled_product` of the entries that are not 0, and `scatter_rows` of g.

  See `op.gradients` for the arguments. Rows of g are read once for both.
  """
  d_values, d_W = entries.gradients(
    values.reshape(-1), _rows(values), indices.reshape(-1), g, W
  )
  return d_values.reshape(values.shape), d_W


def _rows(values: Float[Array, "b k"]) -> Int[Array, "bk"]:
  """The row of each entry."""
  b, k = values.shape
  return jnp.repeat(jnp.arange(b, dtype=jnp.int32), k)
