"""Thresholds estimated from rows by exact order statistics of the scores.

    batch    theta   = the c-th largest of max(score, 0) over all rows and latents
    columns  theta_i = the m_i-th largest of max(score_i, 0) over the rows

A latent is active where its score is above the threshold. The expected share of
new rows above the m-th largest of B is m / (B + 1), whatever the distribution.
(The mean of such values over several batches lies above the threshold that m
rows exceed: with normal scores and m = 1, 40 % fewer rows exceed it. Hence one
sample of many rows, and no midpoint with the next value, which m + 1/2 rows
would exceed.)

Scores are computed for a block of latents at a time, so that no array of all
rows by all latents is held. Over all latents the order statistic is found by
two histograms of the floats' bits, each one pass of encoding: the 15 high bits,
then the 16 low bits of scores that share them. Within a block of columns it is
found bit by bit. Counts over all latents are summed on the host in int64.
"""

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from saejax.errors import InputError
from saejax.sae import encoders
from saejax.sae.activations import SCORES
from saejax.sae.context import Batch, Context, Pre
from saejax.sae.sae import SAE

ENTRIES = 1 << 24  # scores held at once
LOW_BITS = 16


def of_batch(
  sae: SAE, rows: Batch, count: int, *, score: str, entries: int = ENTRIES
) -> np.float32:
  """The count-th largest of max(score, 0) over all rows and latents.

  It is 0 where fewer scores are positive.

  Args:
    sae: an SAE with an affine encoder.
    rows: B raw rows.
    count: rank of the score, at least 1.
    score: name in `activations.SCORES`.
    entries: scores held in memory at once.

  Raises:
    InputError: no score is positive.
    ValueError: the encoder is not affine.
  """
  blocks = partial(_blocks, sae, rows, score, entries)
  high = _added(_histogram(bits >> LOW_BITS) for bits in blocks())
  # Non-positive scores have bits 0 and are in no histogram.
  at, before = _place(high, count)
  if not high.any():
    _refuse(sae.n)
  if at is None:
    return np.float32(0)
  low = _added(_histogram(_low(bits, at)) for bits in blocks())
  within, _ = _place(low, count - before)
  assert within is not None  # the bin holds as many as were counted in it
  return np.uint32((at << LOW_BITS) | (within - 1)).view(np.float32)


def of_columns(
  sae: SAE,
  rows: Batch,
  counts: Int[np.ndarray, "n"],
  *,
  score: str,
  entries: int = ENTRIES,
) -> Float[np.ndarray, "n"]:
  """The m_i-th largest of max(score_i, 0) over the rows, for each latent.

  It is 0 where fewer scores are positive.

  Args:
    sae: an SAE with an affine encoder.
    rows: B raw rows.
    counts: m_i, in [1, B].
    score: name in `activations.SCORES`.
    entries: scores held in memory at once.

  Raises:
    InputError: no score is positive.
    ValueError: the encoder is not affine.
  """
  found, first, positive = [], 0, False
  for bits in _blocks(sae, rows, score, entries):
    here = jnp.asarray(counts[first : first + bits.shape[1]], jnp.int32)
    found.append(np.asarray(_kth_largest(bits, here)).view(np.float32))
    positive |= bool(jnp.any(bits > 0))
    first += bits.shape[1]
  if not positive:
    _refuse(sae.n)
  return np.concatenate(found)


def spread(shares: Float[np.ndarray, "n"], rows: int) -> Int[np.ndarray, "n"]:
  """Rounds shares times rows to integers in [1, rows], keeping their sum.

  Rounded by largest remainder, lowest index first.

  Args:
    shares: share of rows per latent.
    rows: number of rows.
  """
  wanted = np.asarray(shares, np.float64) * rows
  whole = np.floor(wanted + 1e-4).astype(np.int64)
  left = round(float(wanted.sum())) - int(whole.sum())
  order = np.argsort(-(wanted - whole), kind="stable")
  whole[order[: max(left, 0)]] += 1
  return np.clip(whole, 1, rows)


def _refuse(n: int) -> None:
  raise InputError(
    "threshold",
    "none",
    f"cannot be estimated: none of {n} latents is positive on any row",
    "train longer, lower the learning rate, or raise k",
  )


def _blocks(
  sae: SAE, rows: Batch, score: str, entries: int
) -> Iterator[Int[Array, "B l"]]:
  """The bits of max(score, 0), block by block of latents."""
  size = max(1, min(sae.n, entries // max(rows.rows, 1)))
  ctx = jax.jit(lambda s, b: s._context(b)[0])(sae, rows)
  W, b, W_dec = (jnp.asarray(a) for a in (sae.W_enc, sae.b_enc, ctx.W_dec))
  for first in range(0, sae.n, size):
    block = (a[first : first + size] for a in (W, b, W_dec))
    yield _bits(ctx, *block, score)


@partial(jax.jit, static_argnums=4)
def _bits(ctx: Context, W, b, W_dec, score: str) -> Int[Array, "B l"]:
  """Bits of max(score, 0): positive floats have the order of their bits."""
  a = encoders.matmul(ctx.x - ctx.b_pre, W, ctx.dtype) + b
  scores = SCORES[score](Pre(a=a), ctx.replace(W_dec=W_dec))
  positive = jnp.maximum(scores.astype(jnp.float32), 0)
  return jax.lax.bitcast_convert_type(positive + 0.0, jnp.int32)


@jax.jit
def _histogram(bins: Int[Array, "B l"]) -> Int[Array, "h"]:
  """Number of entries in each bin; bin 0 stays empty."""
  size = (1 << LOW_BITS) + 1
  bins = jnp.where(bins > 0, bins, size).reshape(-1)
  return jnp.zeros((size,), jnp.int32).at[bins].add(1, mode="drop")


@jax.jit
def _low(bits: Int[Array, "B l"], high: int) -> Int[Array, "B l"]:
  """1 + the low bits of entries with the given high bits, else 0."""
  low = bits & ((1 << LOW_BITS) - 1)
  return jnp.where(bits >> LOW_BITS == high, low + 1, 0)


def _added(histograms) -> Int[np.ndarray, "h"]:
  """Sums histograms on the host in int64, as int32 could overflow."""
  total = np.zeros((1 << LOW_BITS) + 1, np.int64)
  for histogram in histograms:
    total += np.asarray(histogram, np.int64)
  return total


def _place(
  histogram: Int[np.ndarray, "h"], count: int
) -> tuple[int | None, int]:
  """The bin of the count-th largest entry, and how many lie above that bin.

  Returns None where there are fewer entries.
  """
  above = np.cumsum(histogram[::-1])
  i = int(np.searchsorted(above, count))
  if i == len(above):
    return None, 0
  return len(above) - 1 - i, int(above[i - 1]) if i else 0


@jax.jit
def _kth_largest(
  bits: Int[Array, "B l"], counts: Int[Array, "l"]
) -> Int[Array, "l"]:
  """The largest t of each column with at least that many entries >= t."""

  def set_bit(i, t):
    higher = t | jax.lax.shift_left(jnp.int32(1), jnp.int32(30) - i)
    enough = jnp.sum(bits >= higher, axis=0, dtype=jnp.int32) >= counts
    return jnp.where(enough, higher, t)

  return jax.lax.fori_loop(0, 31, set_bit, jnp.zeros_like(counts))
