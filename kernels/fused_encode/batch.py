"""The largest pre-activations of a whole batch, as a list of entries.

    a = (x - b_pre) W_enc^T + b_enc;  the `count` largest a_bi over all b and i

On one device exactly, in two levels, as `topk.xla` does it for a row: the N
largest entries lie in the N blocks of latents with the largest maxima. On a TPU
the candidates are instead those that the Pallas form finds row by row, without
[B, n]; where a row has no candidate to spare, the two levels are taken. With rows
or latents split over devices, the candidates of each row are those of
`op.encode_topk`, and the result says whether they were enough.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from saejax.kernels import dispatch, mesh
from saejax.kernels.entries import op as entries
from saejax.kernels.fused_encode import op, tpu, xla
from saejax.kernels.topk import native, select
from saejax.kernels.topk import xla as topk

# Pre-activations of a batch that a device may hold.
BATCH_BYTES = 1 << 32
# Candidates of a row, times the mean number kept. What the fullest of 512 to
# 1,024 rows keeps was seen to be 2.5 to 4 times the mean, and up to 10 times in
# the first steps.
CANDIDATES = 4


class Largest(NamedTuple):
  """Entries of a batch, row by row.

  Attributes:
    values: pre-activations; 0, without a gradient, beyond the last entry of
      each shard.
    rows, indices: row and latent of each.
    exact: whether these are all; None where they always are.
  """

  values: Float[Array, "e"]
  rows: Int[Array, "e"]
  indices: Int[Array, "e"]
  exact: Bool[Array, ""] | None


def encode_batch(
  x: Float[Array, "b d"],
  b_pre: Float[Array, "d"],
  W_enc: Float[Array, "n d"],
  b_enc: Float[Array, "n"],
  count: Float[Array, ""],
  *,
  mean_k: float,
  dtype: str = "float32",
  magnitude: bool = False,
  use: Bool[Array, "b"] | None = None,
) -> Largest:
  """The `count` largest pre-activations of the batch, in float32.

  Equal ones are kept lowest row, then lowest latent first. The gradient flows to
  the chosen pre-activations.

  Args:
    x: activations.
    b_pre: subtracted from x; zeros where there is no pre-bias.
    W_enc: encoder, row i is latent i.
    b_enc: added to the pre-activations.
    count: how many, a whole number of at most b mean_k.
    mean_k: most latents per row on average.
    dtype: dtype of the matmul's operands; accumulation is in float32.
    magnitude: whether entries are ranked by |a|; values keep their signs.
    use: rows that take part; all by default.

  Raises:
    ValueError: mean_k outside (0, n].
  """
  (rows, _), n = x.shape, W_enc.shape[0]
  if not 0 < mean_k <= n:
    raise ValueError(f"mean_k must be in (0, n={n}], got {mean_k}")
  size = rows * math.ceil(mean_k)
  use = jnp.ones(rows, bool) if use is None else use
  values, rows, indices, filled, exact = _find(
    *jax.lax.stop_gradient((x, b_pre, W_enc, b_enc, count, use)),
    size=size,
    mean_k=mean_k,
    dtype=dtype,
    magnitude=magnitude,
  )
  a = entries.encoded(values, rows, indices, x, b_pre, W_enc, b_enc)
  return Largest(jnp.where(filled, a, 0), rows, indices, exact)


def _find(x, b_pre, W, b, count, use, *, size, mean_k, dtype, magnitude):
  """Values, rows, indices, which of them are filled, and `Largest.exact`."""
  (rows, d), n = x.shape, W.shape[0]
  candidates = min(n, math.ceil(CANDIDATES * mean_k))
  score = xla.magnitudes if magnitude else lambda a: a

  def by_row(x, W, b):
    values, indices = op.encode_topk(
      x, b_pre, W, b, candidates, dtype, ordered=False, magnitude=magnitude
    )
    mask = _kept(score(values), use, count)
    full = jnp.any(jnp.all(mask, axis=1)) & (candidates < n)
    at = entries.pack(mask, size, values, indices)
    values, indices = at.taken
    return (values, at.rows, indices, at.filled), at.whole & ~full

  def by_blocks(x, W, b):
    a = xla.pre_activations((x - b_pre).astype(dtype), W.astype(dtype), b)
    scores = jnp.where(use[:, None], score(a), -jnp.inf)
    at = _largest_of(scores, count, size, mean_k)
    return a[at[0], at[1]], *at

  def checked(x, W, b, interpret=False):
    del interpret  # `encode_topk` reads the setting
    found, exact = by_row(x, W, b)
    return jax.lax.cond(exact, lambda: found, lambda: by_blocks(x, W, b))

  shards = mesh.axis_or_none(mesh.DATA, rows), mesh.axis_or_none(mesh.LATENT, n)
  if any(shards) or 4 * rows * n > BATCH_BYTES:
    found, exact = by_row(x, W, b)
    return *found, exact
  sizes = tpu.blocks(rows, n, d, candidates, dtype)
  pallas = dispatch.current().kernels == "pallas"
  kernel = checked if sizes and (pallas or tpu.pays(n, sizes)) else None
  return *dispatch.run(x, W, b, xla=by_blocks, tpu=kernel), None


def _kept(scores, use, count) -> Bool[Array, "b c"]:
  """A mask of the `count` largest of the rows that take part."""
  scores = jnp.where(use[:, None], scores, -jnp.inf)
  return select.largest(scores, count, (0, 1), columns=None)


def _largest_of(scores, count, size: int, mean_k: float):
  """Rows and columns of the `count` largest of [b, n], and which there are."""
  return dispatch.run(
    scores,
    count,
    xla=partial(_in_two_levels, size=size, mean_k=mean_k),
    native=partial(native.largest, size=size),
  )


def _in_two_levels(scores, count, *, size: int, mean_k: float):
  """The same in plain JAX."""
  b, n = scores.shape
  block = topk.block_size(n, max(1, round(mean_k)))
  keys = topk.padded(topk.ordered_ints(scores), block, topk.LEAST)
  keys = keys.reshape(b, -1, block)
  blocks = entries.pack(
    select.largest(jnp.max(keys, axis=-1), count, (0, 1)), size
  )
  inside = jnp.where(
    blocks.filled[:, None], keys[blocks.rows, blocks.columns], topk.LEAST
  )
  # The blocks are in index order, and so are their entries in any shape.
  inside = inside.reshape(b, -1)
  at = entries.pack(select.largest(inside, count, (0, 1)), size)
  which, within = jnp.divmod(at.rows * inside.shape[1] + at.columns, block)
  rows = blocks.rows[which]
  return (
    rows,
    jnp.minimum(blocks.columns[which] * block + within, n - 1),
    at.filled,
  )
