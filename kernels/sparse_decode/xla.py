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
# On GPUs the gathered rows stay inside one fusion, whatever their number; chunks
# only keep its indices below 2^31.
GPU_CHUNK_BYTES = 1 << 32


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
  k, d = indices.shape[1], g.shape[1]

  def product(g, indices):
    w = jnp.take(W, indices, axis=0, mode="clip")
    return jnp.einsum("bd,bkd->bk", g, w, preferred_element_type=jnp.float32)

  def chunked(most, g, indices):
    rows = g.shape[0]
    if rows <= most:
      return product(g, indices)
    parts = chunks.split(most, g, indices)
    return chunks.join(jax.lax.map(lambda part: product(*part), parts), rows)

  most = _rows_at_once(k, d, CHUNK_BYTES)
  return jax.lax.platform_dependent(
    g,
    indices,
    cpu=partial(chunked, min(CPU_CHUNK_ROWS, most)),
    cuda=partial(chunked, _rows_at_once(k, d, GPU_CHUNK_BYTES)),
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
  k, d = values.shape[1], y.shape[1]

  def add(total, chunk):
    v, i, y = chunk
    rows = v[..., None] * y[:, None, :].astype(jnp.float32)
    # An index outside [0, n) is dropped: rows of another shard, padding.
    return total.at[i].add(rows, mode="drop"), None

  def chunked(most, *arrays):
    start = jnp.zeros((n, d))
    if y.shape[0] <= most:
      return add(start, arrays)[0]
    return jax.lax.scan(add, start, chunks.split(most, *arrays))[0]

  most = _rows_at_once(k, d, CHUNK_BYTES)
  return jax.lax.platform_dependent(
    values.astype(jnp.float32),
    indices,
    y,
    cpu=partial(chunked, min(CPU_CHUNK_ROWS, most)),
    cuda=partial(chunked, _rows_at_once(k, d, GPU_CHUNK_BYTES)),
    default=partial(chunked, most),
  )


def scatter_scalars(
  values: Float[Array, "b k"], indices: Int[Array, "b k"], n: int
) -> Float[Array, "n"]:
  """Entry i: the sum of values[b, j] over all (b, j) with indices = i.

  Args:
    values: terms, float32; 0 where absent.
    indices: entry of the result of each term.
    n: entries of the result.
  """
  return jax.lax.platform_dependent(
    values,
    indices,
    cuda=partial(_scatter_quads, n=n),
    default=partial(_scatter_scalars, n=n),
  )


def _scatter_scalars(values, indices, n: int):
  return jnp.zeros((n,), values.dtype).at[indices].add(values)


def _scatter_quads(values, indices, n: int):
  """The same in groups of four, of which three are 0.

  jaxlib 0.10 adds single floats on GPUs by compare-and-swap, retried for every
  row that shares a latent, but four neighbours by one vector atomic.
  """
  quads = jnp.pad(values[..., None], ((0, 0), (0, 0), (0, 3)))
  return jnp.zeros((n, 4), values.dtype).at[indices].add(quads)[:, 0]


def _rows_at_once(k: int, d: int, chunk_bytes: int) -> int:
  """Rows whose k gathered rows of width d, float32, fill a chunk."""
  return max(1, chunk_bytes // (4 * k * d))
