"""AuxK: a loss term that revives dead latents."""

import math
from typing import Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from saejax.kernels.topk import select
from saejax.sae.activations import KEEPS, SCORES
from saejax.sae.latents import DenseLatents, SparseLatents
from saejax.training.parts.losses import EPS, residual_variance, squares
from saejax.training.recipe import Record, Stats, Term, mean


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
  by_k: bool = False,
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
    by_k: whether k_aux is the k of the method, so that a member that shares
      its program with a larger k revives its own k.

  References:
    Gao et al., Scaling and evaluating sparse autoencoders, 2024,
    arXiv:2406.04093, appendix A.2.
  """

  def loss(record: Record) -> Float[Array, ""]:
    forward, weight = record.forward, record.batch.weight
    e = jax.lax.stop_gradient(forward.target - forward.x_hat)
    dead = among.dead(record.stats)
    reconstruct = {"dense": _of_all, "sparse": _of_largest}[record.engine]
    limit = forward.ctx.k if by_k else None
    e_hat = reconstruct(record, dead, k_aux, limit, score, keep)
    spread = residual_variance(record)
    scale = jnp.maximum(spread, EPS) if normalised else 1.0
    term = mean(squares(e_hat - e), weight) / scale
    return jnp.where(jnp.any(dead) & (spread > EPS), term, 0.0)

  return Term(
    fn=loss, weight=weight, active=among.any_dead, mean=True, after=True
  )


def default_k_aux(d: int) -> int:
  """The power of two nearest d / 2, on a log scale.

  Args:
    d: width of the activations.
  """
  return 2 ** max(0, round(math.log2(d / 2)))


# --- e_hat in two forms of equal value ---------------------------------------


def _of_all(record, dead, k: int, limit, score: str, keep: str):
  """The definition, from the pre-activations of all latents."""
  forward = record.forward
  if k < record.sae.n or limit is not None:
    scores = SCORES[score](forward.pre, forward.ctx)
    scores = jnp.where(dead, scores, -jnp.inf)
    # No more than are dead: ties of -inf would be broken one by one.
    count = jnp.minimum(k if limit is None else limit, jnp.sum(dead))
    dead = dead & select.largest(scores, count, (-1,))
  z = DenseLatents(jnp.where(dead, KEEPS[keep](forward.pre.a), 0))
  return z.decode(forward.W_dec, record.sae.dtype)


def _of_largest(record, dead, k: int, limit, score: str, keep: str):
  """By a fused encode in which only dead latents compete."""
  ctx = record.forward.ctx
  values, indices = record.sae.encoder.largest(
    ctx.x,
    ctx,
    k,
    ordered=limit is not None,
    magnitude=score == "magnitude",
    among=dead,
    most=record.most(jnp.sum(dead)),
  )
  # -inf where a row has fewer dead latents than k.
  used = values > -jnp.inf
  if limit is not None:
    used &= jnp.arange(k) < limit
  values = jnp.where(used, KEEPS[keep](values), 0)
  latents = SparseLatents(values, indices, record.sae.n)
  return latents.decode(record.forward.W_dec, record.sae.dtype)
