"""Loss terms: functions of a `Record`, in the frame of the SAE's prep.

A row loss returns one value per row; the recipe's `reduce` (the mean) reduces
it to a scalar. A batch loss returns a scalar. Each docstring says what is
summed and what is averaged, since that sets the scale of every coefficient.
"""

import math
from typing import Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from saejax.sae.activations import KEEPS, SCORES
from saejax.sae.latents import DenseLatents, Latents, SparseLatents
from saejax.training.recipe import Record, Stats, Term, mean

EPS = 1e-12


def mse(record: Record) -> Float[Array, "*b"]:
  """|y - x_hat|^2 of each row, summed over d; y is x, or the target."""
  return squares(record.forward.target - record.forward.x_hat)


def normalised_mse(record: Record) -> Float[Array, "*b"]:
  """|y - x_hat|^2 of each row over the batch's mean |y - mean_B y|^2.

  Its mean over rows is the fraction of variance unexplained in the batch. 0
  where the rows do not vary.
  """
  spread = variance(record.forward.target, record.batch.weight)
  return ratio(mse(record), spread)


def batch_norm_mse(record: Record) -> Float[Array, "*b"]:
  """mean_d (y - x_hat)^2 of each row over the row's |y - mean_B y|.

  It grows linearly, not quadratically, with the scale of the rows, and is 0
  where the rows do not vary.

  References:
    He et al., Llama Scope, 2024, arXiv:2410.20526.
  """
  y = record.forward.target
  off = y - mean_row(y, record.batch.weight)
  spread = jnp.sqrt(jnp.maximum(squares(off), 1e-8))
  loss = mse(record) / (y.shape[-1] * spread)
  return jnp.where(variance(y, record.batch.weight) > EPS, loss, 0.0)


def l1(record: Record) -> Float[Array, "*b"]:
  """sum_i |z_i| of each row."""
  return record.forward.latents.sum()


def l1_decoder_norm(record: Record) -> Float[Array, "*b"]:
  """sum_i |z_i| |w_i| of each row, w_i the decoder's row.

  Unlike plain L1 it does not fall when the decoder grows and the latents
  shrink, so that the decoder may stay free.

  References:
    Conerly et al., Update on how we train SAEs, Transformer Circuits, 2024.
  """
  norms = jnp.linalg.norm(record.forward.W_dec, axis=-1)
  return record.forward.latents.sum(norms)


def l2(record: Record) -> Float[Array, "*b"]:
  """sum_i z_i^2 of each row, over the active latents."""
  return record.forward.latents.squares()


def l2_before_selection(record: Record) -> Float[Array, "*b"]:
  """sum_i relu(a_i)^2 of each row, over all latents: dense engine."""
  if record.forward.pre is None:
    raise ValueError("this penalty reads all pre-activations: dense engine")
  return squares(jax.nn.relu(record.forward.pre.a))


def norm_mismatch(record: Record) -> Float[Array, "*b"]:
  """(|z| - |x|)^2 of each row, x in the frame of the prep.

  Were the dictionary's unit rows orthogonal, |z| would be |z W_dec|.
  """
  norm = jnp.sqrt(record.forward.latents.squares() + EPS)
  return jnp.square(norm - jnp.linalg.norm(record.forward.x, axis=-1))


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
    pick = {"dense": _among_all, "sparse": _among_largest}[record.engine]
    latents = pick(record, dead, k_aux, score, keep)
    e_hat = latents.decode(forward.W_dec, record.sae.dtype)
    spread = variance(e, weight)
    scale = jnp.maximum(spread, EPS) if normalised else 1.0
    term = mean(squares(e_hat - e), weight) / scale
    return jnp.where(jnp.any(dead) & (spread > EPS), term, 0.0)

  return Term(fn=loss, weight=weight, active=among.any_dead)


def default_k_aux(d: int) -> int:
  """The power of two nearest d / 2, on a log scale."""
  return 2 ** max(0, round(math.log2(d / 2)))


def _among_all(record, dead, k: int, score: str, keep: str) -> Latents:
  """The k highest scores among the dead: the definition, over all n."""
  pre, ctx = record.forward.pre, record.forward.ctx
  if k < record.sae.n:
    scores = jax.lax.stop_gradient(SCORES[score](pre, ctx))
    _, kept = jax.lax.top_k(jnp.where(dead, scores, -jnp.inf), k)
    chosen = jnp.put_along_axis(
      jnp.zeros(pre.a.shape, bool), kept, True, axis=-1, inplace=False
    )
    dead = dead & chosen
  return DenseLatents(jnp.where(dead, KEEPS[keep](pre.a), 0))


def _among_largest(record, dead, k: int, score: str, keep: str) -> Latents:
  """As `_among_all`, by a fused encode in which only dead latents compete."""
  ctx = record.forward.ctx
  values, indices = record.sae.encoder.largest(
    ctx.x, ctx, k, ordered=False, magnitude=score == "magnitude", among=dead
  )
  # -inf where a row has fewer dead latents than k.
  values = jnp.where(values > -jnp.inf, KEEPS[keep](values), 0)
  return SparseLatents(values, indices, record.sae.n)


def ratio(
  error: Float[Array, "*b"], spread: Float[Array, "*b"]
) -> Float[Array, "*b"]:
  """error / spread, 0 where the spread is 1e-12 or less.

  A batch of one row, or of equal rows, has no spread: a quotient of 10^12 would
  corrupt Adam's moments for the rest of the run.
  """
  return jnp.where(spread > EPS, error / jnp.maximum(spread, EPS), 0.0)


def squares(x: Float[Array, "*b d"]) -> Float[Array, "*b"]:
  """|x|^2 of each row."""
  return jnp.sum(jnp.square(x), axis=-1)


def mean_row(
  x: Float[Array, "*b d"], weight: Float[Array, "*b"] | None = None
) -> Float[Array, "d"]:
  """sum_b weight_b x_b / sum_b weight_b; the plain mean without weights."""
  rows = x.reshape(-1, x.shape[-1])
  if weight is None:
    return jnp.mean(rows, axis=0)
  each = weight.reshape(-1, 1)
  return jnp.sum(each * rows, axis=0) / jnp.maximum(jnp.sum(each), EPS)


def variance(
  x: Float[Array, "*b d"], weight: Float[Array, "*b"] | None = None
) -> Float[Array, ""]:
  """Weighted mean over rows of |x - weighted mean of x|^2.

  It is 0 where it is within the rounding error of the mean (1e-12 of the mean
  square).
  """
  spread = mean(squares(x - mean_row(x, weight)), weight)
  return jnp.where(spread > EPS * mean(squares(x), weight), spread, 0.0)
