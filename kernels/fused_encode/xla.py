"""Encoder and selection in plain JAX, a chunk of rows at a time."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from saejax.kernels import chunks
from saejax.kernels.topk import op as topk

# Pre-activations in memory at once, on each device. On CPU they should stay in
# cache between the matmul and the selection.
CHUNK_BYTES = 1 << 28
CPU_CHUNK_BYTES = 1 << 24
GPU_CHUNK_BYTES = 1 << 30
# Every chunk reads all of W: with fewer rows than some times the ratio of the
# matmul's rate to the bandwidth (184 operations per byte on an H200), reading W
# would take longer than multiplying.
GPU_CHUNK_ROWS = 1024

COMPACT = 8  # a compact form encodes n / 8 latents

Select = Callable[
  [Float[Array, "b n"], int], tuple[Float[Array, "b k"], Int[Array, "b k"]]
]


def selection(*, ordered: bool, magnitude: bool) -> Select:
  """The exact selection of the k largest entries of each row.

  Args:
    ordered: whether entries come largest first; else in index order.
    magnitude: whether entries are ranked by |a|; values keep their signs.
  """
  select = partial(topk.k_largest, ordered=ordered)
  return partial(_by_magnitude, select) if magnitude else select


def _by_magnitude(select: Select, a: Float[Array, "b n"], k: int):
  """A selection on the sizes, with the signed values."""
  _, indices = select(magnitudes(a), k)
  return jnp.take_along_axis(a, indices, axis=-1), indices


def magnitudes(a: Float[Array, "b n"]) -> Float[Array, "b n"]:
  """|a|, but -inf stays the smallest.

  Args:
    a: pre-activations; -inf for latents that do not compete.
  """
  return jnp.where(a > -jnp.inf, jnp.abs(a), a)


def pre_activations(
  x: Float[Array, "b d"], W: Float[Array, "n d"], b: Float[Array, "n"]
) -> Float[Array, "b n"]:
  """x W^T + b, accumulated in float32.

  Args:
    x: rows, in the dtype of W.
    W: encoder rows.
    b: biases, float32.
  """
  return jnp.matmul(x, W.T, preferred_element_type=jnp.float32) + b


def encode_select(
  x: Float[Array, "b d"],
  W: Float[Array, "n d"],
  b: Float[Array, "n"],
  k: int,
  *,
  select: Select,
) -> tuple[Float[Array, "b k"], Int[Array, "b k"]]:
  """The k largest pre-activations of each row, with their latents.

  Args:
    x: rows, in the dtype of the matmul's operands.
    W: encoder rows, in the same dtype.
    b: biases, float32.
    k: entries kept, at most n.
    select: see `selection`.
  """

  def encode(x):
    return select(pre_activations(x, W, b), k)

  def in_chunks(chunk_bytes, x, least: int = 1):
    rows = x.shape[0]
    most = max(least, chunk_bytes // (4 * W.shape[0]))  # a row may be larger
    if rows <= most:
      return encode(x)
    values, indices = jax.lax.map(encode, *chunks.split(most, x))
    return chunks.join(values, rows), chunks.join(indices, rows)

  return jax.lax.platform_dependent(
    x,
    cpu=partial(in_chunks, CPU_CHUNK_BYTES),
    cuda=partial(in_chunks, GPU_CHUNK_BYTES, least=GPU_CHUNK_ROWS),
    default=partial(in_chunks, CHUNK_BYTES),
  )


def encode_select_among(
  x: Float[Array, "b d"],
  W: Float[Array, "n d"],
  b: Float[Array, "n"],
  most: Int[Array, ""],
  k: int,
  *,
  select: Select,
) -> tuple[Float[Array, "b k"], Int[Array, "b k"]]:
  """`encode_select` where few latents may compete: these alone, if they are few.

  Args:
    x, W, k, select: see `encode_select`.
    b: biases; -inf for latents that do not compete.
    most: upper bound of the number of latents that compete.
  """
  n = W.shape[0]
  size = max(k, n // COMPACT)
  whole = partial(encode_select, k=k, select=select)
  if size >= n:
    return whole(x, W, b)

  def compact(x, W, b):
    competes = b != -jnp.inf
    latents = jnp.nonzero(competes, size=size, fill_value=0)[0]
    filled = jnp.arange(size) < jnp.sum(competes)
    b = jnp.where(filled, b[latents], -jnp.inf)
    values, position = whole(x, W[latents], b)
    return values, latents[position]

  return jax.lax.cond(most <= size, compact, whole, x, W, b)
