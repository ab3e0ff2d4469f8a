"""Sparse products in plain JAX that never hold a [b, k, d] array.

Decode is a scan over groups of 8 row gathers, which compilers fuse into one
loop; the sampled product and the row scatter go over chunks of rows on CPU,
where a whole-batch gather or scatter spends its time allocating.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

GROUP = 8
CHUNK_ROWS = 128


def decode(
  values: Float[Array, "b k"],
  indices: Int[Array, "b k"],
  W: Float[Array, "n d"],
) -> Float[Array, "b d"]:
  """sum_j values[b, j] W[indices[b, j]] in float32."""
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
  """<g[b], W[indices[b, j]]> in float32."""

  def product(g, indices):
    w = jnp.take(W, indices, axis=0, mode="clip")
    return jnp.einsum("bd,bkd->bk", g, w, preferred_element_type=jnp.float32)

  return jax.lax.platform_dependent(
    g,
    indices,
    cpu=lambda g, i: _in_chunks(product, g, i),
    default=product,
  )


def scatter_rows(
  values: Float[Array, "b k"],
  indices: Int[Array, "b k"],
  y: Float[Array, "b d"],
  n: int,
) -> Float[Array, "n d"]:
  """Row i: the sum of values[b, j] y[b] over all (b, j) with indices = i."""

  def add(total, chunk):
    v, i, y = chunk
    rows = v[..., None] * y[:, None, :].astype(jnp.float32)
    # An index outside [0, n) is dropped: rows of another shard, padding.
    return total.at[i].add(rows, mode="drop"), None

  def chunked(*arrays):
    size = _chunk(values.shape[0])
    split = [a.reshape(-1, size, *a.shape[1:]) for a in arrays]
    return jax.lax.scan(add, jnp.zeros((n, y.shape[1])), split)[0]

  return jax.lax.platform_dependent(
    values.astype(jnp.float32),
    indices,
    y,
    cpu=chunked,
    default=lambda *arrays: add(jnp.zeros((n, y.shape[1])), arrays)[0],
  )


def _in_chunks(f, *arrays):
  size = _chunk(arrays[0].shape[0])
  split = [a.reshape(-1, size, *a.shape[1:]) for a in arrays]
  out = jax.lax.map(lambda parts: f(*parts), split)
  return out.reshape(-1, *out.shape[2:])


def _chunk(rows: int) -> int:
  """The largest divisor of `rows` that is at most CHUNK_ROWS."""
  return next(c for c in range(min(rows, CHUNK_ROWS), 0, -1) if rows % c == 0)
