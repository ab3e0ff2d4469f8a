"""Exact top-k in two levels, in plain JAX.

The k largest entries of a row lie in the k blocks with the largest maxima, so
two small selections (n/s block maxima, then k*s candidates) replace one over n.
Stock `lax.top_k` is a full sort on GPU for k > 16, and on CPU for every type but
float32 or where its values are sliced.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def top_k(
  a: Float[Array, "b n"], k: int, block: int | None = None
) -> tuple[Float[Array, "b k"], Int[Array, "b k"]]:
  """The k largest of each row, largest first, equal ones lowest index first.

  Args:
    a: scores; anything but float32 is selected on in float32, because CPU
      back ends sort every other type in full.
    k: entries kept, at most n.
    block: entries a block; about sqrt(n / k) balances the two levels.
  """
  rows, n = a.shape
  keys = a.astype(jnp.float32)
  block = block or _block(n, k)
  if n <= 8 * k or block < 2:
    values, indices = jax.lax.top_k(keys, k)
    return values.astype(a.dtype), indices
  padding = -n % block
  if padding:
    keys = jnp.pad(keys, ((0, 0), (0, padding)), constant_values=-jnp.inf)
  blocks = keys.reshape(rows, -1, block)
  _, chosen = jax.lax.top_k(jnp.max(blocks, axis=-1), k)
  # In index order, so that ties among candidates fall to the lowest index.
  chosen = jnp.sort(chosen, axis=-1)
  candidates = jnp.take_along_axis(blocks, chosen[..., None], axis=1)
  values, position = jax.lax.top_k(candidates.reshape(rows, k * block), k)
  first = jnp.take_along_axis(chosen, position // block, axis=1) * block
  return values.astype(a.dtype), first + position % block


def _block(n: int, k: int) -> int:
  """The power of two nearest sqrt(n / k), at most 64."""
  return min(64, 2 ** round(0.5 * math.log2(max(n / k, 1))))
