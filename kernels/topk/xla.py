"""Exact top-k in two levels, in plain JAX.

The k largest entries of a row lie in the k blocks with the largest maxima, so
two small selections (n/s block maxima, then k*s candidates) replace one over n.
Stock `lax.top_k` is a full sort on GPU for k > 16, and on CPU for every type but
float32 or where its values are sliced.
"""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def top_k(
  a: Float[Array, "b n"], k: int, block: int | None = None
) -> tuple[Float[Array, "b k"], Int[Array, "b k"]]:
  """The k largest of each row, largest first, equal ones lowest index first.

  Args:
    a: scores; anything but float32 is selected on in float32, because CPU
      back ends sort every other type in full.
    k: entries kept, at most n.
    block: entries per block; about sqrt(n / k) balances the two levels.
  """
  if k <= _GPU_K:
    return _by_blocks(a, k, block)
  return jax.lax.platform_dependent(
    a,
    cuda=partial(_by_counting, k=k, block=block),
    default=partial(_by_blocks, k=k, block=block),
  )


def _by_counting(a, k: int, block: int | None = None):
  """The set by counting, and a sort of its k entries alone."""
  values, indices = top_k_set(a, k, block)
  keys = ~ordered_ints(values.astype(jnp.float32))  # largest first
  _, values, indices = jax.lax.sort((keys, values, indices), num_keys=1)
  return values, indices


def _by_blocks(a, k: int, block: int | None = None):
  """`lax.top_k` of the blocks' maxima, then of the entries of k blocks."""
  rows, n = a.shape
  keys = a.astype(jnp.float32)
  block = block or block_size(n, k)
  if n <= 8 * k or block < 2:
    values, indices = jax.lax.top_k(keys, k)
    return values.astype(a.dtype), indices
  blocks = padded(keys, block, -jnp.inf).reshape(rows, -1, block)
  # As integers: the maximum of floats may drop a NaN on CPU, and takes -0.0 and
  # 0.0 for equal.
  largest = floats(jnp.max(ordered_ints(blocks), axis=-1))
  _, chosen = jax.lax.top_k(largest, k)
  # In index order, so that ties among candidates fall to the lowest index.
  chosen = jnp.sort(chosen, axis=-1)
  candidates = jnp.take_along_axis(blocks, chosen[..., None], axis=1)
  values, position = jax.lax.top_k(candidates.reshape(rows, k * block), k)
  first = jnp.take_along_axis(chosen, position // block, axis=1) * block
  return values.astype(a.dtype), first + position % block


def top_k_set(
  a: Float[Array, "b n"], k: int, block: int | None = None
) -> tuple[Float[Array, "b k"], Int[Array, "b k"]]:
  """The k largest of each row in index order, equal ones lowest index first.

  The same two levels, each without a sort: the k-th largest is found bit by bit
  by counting, which vectorises where a sort does not, and the entries above it
  are compacted by prefix sums.

  Args:
    a: scores; selected on in float32.
    k: entries kept, at most n.
    block: entries per block; about sqrt(n / k) balances the two levels.
  """
  n = a.shape[-1]
  block = block or block_size(n, k)
  keys = ordered_ints(a.astype(jnp.float32))
  if n <= 8 * k or block < 2:
    indices = _k_largest(keys, k)
    chosen = jnp.take_along_axis(keys, indices, axis=1)
  else:
    blocks = padded(keys, block, LEAST).reshape(keys.shape[0], -1, block)
    which = _k_largest(jnp.max(blocks, axis=-1), k)
    candidates = jnp.take_along_axis(blocks, which[..., None], axis=1)
    candidates = candidates.reshape(-1, k * block)
    position = _k_largest(candidates, k)
    chosen = jnp.take_along_axis(candidates, position, axis=1)
    first = jnp.take_along_axis(which, position // block, axis=1) * block
    indices = first + position % block
  return floats(chosen).astype(a.dtype), indices


LEAST = -(2**31)
_GPU_K = 16  # up to which `lax.top_k` on a GPU is a kernel and no sort
GROUP = 16  # entries whose prefix sums are taken together


def ordered_ints(a: Float[Array, "b n"]) -> Int[Array, "b n"]:
  """Integers in the order of the floats; its own inverse up to the cast.

  Args:
    a: floats, in float32.
  """
  bits = jax.lax.bitcast_convert_type(a, jnp.int32)
  return jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def floats(keys: Int[Array, "b n"]) -> Float[Array, "b n"]:
  bits = jnp.where(keys < 0, keys ^ 0x7FFFFFFF, keys)
  return jax.lax.bitcast_convert_type(bits, jnp.float32)


def _k_largest(keys: Int[Array, "b n"], k: int) -> Int[Array, "b k"]:
  """Positions of the k largest, ascending; equal keys lowest position first."""
  # Summed over a long stride first: over neighbours the sums do not vectorise.
  strided = padded(keys, GROUP, LEAST).reshape(keys.shape[0], GROUP, -1)

  def enough(t):
    hits = (strided >= t[..., None]).astype(jnp.int32)
    return jnp.sum(jnp.sum(hits, axis=1), axis=-1, keepdims=True) >= k

  kth = kth_largest(keys, enough)
  above, equal = keys > kth, keys == kth
  missing = k - jnp.sum(above.astype(jnp.int32), axis=-1, keepdims=True)
  return set_positions(above | (equal & (ranks(equal) <= missing)), k)


def kth_largest(
  keys: Int[Array, "b n"], enough: Callable[[Array], Array]
) -> Int[Array, "b 1"]:
  """The largest t for which `enough(t)`, one bit at a time.

  Args:
    keys: one row for each t.
    enough: whether at least k keys are t or more.
  """
  zero = jnp.zeros((keys.shape[0], 1), jnp.int32)
  start = jnp.where(enough(zero), zero, LEAST)

  def set_bit(i, t):
    higher = t + jax.lax.shift_left(jnp.int32(1), jnp.int32(30) - i)
    return jnp.where(enough(higher), higher, t)

  def rounds(start, unroll):
    return jax.lax.fori_loop(0, 31, set_bit, start, unroll=unroll)

  # On a GPU every trip of a loop starts kernels for its counter as well.
  return jax.lax.platform_dependent(
    start, cuda=partial(rounds, unroll=31), default=partial(rounds, unroll=1)
  )


def ranks(mask: Bool[Array, "b n"]) -> Int[Array, "b n"]:
  """Set entries up to and with each one.

  Args:
    mask: the entries.
  """
  within, before = prefix_sums(mask)
  rank = (within + before[..., None]).reshape(mask.shape[0], -1)
  # Counts fit float32 exactly: rows are far shorter than 2^24.
  return rank[:, : mask.shape[-1]].astype(jnp.int32)


def set_positions(mask: Bool[Array, "b n"], k: int) -> Int[Array, "b k"]:
  """Positions of the first k set entries of each row, ascending.

  Args:
    mask: the entries; where fewer than k are set, what follows is undefined.
    k: entries wanted.
  """
  within, before = prefix_sums(mask)
  upto = before + within[..., -1]
  j = jnp.arange(1, k + 1, dtype=upto.dtype)
  group = jnp.sum((upto[:, None] < j[:, None]).astype(jnp.int32), axis=-1)
  inside = jnp.take_along_axis(within, group[..., None], axis=1)
  left = j - jnp.take_along_axis(before, group, axis=1)
  position = jnp.sum((inside < left[..., None]).astype(jnp.int32), axis=-1)
  return group * GROUP + position


def prefix_sums(
  mask: Bool[Array, "b n"],
) -> tuple[Float[Array, "b g s"], Float[Array, "b g"]]:
  """Set entries up to each one in its group, and before each group.

  By products with triangles of ones: a cumulative sum is slow on every back
  end.

  Args:
    mask: the entries; the last group of `GROUP` is filled with none.
  """
  groups = padded(mask, GROUP, False).reshape(mask.shape[0], -1, GROUP)
  within = groups.astype(jnp.float32) @ _triangle(GROUP, 0)
  total = within[..., -1]
  return within, total @ _triangle(total.shape[-1], 1)


def _triangle(size: int, diagonal: int) -> Float[Array, "s s"]:
  return jnp.triu(jnp.ones((size, size), jnp.float32), diagonal)


def padded(a: Array, multiple: int, value) -> Array:
  return jnp.pad(
    a, ((0, 0), (0, -a.shape[-1] % multiple)), constant_values=value
  )


def block_size(n: int, k: int) -> int:
  """The power of two nearest sqrt(n / k), at most 64."""
  return min(64, 2 ** round(0.5 * math.log2(max(n / k, 1))))
