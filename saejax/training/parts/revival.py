"""AuxK: a loss term that revives dead latents."""

import math
from functools import partial
from typing import Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from saejax.kernels import mesh
from saejax.kernels.topk import select
from saejax.sae import encoders
from saejax.sae.activations import KEEPS, SCORES
from saejax.sae.context import Pre
from saejax.sae.latents import DenseLatents, SparseLatents
from saejax.training.parts.losses import EPS, squares, variance
from saejax.training.recipe import Record, Stats, Term, mean

COMPACT_SHARES = (16, 4)  # compact forms hold n/16 or n/4 latents, ...
DENSE_UP_TO = 16  # ... and all n if they are at most 16 k_aux
COMPACT_BYTES = 1 << 26  # of the largest buffer of a compact form; below this


class Revived(Protocol):
  """A rule that says which latents are dead and should be revived."""

  def dead(self, stats: Stats) -> Bool[Array, "n"]: ...

  def any_dead(self, stats: Stats, rows: int) -> Bool[Array, ""]: ...


def aux_k(
  k_aux: int,
  *,
  among: Revived,
  weight: float = 1 / 32,
  score: str = "value",
  keep: str = "relu",
  normalised: bool = True,
) -> Term:
  """AuxK: dead latents learn to reconstruct the residual of the live ones.

      e = stop_gradient(y - x_hat)
      e_hat = keep(top_{k_aux} by score among dead latents) W_dec
      term = mean_B |e_hat - e|^2 / mean_B |e - mean_B e|^2

  or the numerator alone if not `normalised`.

  Every dead latent is a candidate. The term is 0 where none is dead or the
  residual does not vary. Gradients reach the encoder and decoder rows of the
  selected dead latents, and b_dec only through the pre-bias; e_hat has no bias.

  Args:
    k_aux: dead latents revived per row, at most n.
    among: the rule that says which latents are dead.
    weight: factor in the loss.
    score, keep: those of the activation, see `sae.activations`.
    normalised: whether to divide by the residual's variance.

  References:
    Gao et al., Scaling and evaluating sparse autoencoders, 2024,
    arXiv:2406.04093, appendix A.2.
  """

  def loss(record: Record) -> Float[Array, ""]:
    forward, weight = record.forward, record.batch.weight
    e = jax.lax.stop_gradient(forward.target - forward.x_hat)
    dead = among.dead(record.stats)
    reconstruct = {"dense": _of_all, "sparse": _smallest}[record.engine]
    e_hat = reconstruct(record, dead, k_aux, score, keep)
    spread = variance(e, weight)
    scale = jnp.maximum(spread, EPS) if normalised else 1.0
    term = mean(squares(e_hat - e), weight) / scale
    return jnp.where(jnp.any(dead) & (spread > EPS), term, 0.0)

  return Term(fn=loss, weight=weight, active=among.any_dead)


def default_k_aux(d: int) -> int:
  """The power of two nearest d / 2, on a log scale.

  Args:
    d: width of the activations.
  """
  return 2 ** max(0, round(math.log2(d / 2)))


# --- e_hat in four forms of equal value --------------------------------------


def _of_all(record, dead, k: int, score: str, keep: str):
  """The definition, from the pre-activations of all latents."""
  forward = record.forward
  z = _kept(forward.pre, forward.ctx, dead, k, score, keep)
  return z.decode(forward.W_dec, record.sae.dtype)


def _smallest(record, dead, k: int, score: str, keep: str):
  """The definition on the dead latents alone, where a compact form holds them.

  On CPU the forms of n/16 and n/4 take 4 to 63 % of the time of that of any
  number (benchmarks/results/aux-k-cpu-2core.json).
  """
  sizes = _sizes(record, k)
  forms = [partial(_of_dead, size) for size in sizes]
  if record.sae.n not in sizes:
    forms.append(_of_any_number)
  # One branch for all stacked members: they would compute every branch.
  count = record.most(jnp.sum(dead))
  which = jnp.sum(jnp.asarray(sizes, count.dtype) < count)
  run = lambda form, dead: form(record, dead, k, score, keep)
  return jax.lax.switch(which, [partial(run, form) for form in forms], dead)


def _sizes(record, k: int) -> list[int]:
  """The numbers of latents that compact forms hold, ascending.

  There are none where latents are split over devices: dead ones would be
  gathered from all of them.
  """
  n, x = record.sae.n, record.forward.x
  # A compact form holds the pre-activations of all rows, and rows of both W.
  width = max(record.batch.rows, x.shape[-1], record.sae.d)
  if mesh.axis_or_none(mesh.LATENT, n) or not record.sae.encoder.is_affine:
    return []
  sizes = [n // share for share in COMPACT_SHARES]
  if n <= DENSE_UP_TO * k:
    sizes.append(n)
  return [size for size in sizes if 0 < 4 * width * size < COMPACT_BYTES]


def _of_dead(size: int, record, dead, k: int, score: str, keep: str):
  """`_of_all` of the dead latents, of which there are at most `size`."""
  forward, ctx = record.forward, record.forward.ctx
  W, b = record.sae.encoder.affine(ctx.decoder)
  indices = jnp.nonzero(dead, size=size, fill_value=0)[0]
  filled = jnp.arange(size) < jnp.sum(dead)
  a = encoders.matmul(ctx.x - ctx.b_pre, W[indices], ctx.dtype) + b[indices]
  z = _kept(Pre(a=a), ctx, filled, k, score, keep)
  return z.decode(forward.W_dec[indices], record.sae.dtype)


def _of_any_number(record, dead, k: int, score: str, keep: str):
  """By a fused encode in which only dead latents compete: bounded memory."""
  ctx = record.forward.ctx
  values, indices = record.sae.encoder.largest(
    ctx.x, ctx, k, ordered=False, magnitude=score == "magnitude", among=dead
  )
  # -inf where a row has fewer dead latents than k.
  values = jnp.where(values > -jnp.inf, KEEPS[keep](values), 0)
  latents = SparseLatents(values, indices, record.sae.n)
  return latents.decode(record.forward.W_dec, record.sae.dtype)


def _kept(pre, ctx, dead, k: int, score: str, keep: str) -> DenseLatents:
  """The k dead latents of the highest scores in each row."""
  if k < dead.shape[0]:
    scores = jnp.where(dead, SCORES[score](pre, ctx), -jnp.inf)
    dead = dead & select.largest(scores, jnp.asarray(k), (-1,))
  return DenseLatents(jnp.where(dead, KEEPS[keep](pre.a), 0))
