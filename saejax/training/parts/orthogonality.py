"""A penalty on decoder rows with a high cosine to each other."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from saejax.sae import decoders
from saejax.training.recipe import Record

DRAW = 2  # folded into the pass's key for the order of latents
BLOCK_ROWS = 1024


def nearest(
  *, chunk: int, every: int = 1, signed: bool = False
) -> Callable[[Record], Float[Array, ""]]:
  """Squared cosine of each decoder row with the nearest row of its chunk.

      D_i = w_i / |w_i|
      s_i = max over j != i in the chunk of i of <D_i, D_j>
      term = mean over chunks of the mean over their rows of max(s_i, 0)^2

  Latents are split into ceil(n / chunk) chunks of nearly equal size by a
  permutation drawn from the key of the pass, so that the cost is n chunk d and
  all pairs are compared over time. The gradient reaches both rows of each pair,
  through the norms. A chunk of one row gives 0.

  Args:
    chunk: maximum number of latents compared with each other.
    every: the term is 0 in all but one of `every` steps. It is not multiplied
      by `every`: increase its weight to compensate.
    signed: whether the term is s_i^2 without the maximum, which also penalises
      rows whose nearest row has a negative cosine.

  References:
    Korznikov et al., OrtSAE: Orthogonal Sparse Autoencoders Uncover Atomic
    Features, 2025, arXiv:2509.22033.
  """

  def loss(record: Record) -> Float[Array, ""]:
    ctx = record.forward.ctx
    W = record.forward.W_dec
    compute = partial(penalty, chunk=chunk, signed=signed)
    if len(W) <= chunk:  # one chunk: its order does not matter
      value = lambda: compute(W)
    else:
      value = lambda: compute(W, jax.random.fold_in(ctx.random_key(), DRAW))
    if every == 1 or ctx.step is None:
      return value()
    return jax.lax.cond(ctx.step % every == 0, value, lambda: jnp.zeros(()))

  return loss


def penalty(
  W: Float[Array, "n d"],
  key: PRNGKeyArray | None = None,
  *,
  chunk: int,
  signed: bool = False,
  block_rows: int = BLOCK_ROWS,
) -> Float[Array, ""]:
  """The value of `nearest` for rows W.

  Args:
    W: decoder rows.
    key: seeds the permutation; None for none.
    chunk, signed: see `nearest`.
    block_rows: rows compared with their chunk at a time.
  """
  n = len(W)
  D = decoders.unit_rows(W)
  order = jnp.arange(n) if key is None else jax.random.permutation(key, n)
  # Chunks of nearly equal size; unused places hold n.
  count = -(-n // chunk)
  size = -(-n // count)
  sizes = jnp.asarray([len(range(c, n, count)) for c in range(count)])
  starts = jnp.cumsum(sizes) - sizes
  place = jnp.arange(size)
  members = jnp.where(
    place < sizes[:, None],
    jnp.append(order, n)[jnp.minimum(starts[:, None] + place, n)],
    n,
  )
  partner = jax.lax.stop_gradient(_partners(D, members, block_rows))
  found = partner < n
  pairs = lambda rows: jnp.take(D, rows, axis=0, mode="clip")
  s = jnp.sum(pairs(members) * pairs(partner), axis=-1)
  s = s if signed else jax.nn.relu(s)
  each = jnp.where(found, jnp.square(s), 0)
  return jnp.mean(jnp.sum(each, axis=-1) / sizes.astype(jnp.float32))


def _partners(
  D: Float[Array, "n d"], members: Int[Array, "c s"], block_rows: int
) -> Int[Array, "c s"]:
  """Index of the nearest other row of each row's chunk; n if there is none.

  Holds only the cosines of one block of rows with their chunk in memory.
  """
  n, size = len(D), members.shape[1]
  block = min(block_rows, size)
  padded = jnp.pad(members, ((0, 0), (0, -size % block)), constant_values=n)
  fixed = jax.lax.stop_gradient(D)

  def one_chunk(chunk):
    rows = jnp.take(fixed, chunk, axis=0, mode="clip")

    def one_block(own):
      cosines = jnp.take(fixed, own, axis=0, mode="clip") @ rows.T
      other = (chunk < n) & (chunk != own[:, None])
      best = jnp.argmax(jnp.where(other, cosines, -jnp.inf), axis=-1)
      some = jnp.any(other, axis=-1) & (own < n)
      return jnp.where(some, chunk[best], n)

    return jax.lax.map(one_block, chunk.reshape(-1, block)).reshape(-1)

  return jax.lax.map(one_chunk, padded)[:, :size]
