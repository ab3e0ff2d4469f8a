"""Sparse products in plain JAX that never hold a [b, k, d] array.

Decode is a scan over groups of 8 row gathers, which compilers fuse into one
loop; the sampled product and the row scatter go over chunks of rows whose
gathered rows stay below `CHUNK_BYTES` (k may be d/2 in AuxK), and over smaller
ones on CPU, where a whole-batch gather or scatter spends its time allocating.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from saejax.kernels import chunks

GROUP = 8
CPU_CHUNK_ROWS = 128
CHUNK_BYTES = 1 << 28


def decode(
  values: Float[Array, "b k"],
  indices: Int[Array, "b k"],
  W: Float[Array, "n d"],
) -> Float[Array, "b d"]:
  """sum_j values[b, j] W[indices[b, j]] in float32.

  See `op.decode_rows` for the arguments.
  """
  padding = -values.shape[1] % GROUP
  values = jnp.pad(values, ((0, 0), (0, padding)))
  indices = jnp.pad(indices, ((0, 0), (0, padding)))
  groups = lambda a: jnp.moveaxis(a.reshape(a.shape[0], -1, GROUP), 1, 0)

  def add_group(total, group):
    v, i = group
    for j in range(GROUP):
      w = jnp.take(W, i[:, j], axis=0, mode="clip").astype(jnp.float32)
      total += jnp.where(v[:, j, None] != 0, v[:, j, None] * w, 0)
    return total, None

  start = jnp.zeros((values.shape[0], W.shape[1]), jnp.float32)
  values = values.astype(jnp.float32)
  return jax.lax.scan(add_group, start, (groups(values), groups(indices)))[0]


def sampled_product(
  g: Float[Array, "b d"], W: Float[Array, "n d"], indices: Int[Array, "b k"]
) -> Float[Array, "b k"]:
  """<g[b], W[indices[b, j]]> in float32.

  See `op.sampled_product` for the arguments.
  """

  def product(g, indices):
    w = jnp.take(W, indices, axis=0, mode="clip")
    return jnp.einsum("bd,bkd->bk", g, w, preferred_element_type=jnp.float32)

  def chunked(most, g, indices):
    rows = g.shape[0]
    if rows <= most:
      return product(g, indices)
    parts = chunks.split(most, g, indices)
    return chunks.join(jax.lax.map(lambda part: product(*part), parts), rows)

  most = _rows_at_once(indices.shape[1], g.shape[1])
  return jax.lax.platform_dependent(
    g,
    indices,
    cpu=partial(chunked, min(CPU_CHUNK_ROWS, most)),
    default=partial(chunked, most),
  )


def scatter_rows(
  values: Float[Array, "b k"],
  indices: Int[Array, "b k"],
  y: Float[Array, "b d"],
  n: int,
) -> Float[Array, "n d"]:
  """Row i: the sum of values[b, j] y[b] over all (b, j) with indices = i.

  See `op.scatter_rows` for the arguments.
  """

  def add(total, chunk):
    v, i, y = chunk
    rows = v[..., None] * y[:, None, :].astype(jnp.float32)
    # An index outside [0, n) is dropped: rows of another shard, padding.
    return total.at[i].add(rows, mode="drop"), None

  def chunked(most, *arrays):
    start = jnp.zeros((n, y.shape[1]))
    if y.shape[0] <= most:
      return add(start, arrays)[0]
    return jax.lax.scan(add, start, chunks.split(most, *arrays))[0]

  most = _rows_at_once(values.shape[1], y.shape[1])
  return jax.lax.platform_dependent(
    values.astype(jnp.float32),
    indices,
    y,
    cpu=partial(chunked, min(CPU_CHUNK_ROWS, most)),
    default=partial(chunked, most),
  )


def _rows_at_once(k: int, d: int) -> int:
  """Rows whose k gathered rows of width d, float32, fill CHUNK_BYTES."""
  return max(1, CHUNK_BYTES // (4 * k * d))
