"""Products of a code given entry by entry, in plain JAX.

They go over chunks of entries whose gathered rows stay below a byte limit, and
over smaller ones on CPU, as `sparse_decode.xla` does.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from saejax.kernels import chunks
from saejax.kernels.sparse_decode.xla import CHUNK_BYTES, GPU_CHUNK_BYTES

CPU_CHUNK_ENTRIES = 4096


def add_rows(
  values: Float[Array, "e"],
  to: Int[Array, "e"],
  source: Int[Array, "e"],
  y: Float[Array, "m d"],
  *,
  size: int,
) -> Float[Array, "size d"]:
  """Row i: the sum of values[e] y[source[e]] over all e with to[e] = i.

  See `op.add_rows` for the arguments.
  """

  def add(total, chunk):
    v, to, source = chunk
    rows = jnp.take(y, source, axis=0, mode="clip").astype(jnp.float32)
    rows = jnp.where(v[:, None] != 0, v[:, None] * rows, 0)
    return total.at[to].add(rows, mode="drop"), None

  def chunked(most, *entries):
    start = jnp.zeros((size, y.shape[1]), jnp.float32)
    if values.shape[0] <= most:
      return add(start, entries)[0]
    return jax.lax.scan(add, start, chunks.split(most, *entries))[0]

  return _by_platform(chunked, y, values.astype(jnp.float32), to, source)


def products(
  a: Float[Array, "m d"],
  i: Int[Array, "e"],
  b: Float[Array, "n d"],
  j: Int[Array, "e"],
) -> Float[Array, "e"]:
  """<a[i[e]], b[j[e]]> in float32.

  See `op.products` for the arguments.
  """

  def product(i, j):
    rows = (jnp.take(a, i, axis=0, mode="clip"), jnp.take(b, j, 0, mode="clip"))
    return jnp.einsum("ed,ed->e", *rows, preferred_element_type=jnp.float32)

  def chunked(most, i, j):
    if i.shape[0] <= most:
      return product(i, j)
    found = jax.lax.map(lambda part: product(*part), chunks.split(most, i, j))
    return chunks.join(found, i.shape[0])

  return _by_platform(chunked, a, i, j)


def _by_platform(chunked, rows, *entries):
  """chunked(most entries at once, *entries) with the limit of the platform."""
  at_once = lambda limit: max(1, limit // (4 * rows.shape[1]))
  most = at_once(CHUNK_BYTES)
  return jax.lax.platform_dependent(
    *entries,
    cpu=partial(chunked, min(CPU_CHUNK_ENTRIES, most)),
    cuda=partial(chunked, at_once(GPU_CHUNK_BYTES)),
    default=partial(chunked, most),
  )
