"""Masks of the largest entries over some axes, with a traced number of them.

The k-th largest key is found bit by bit by counting (as in `xla.top_k_set`),
which needs no sort, takes a different number for each row or column, and where
an axis is sharded costs one all-reduce of the counts a bit. Exact: equal scores
at the edge are taken lowest index first, for which shards exchange their counts
per line.

A batch may hold more than 2^31 entries (8,192 rows of 1,048,576 latents hold
2^33), so counts over several axes are kept in two int32 words: entries are
counted along the last axis, and these counts are summed over the others in
units of 2^bits and in the remainder.
"""

import dataclasses
import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from saejax.kernels import mesh
from saejax.kernels.topk import xla

ONE_WORD = 1 << 30  # competing entries below which one word counts them


def largest(
  scores: Array,
  count: Int[Array, "..."] | Float[Array, "..."],
  axes: tuple[int, ...],
  *,
  columns: str | None = mesh.LATENT,
) -> Bool[Array, "..."]:
  """A mask of the `count` largest scores over `axes`.

  Args:
    scores: any shape; int32 as they are, all others compared in float32.
    count: how many, broadcastable to the scores with `axes` of size 1. More
      than there are takes all, 0 or less none. Fractions are rounded down;
      more than 2^31 are given as a float.
    axes: over which entries compete: (-1,) within a row, (0,) within a column
      of [B, n], (0, 1) within the batch.
    columns: mesh axis over which the columns of [B, n] are split where it
      divides them; None if they are not.

  Returns:
    The mask, of the shape of the scores. No gradient.

  Raises:
    ValueError: axes that are not neighbours.
    NotImplementedError: too many entries to be counted in two words.
  """
  axes = tuple(sorted(axis % scores.ndim for axis in axes))
  if axes != tuple(range(axes[0], axes[-1] + 1)):
    raise ValueError(f"axes must be neighbours, got {axes}")
  over = _over(scores.shape, axes, columns)
  if scores.dtype != jnp.int32:
    scores = jax.lax.stop_gradient(scores).astype(jnp.float32)
    scores = xla.ordered_ints(scores)
  shape = [1 if i in axes else size for i, size in enumerate(scores.shape)]
  count = jnp.broadcast_to(count, shape)
  body = partial(_largest, over=over)
  if any(over.names):
    kept = [None if i in axes else name for i, name in enumerate(over.names)]
    specs = (P(*over.names), P(*kept))
    body = mesh.per_shard(body, specs, P(*over.names))
  return body(scores, count)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Over:
  """The axes over which entries compete, and how they are counted.

  Attributes:
    axes: the axes, neighbours.
    names: mesh axis over which each axis of the scores is split, or None.
    bits: bits of the low word of counts.
    one_word: whether counts fit the low word before the carry.
  """

  axes: tuple[int, ...]
  names: tuple[str | None, ...]
  bits: int
  one_word: bool

  @property
  def split(self) -> tuple[str, ...]:
    """Mesh axes over which competing entries are split."""
    return tuple(name for a in self.axes if (name := self.names[a]))


def _over(
  shape: tuple[int, ...], axes: tuple[int, ...], columns: str | None
) -> Over:
  """[B, n] has its rows on `data` and its columns on `columns`; others neither.

  A line of entries along the last axis has a part on each shard.
  """
  names: tuple[str | None, ...] = (None,) * len(shape)
  if len(shape) == 2:
    rows = mesh.axis_or_none(mesh.DATA, shape[0])
    names = (rows, columns and mesh.axis_or_none(columns, shape[1]))
  last = names[axes[-1]]
  parts = mesh.size(last) if last else 1
  outer = tuple(shape[axis] for axis in axes[:-1])
  bits = word_bits((*outer, parts, shape[axes[-1]] // parts))
  whole = math.prod(shape[axis] for axis in axes)
  return Over(axes=axes, names=names, bits=bits, one_word=whole < ONE_WORD)


def _largest(keys: Array, count: Array, *, over: Over) -> Bool[Array, "..."]:
  """`largest` of one shard's keys, which compete with those of all shards."""
  wanted = words(count, over.bits)
  enough = lambda t: _at_least(_total(keys >= t, over), wanted)
  zero = jnp.zeros(count.shape, jnp.int32)
  start = jnp.where(enough(zero), zero, xla.LEAST)

  def set_bit(i, t):
    higher = t + jax.lax.shift_left(jnp.int32(1), jnp.int32(30) - i)
    return jnp.where(enough(higher), higher, t)

  kth = jax.lax.fori_loop(0, 31, set_bit, start)
  above, equal = keys > kth, keys == kth
  missing = _minus(wanted, _total(above, over), over.bits)
  crowded = jnp.any(~_at_least(missing, _total(equal, over)))
  if any(over.names):  # one branch for all devices
    everywhere = tuple(name for name in over.names if name)
    crowded = jax.lax.pmax(crowded.astype(jnp.int32), everywhere) > 0
  first = lambda: _first(equal, missing, over)
  return above | jax.lax.cond(crowded, first, lambda: equal)


# --- counts in two words -----------------------------------------------------


class Count(NamedTuple):
  """A whole number, high 2^bits + low with 0 <= low < 2^bits."""

  high: Int[Array, "..."]
  low: Int[Array, "..."]


def word_bits(shape: tuple[int, ...]) -> int:
  """Bits of the low word of counts over axes of this shape.

  As many as leave room for the sum of one low word for each line along the
  last axis.

  Args:
    shape: sizes of the axes over which entries are counted.

  Raises:
    NotImplementedError: a line, or the high word, would exceed its int32.
  """
  lines, length = math.prod(shape[:-1]), shape[-1]
  bits = 30 - (max(lines, 1) - 1).bit_length()
  if length >= 2**30 or bits < 1 or lines * length >> bits >= 2**30:
    raise NotImplementedError(
      f"entries of shape {list(shape)} are too many to be counted in two words"
    )
  return bits


def words(count: Array, bits: int) -> Count:
  """Splits a count; floats are rounded down, and clipped to [0, 2^(bits+30)].

  Args:
    count: whole numbers or floats, of any shape.
    bits: bits of the low word, see `word_bits`.
  """
  if jnp.issubdtype(count.dtype, jnp.floating):
    # Products with powers of two are exact, and so is what floor leaves.
    count = jnp.clip(count.astype(jnp.float32), 0, 2.0 ** (bits + 30))
    high = jnp.floor(count * 2.0**-bits)
    low = count - high * 2.0**bits
    return Count(high.astype(jnp.int32), low.astype(jnp.int32))
  count = count.astype(jnp.int32)
  return _carried(jnp.zeros_like(count), count, bits)


def add(lines: Int[Array, "..."], axes: tuple[int, ...], bits: int) -> Count:
  """The sum of non-negative counts over `axes`, which are kept with size 1.

  Args:
    lines: counts below 2^30, int32.
    axes: axes to sum over.
    bits: bits of the low word, see `word_bits`.
  """
  high = jnp.sum(lines >> bits, axes, dtype=jnp.int32, keepdims=True)
  low = jnp.sum(lines & ((1 << bits) - 1), axes, dtype=jnp.int32, keepdims=True)
  return _carried(high, low, bits)


def before(lines: Int[Array, "..."], axis: int, bits: int) -> Count:
  """The exclusive cumulative sum of the counts along `axis`.

  Args:
    lines: counts below 2^30, int32.
    axis: axis to sum along.
    bits: bits of the low word, see `word_bits`.
  """
  high, low = lines >> bits, lines & ((1 << bits) - 1)
  sums = lambda part: jnp.cumsum(part, axis=axis) - part
  return _carried(sums(high), sums(low), bits)


def left(wanted: Count, taken: Count, most: int, bits: int) -> Int[Array, ""]:
  """wanted - taken, clipped to [0, most].

  Args:
    wanted: minuend.
    taken: subtrahend, broadcastable to it.
    most: upper bound of the result, below 2^30.
    bits: bits of the low word, see `word_bits`.
  """
  high, low = _minus(wanted, taken, bits)
  whole = jnp.clip(high, 0, most >> bits) << bits
  inside = jnp.minimum(whole + low, most)
  return jnp.where(high < 0, 0, jnp.where(high > most >> bits, most, inside))


def _carried(high: Array, low: Array, bits: int) -> Count:
  return Count(high + (low >> bits), low & ((1 << bits) - 1))


def _minus(a: Count, b: Count, bits: int) -> Count:
  return _carried(a.high - b.high, a.low - b.low, bits)


def _at_least(a: Count, b: Count) -> Bool[Array, "..."]:
  return (a.high > b.high) | ((a.high == b.high) & (a.low >= b.low))


def _total(mask: Bool[Array, "..."], over: Over) -> Count:
  """Set entries of all shards, by one sum over the devices."""
  *outer, last = over.axes
  lines = jnp.sum(mask, last, dtype=jnp.int32, keepdims=True)
  sums = lambda parts: jax.lax.psum(parts, over.split) if over.split else parts
  if over.one_word:
    whole = sums(jnp.sum(lines, outer, dtype=jnp.int32, keepdims=True))
    return _carried(jnp.zeros_like(whole), whole, over.bits)
  high, low = sums(tuple(add(lines, tuple(outer), over.bits)))
  return _carried(high, low, over.bits)


def _first(
  mask: Bool[Array, "..."], count: Count, over: Over
) -> Bool[Array, "..."]:
  """The first `count` set entries of all shards, in index order."""
  axes, last = over.axes, over.axes[-1]
  within = jnp.cumsum(mask.astype(jnp.int32), axis=last)
  own = lines = jnp.sum(mask, axis=last, dtype=jnp.int32, keepdims=True)
  split = [(axis, name) for axis in axes if (name := over.names[axis])]
  for axis, name in split:
    lines = jax.lax.all_gather(lines, name, axis=axis, tiled=True)
  # Lines before each line in the order of the outer axes, then of the shards.
  size = math.prod(lines.shape[axis] for axis in axes)
  shape = (*lines.shape[: axes[0]], size, *lines.shape[last + 1 :])

  def of_this_shard(word):
    word = word.reshape(lines.shape)
    for axis, name in split:
      start = jax.lax.axis_index(name) * own.shape[axis]
      word = jax.lax.dynamic_slice_in_dim(word, start, own.shape[axis], axis)
    return word

  taken = before(lines.reshape(shape), axes[0], over.bits)
  taken = Count(*map(of_this_shard, taken))
  return mask & (within <= left(count, taken, mask.shape[last], over.bits))
