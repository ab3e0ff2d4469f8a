"""Encoder and exact selection in one pass over the latents, for TPUs.

    a = x W^T + b;  values, indices = top_k(a)

No array [B, n] exists. The first kernel multiplies tiles of rows and latents
and inserts each tile of pre-activations into running candidates: latent i
belongs to bucket i mod L, and each bucket keeps its m largest entries, values
in float32 and tile numbers in int32. Entries move down only for a strictly
larger one, so that a bucket's candidates are in the order of `lax.top_k`. The
second kernel takes the k largest candidates, one by one: the largest first
candidate of all buckets, the lowest index among equal ones.

Certificate: what a bucket dropped is at most its m-th candidate. Let the pivot
be the largest of these over the buckets. Where the k-th value is strictly above
it, nothing dropped is among the k largest, and nothing dropped equals the k-th.
Rows without that, and the rare rows whose values include 0 (-0.0 and 0.0 are
equal here and ordered in `lax.top_k`), +inf or NaN (which is inserted as +inf),
are redone densely, a chunk of rows at a time.

Tiling: grid (B / rows, n / L, rows / strip). The rows' block of x and the
candidates stay in VMEM while W streams through it once per `rows` rows; the
innermost axis reuses a tile of W for several strips of rows. Memory: HBM holds
the candidates, 8 m L bytes per row (16 to 57 KB, against 4 n), and one chunk
[c, n] of redone rows; VMEM holds what `_vmem_bytes` counts.

For exchangeable latents a row is redone with probability about
L P[Poisson(k / L) >= m]; m is the smallest for which it is below 1e-5. Rows
whose largest latents share a bucket cost time, never exactness.

Compiled and counted, not timed (benchmarks/tpu_bundles.py): the insertion is
nearly hidden behind the matmul at d 2304 on v5e and v5p and doubles a tile's
bundles on v6e, 205 for each level of m. Tried and dropped: two and four tiles of
latents at once (as many bundles per tile or more), winners in groups of 32 rows
(spills: 42 bundles per 8 rows against 32).
"""

import dataclasses
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float, Int

from saejax.kernels.fused_encode import xla

LANES = 128
REDONE = 1e-5  # probability that a row of exchangeable latents is redone
MAX_DEPTH = 8
VMEM_BYTES = 56 << 20  # of the 64 MiB of a v5p core
REDO_BYTES = 1 << 24  # pre-activations of redone rows in memory at once
# Indices are compared as float32, with a half for a sign.
MAX_LATENTS = 1 << 23


@dataclasses.dataclass(frozen=True, kw_only=True)
class Blocks:
  """Sizes of the blocks.

  Attributes:
    rows: rows whose candidates stay in VMEM.
    strip: rows multiplied at once; divides `rows`.
    group: rows whose k largest are taken together; divides `rows`.
    buckets: L, latents per tile; a multiple of 128.
    depth: m, candidates per bucket.
  """

  rows: int = 512
  strip: int = 256
  group: int = 16
  buckets: int = 512
  depth: int = 4


def blocks(rows: int, n: int, d: int, k: int, dtype: Any) -> Blocks | None:
  """Block sizes for a shape, None where there is no kernel for it.

  Args:
    rows: number of rows.
    n: latents on this device.
    d: width.
    k: entries kept per row.
    dtype: dtype of the operands.
  """
  if jnp.dtype(dtype) not in (jnp.float32, jnp.bfloat16) or n >= MAX_LATENTS:
    return None
  buckets = 512 if k <= 128 else 1024
  depth = next(
    (m for m in range(2, MAX_DEPTH + 1) if _tail(k, buckets, m) < REDONE), None
  )
  if depth is None or k > n:
    return None
  strip = min(256, _up(rows, 16))
  for size in (512, 256, 128):
    size = min(size, _up(rows, strip))
    found = Blocks(
      rows=size, strip=min(strip, size), buckets=buckets, depth=depth
    )
    if _vmem_bytes(found, d, dtype) <= VMEM_BYTES:
      return found
  return None


def pays(n: int, found: Blocks) -> bool:
  """Whether the candidates are few enough beside the latents.

  Args:
    n: latents on this device.
    found: block sizes.
  """
  return n >= 4 * found.buckets * found.depth


def _tail(k: int, buckets: int, depth: int) -> float:
  """L P[Poisson(k / L) >= m]."""
  mean = k / buckets
  below = sum(mean**i / math.factorial(i) for i in range(depth))
  return buckets * max(0.0, 1 - math.exp(-mean) * below)


def _up(size: int, multiple: int) -> int:
  return -(-size // multiple) * multiple


def _vmem_bytes(blocks: Blocks, d: int, dtype: Any) -> int:
  """VMEM of the first kernel: its blocks twice, and a tile of values."""
  operands = (blocks.rows + blocks.buckets) * _up(d, LANES)
  candidates = 8 * blocks.rows * blocks.depth * blocks.buckets
  tile = 4 * blocks.strip * blocks.buckets
  return 2 * (operands * jnp.dtype(dtype).itemsize + candidates) + 4 * tile


def encode_select(
  x: Float[Array, "b d"],
  W: Float[Array, "n d"],
  b: Float[Array, "n"],
  *,
  k: int,
  ordered: bool = True,
  magnitude: bool = False,
  sizes: Blocks,
  interpret: Any = False,
) -> tuple[Float[Array, "b k"], Int[Array, "b k"], Bool[Array, "b"]]:
  """The k largest pre-activations of each row, their latents, and redone rows.

  Args:
    x: rows, in the dtype of the matmul's operands.
    W: encoder rows, in the same dtype.
    b: biases, float32; -inf for latents that do not compete.
    k: entries kept.
    ordered: whether entries come largest first; else in index order.
    magnitude: whether entries are ranked by |a|; values keep their signs.
    sizes: block sizes.
    interpret: see `dispatch.Setting`.

  Returns:
    Values and indices [b, k], largest first and equal ones lowest index first
    or in index order, and whether each row was uncertified and redone.

  Raises:
    NotImplementedError: fewer candidates than k, or too many latents for
      float32 indices.
  """
  (rows, _), n = x.shape, W.shape[0]
  if k > sizes.buckets * sizes.depth or n >= MAX_LATENTS:
    raise NotImplementedError(
      f"k={k} of n={n} latents with {sizes.buckets} buckets of {sizes.depth}"
    )
  values, tiles = _candidates(x, W, b, magnitude, sizes, interpret)
  values, codes, certified = _largest(values, tiles, k, sizes, interpret)
  values, codes = values[:rows, :k], codes[:rows, :k]
  indices = codes.astype(jnp.int32)
  if magnitude:
    values = jnp.where(codes > indices.astype(codes.dtype), -values, values)
  if not ordered:
    indices, values = jax.lax.sort((indices, values), num_keys=1)
  redo = certified[:rows, 0] == 0
  dense = partial(_dense, k=k, ordered=ordered, magnitude=magnitude)
  return (*_redone(x, W, b, values, indices, redo, dense), redo)


# --- candidates --------------------------------------------------------------


def _candidates(x, W, b, magnitude: bool, sizes: Blocks, interpret):
  """Values and tile numbers of each row's candidates, [B, m L]; B padded."""
  rows, strip, buckets = sizes.rows, sizes.strip, sizes.buckets
  (B, d), n = x.shape, W.shape[0]
  more_rows, more, wider = -B % rows, -n % buckets, -d % LANES
  x = jnp.pad(x, ((0, more_rows), (0, wider)))
  W = jnp.pad(W, ((0, more), (0, wider)))
  b = jnp.pad(b.astype(jnp.float32), (0, more), constant_values=-jnp.inf)
  (B, d), n = x.shape, W.shape[0]
  kept = sizes.depth * buckets
  block = pl.BlockSpec((rows, kept), lambda i, j, s: (i, 0))
  return pl.pallas_call(
    partial(_insert_tile, magnitude=magnitude, sizes=sizes),
    grid=(B // rows, n // buckets, rows // strip),
    in_specs=[
      pl.BlockSpec((rows, d), lambda i, j, s: (i, 0)),
      pl.BlockSpec((buckets, d), lambda i, j, s: (j, 0)),
      pl.BlockSpec((1, buckets), lambda i, j, s: (0, j)),
    ],
    out_specs=[block, block],
    out_shape=[
      jax.ShapeDtypeStruct((B, kept), dtype)
      for dtype in (jnp.float32, jnp.int32)
    ],
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel", "arbitrary", "arbitrary"),
      vmem_limit_bytes=_vmem_bytes(sizes, d, x.dtype) + (8 << 20),
    ),
    cost_estimate=pl.CostEstimate(
      flops=2 * B * d * n,
      transcendentals=0,
      bytes_accessed=x.dtype.itemsize * d * (B + n * B // rows) + 8 * B * kept,
    ),
    interpret=interpret,
    name="encode_candidates",
  )(x, W, b[None])


def _insert_tile(x, W, b, values, tiles, *, magnitude: bool, sizes: Blocks):
  """Inserts the pre-activations of one tile of latents into the candidates."""
  tile = pl.program_id(1)
  start = pl.multiple_of(pl.program_id(2) * sizes.strip, sizes.strip)
  rows = pl.ds(start, sizes.strip)

  @pl.when(tile == 0)
  def _():
    shape = (sizes.strip, values.shape[1])
    values[rows, :] = jnp.full(shape, -jnp.inf, jnp.float32)
    tiles[rows, :] = jnp.zeros(shape, jnp.int32)

  a = jax.lax.dot_general(
    x[rows, :],
    W[...],
    (((1,), (1,)), ((), ())),
    preferred_element_type=jnp.float32,
  )
  a = a + b[...]
  key = jnp.where(a == a, a, jnp.inf)  # a row with +inf is redone
  number = jnp.full(a.shape, tile, jnp.int32)
  if magnitude:
    number = jnp.where(key < 0, ~number, number)
    key = jnp.where(key > -jnp.inf, jnp.abs(key), key)
  levels = [
    pl.ds(level * sizes.buckets, sizes.buckets) for level in range(sizes.depth)
  ]
  kept = [(values[rows, at], tiles[rows, at]) for at in levels]
  above = None
  for level, at in enumerate(levels):
    value, mark = kept[level]
    here = key > value
    value, mark = jnp.where(here, key, value), jnp.where(here, number, mark)
    if above is not None:  # the entry of the level above moves down
      value = jnp.where(above, kept[level - 1][0], value)
      mark = jnp.where(above, kept[level - 1][1], mark)
    values[rows, at], tiles[rows, at] = value, mark
    above = here


# --- the k largest candidates ------------------------------------------------


def _largest(values, tiles, k: int, sizes: Blocks, interpret):
  """The k largest candidates of each row, largest first.

  Returns:
    Values and codes [B, k rounded up to 128]; a code is the index, with .5
    added where the entry is negative and ranked by magnitude. And [B, 1],
    whether the row is certified.
  """
  (B, kept), group = values.shape, sizes.group
  width = _up(k, LANES)
  block = lambda columns: pl.BlockSpec((group, columns), lambda i: (i, 0))
  return pl.pallas_call(
    partial(_take_largest, k=k, sizes=sizes),
    grid=(B // group,),
    in_specs=[block(kept), block(kept)],
    out_specs=[block(width), block(width), block(1)],
    out_shape=[
      jax.ShapeDtypeStruct((B, columns), jnp.float32)
      for columns in (width, width, 1)
    ],
    scratch_shapes=[pltpu.VMEM((group, kept), jnp.float32)],
    compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",)),
    interpret=interpret,
    name="encode_largest",
  )(values, tiles)


def _take_largest(
  values, tiles, values_out, codes_out, certified, codes, *, k, sizes: Blocks
):
  """Takes the largest first candidate of all buckets, k times."""
  buckets, depth = sizes.buckets, sizes.depth
  lane = jax.lax.broadcasted_iota(jnp.int32, (sizes.group, buckets), 1)
  column = jax.lax.broadcasted_iota(jnp.int32, values_out.shape, 1)
  levels = [pl.ds(level * buckets, buckets) for level in range(depth)]
  for at in levels:
    tile = tiles[:, at]
    index = jnp.where(tile < 0, ~tile, tile) * buckets + lane
    codes[:, at] = index.astype(jnp.float32) + jnp.where(tile < 0, 0.5, 0.0)
  pivot = jnp.max(values[:, levels[-1]], axis=1, keepdims=True)

  def take(t, state):
    first, code, level, largest, chosen, _, unsure = state
    top = jnp.max(first, axis=1, keepdims=True)
    ties = jnp.where(first == top, code, 2.0 * MAX_LATENTS)
    winner = jnp.min(ties, axis=1, keepdims=True)
    hit = ties == winner
    level = jnp.where(hit, level + 1, level)
    first = jnp.where(hit, -jnp.inf, first)
    for i, at in enumerate(levels[1:], 1):  # the bucket's next candidate
      here = hit & (level == i)
      first = jnp.where(here, values[:, at], first)
      code = jnp.where(here, codes[:, at], code)
    largest = jnp.where(column == t, top, largest)
    chosen = jnp.where(column == t, winner, chosen)
    odd = jnp.where((top == 0) | (top == jnp.inf), 1.0, unsure)
    return first, code, level, largest, chosen, top, odd

  zeros = jnp.zeros(values_out.shape, jnp.float32)
  one = jnp.zeros((sizes.group, 1), jnp.float32)
  first = values[:, levels[0]], codes[:, levels[0]], jnp.zeros_like(lane)
  state = (*first, zeros, zeros, one, one)
  *_, largest, chosen, kth, unsure = jax.lax.fori_loop(0, k, take, state)
  values_out[...], codes_out[...] = largest, chosen
  sure = (kth > pivot) & (unsure == 0)
  certified[...] = jnp.where(sure, 1.0, 0.0)


# --- rows without a certificate ----------------------------------------------


def _redone(x, W, b, values, indices, redo, dense):
  """Selects densely in the rows marked `redo`, a chunk of them at a time."""
  B = x.shape[0]
  chunk = min(B, max(8, REDO_BYTES // (4 * W.shape[0])))
  upto = jnp.cumsum(redo.astype(jnp.int32))

  def of_chunk(state):
    done, values, indices = state
    number = done + jnp.arange(chunk)
    # The row that is the c-th to be redone; B and more where none is left.
    row = jnp.sum((upto[None] <= number[:, None]).astype(jnp.int32), axis=1)
    row = jnp.where(row == B, B + jnp.arange(chunk), row)
    put = lambda out, new: out.at[row].set(
      new, mode="drop", indices_are_sorted=True, unique_indices=True
    )
    new = dense(x.at[row].get(mode="fill", fill_value=0), W, b)
    # libtpu 0.0.42 aborts at k = 128 where it fuses these with the scatter.
    new = jax.lax.optimization_barrier(new)
    return done + chunk, put(values, new[0]), put(indices, new[1])

  start = (jnp.int32(0), values, indices)
  return jax.lax.while_loop(lambda s: s[0] < upto[-1], of_chunk, start)[1:]


def _dense(x, W, b, *, k: int, ordered: bool, magnitude: bool):
  """Dense selection; nothing wider than k is sorted, as sorts compile slowly."""
  a = xla.pre_activations(x, W, b)
  values, indices = xla.selection(ordered=False, magnitude=magnitude)(a, k)
  if ordered:
    largest_first = xla.selection(ordered=True, magnitude=magnitude)
    values, position = largest_first(values, k)
    indices = jnp.take_along_axis(indices, position, axis=-1)
  return values, indices
