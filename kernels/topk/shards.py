"""The k largest among every shard's own largest entries; in shard_map.

Shards are in index order, so that equal entries are taken lowest index first.
Two forms of equal result. Gathered, a device holds the candidates of all T
shards, 8 T c bytes per row. Counted, it holds those of its own: the k-th largest
is found bit by bit, one all-reduce of a count per row for each bit, and the
chosen entries of all shards, k per row, are put together by one more.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from saejax.kernels.topk import xla

# Candidates of all shards that a device may hold; more of them are counted.
GATHER_BYTES = 1 << 26

Select = Callable[
  [Float[Array, "b c"], int], tuple[Float[Array, "b k"], Int[Array, "b k"]]
]


def gathered(
  values: Float[Array, "b c"],
  indices: Int[Array, "b c"],
  *,
  select: Select,
  k: int,
  axis: str,
) -> tuple[Float[Array, "b k"], Int[Array, "b k"]]:
  """Gathers the candidates of all shards and selects among them.

  Args:
    values: the min(k, columns) largest entries on this shard.
    indices: their columns over all shards.
    select: selection of the k largest of each row.
    k: entries kept.
    axis: mesh axis over which columns are split.
  """
  # As integers, values and indices travel together.
  both = jnp.stack([_bits(values), indices])
  bits, indices = jax.lax.all_gather(both, axis, axis=2, tiled=True)
  values, position = select(_floats(bits, values.dtype), k)
  return values, jnp.take_along_axis(indices, position, axis=-1)


def counted(
  values: Float[Array, "b c"],
  indices: Int[Array, "b c"],
  *,
  select: Select,
  k: int,
  axis: str,
  score: Callable[[Array], Array],
) -> tuple[Float[Array, "b k"], Int[Array, "b k"]]:
  """Finds the k-th largest of all shards by counting; gathers nothing.

  Args:
    values, indices, select, k, axis: see `gathered`.
    score: function of the values by which they are ranked.
  """
  keys = xla.ordered_ints(score(values).astype(jnp.float32))
  total = lambda mask: jnp.sum(mask.astype(jnp.int32), axis=-1, keepdims=True)
  kth = xla.kth_largest(
    keys, lambda t: jax.lax.psum(total(keys >= t), axis) >= k
  )
  above, equal = keys > kth, keys == kth
  missing = k - jax.lax.psum(total(above), axis)
  left = missing - _before(total(equal), axis)
  mask = above | (equal & (xla.ranks(equal) <= left))
  first, size = _before(total(mask), axis), total(mask)
  # This shard's chosen entries, moved to columns first, first + 1, ...
  own = xla.set_positions(mask, values.shape[-1])
  column = jnp.arange(k) - first
  here = (column >= 0) & (column < size)
  source = jnp.take_along_axis(
    own, jnp.clip(column, 0, own.shape[-1] - 1), axis=-1
  )
  # As integers: the sum of one entry and zeros keeps every bit of it.
  take = lambda a: jnp.where(here, jnp.take_along_axis(a, source, axis=-1), 0)
  bits, indices = jax.lax.psum((take(_bits(values)), take(indices)), axis)
  # Brings them into the order of `select`.
  chosen, position = select(_floats(bits, values.dtype), k)
  return chosen, jnp.take_along_axis(indices, position, axis=-1)


def _before(count: Int[Array, "b 1"], axis: str) -> Int[Array, "b 1"]:
  """The sum of the counts of all earlier shards."""
  each = jax.lax.all_gather(count, axis)
  earlier = jnp.arange(each.shape[0]) < jax.lax.axis_index(axis)
  return jnp.sum(jnp.where(earlier[:, None, None], each, 0), axis=0)


def _bits(values: Float[Array, "b c"]) -> Int[Array, "b c"]:
  return jax.lax.bitcast_convert_type(values.astype(jnp.float32), jnp.int32)


def _floats(bits: Int[Array, "b c"], dtype) -> Float[Array, "b c"]:
  return jax.lax.bitcast_convert_type(bits, jnp.float32).astype(dtype)
