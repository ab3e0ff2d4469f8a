"""Which entries are the largest over chosen axes, their number traced.

The k-th largest key is found bit by bit by counting (as in `xla.top_k_set`),
which needs no sort, takes a different number for each row or column, and where
an axis is sharded costs one all-reduce a bit. Exact: equal scores at the edge
are taken lowest index first.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from saejax.kernels.topk import xla


def largest(
  scores: Array, count: Int[Array, "..."], axes: tuple[int, ...]
) -> Bool[Array, "..."]:
  """A mask of the `count` largest scores over `axes`.

  Args:
    scores: any shape; compared in float32.
    count: how many, broadcastable to the scores with `axes` of size 1. More
      than there are takes all, 0 or less none.
    axes: over which entries compete: (-1,) within a row, (0,) within a column
      of [B, n], (0, 1) within the batch.

  Returns:
    The mask, of the shape of the scores. No gradient.
  """
  axes = tuple(sorted(axis % scores.ndim for axis in axes))
  scores = jax.lax.stop_gradient(scores).astype(jnp.float32)
  keys = xla.ordered_ints(scores)
  total = lambda mask: jnp.sum(mask, axes, dtype=jnp.int32, keepdims=True)
  count = jnp.asarray(count, jnp.int32)
  enough = lambda t: total(keys >= t) >= count

  zero = jnp.zeros_like(total(keys > 0))
  start = jnp.where(enough(zero), zero, xla.LEAST)

  def set_bit(i, t):
    higher = t + jax.lax.shift_left(jnp.int32(1), jnp.int32(30) - i)
    return jnp.where(enough(higher), higher, t)

  kth = jax.lax.fori_loop(0, 31, set_bit, start)
  above, equal = keys > kth, keys == kth
  missing = count - total(above)
  crowded = jnp.any(total(equal) > missing)
  first = lambda: equal & (_rank(equal, axes) <= missing)
  return above | jax.lax.cond(crowded, first, lambda: equal)


def _rank(mask: Bool[Array, "..."], axes: tuple[int, ...]) -> Int[Array, "..."]:
  """Number of set entries up to each one, in index order over `axes`."""
  *outer, last = axes
  within = jnp.cumsum(mask.astype(jnp.int32), axis=last)
  if not outer:
    return within
  if axes != tuple(range(axes[0], axes[-1] + 1)):
    raise ValueError(f"axes must be neighbours, got {axes}")
  # Whole lines before each line, in the order of the outer axes.
  shape = tuple(mask.shape[axis] for axis in outer)
  lead = mask.shape[: axes[0]]
  lines = jnp.sum(mask, axis=last, dtype=jnp.int32, keepdims=True)
  flat = lines.reshape(*lead, math.prod(shape), *lines.shape[last:])
  before = jnp.cumsum(flat, axis=axes[0]) - flat
  return within + before.reshape(lines.shape)
