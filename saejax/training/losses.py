"""Loss terms: functions of a `Record`, in the frame of the SAE's prep.

A row loss returns one value a row; the recipe's `reduce` (the mean) makes a
scalar of it. A batch loss returns a scalar. Each docstring says what is summed
and what is averaged, since that sets the size of every coefficient.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from saejax.sae.encoders import Affine
from saejax.sae.latents import CompactLatents, DenseLatents, Latents
from saejax.sae.sae import SAE, Forward
from saejax.training import rules
from saejax.training.recipe import Record, Term

EPS = 1e-12


def mse(record: Record) -> Float[Array, "*b"]:
  """|x - x_hat|^2 of each row: summed over d."""
  return _squares(record.forward.x - record.forward.x_hat)


def normalised_mse(record: Record) -> Float[Array, "*b"]:
  """|x - x_hat|^2 of each row over the batch's mean |x - mean_B x|^2.

  Its mean over rows is the fraction of variance unexplained in the batch.
  """
  return mse(record) / jnp.maximum(_variance(record.forward.x), EPS)


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


def aux_k(
  k_aux: int,
  *,
  tracker: rules.DeadTracker,
  capacity: int,
  weight: float = 1 / 32,
) -> Term:
  """AuxK: dead latents learn to reconstruct what the live ones leave.

      e = stop_gradient(x - x_hat)
      e_hat = relu(top_{k_aux} of a among dead latents) W_dec
      term = mean_B |e_hat - e|^2 / mean_B |e - mean_B e|^2

  Candidates are the `capacity` latents dead for longest. The term is 0 where
  none is dead or the residual does not vary. Gradients reach the encoder and
  decoder rows of the dead latents that are kept, and b_dec only through the
  pre-bias; e_hat has no bias of its own.

  Args:
    k_aux: dead latents kept in a row.
    tracker: says which are dead, and since when.
    capacity: most candidates considered, at most n.
    weight: factor in the loss.

  References:
    Gao et al., Scaling and evaluating sparse autoencoders, 2024,
    arXiv:2406.04093, appendix A.2.
  """

  def loss(record: Record) -> Float[Array, ""]:
    forward = record.forward
    e = jax.lax.stop_gradient(forward.x - forward.x_hat)
    rows, dead = tracker.longest_dead(record.stats, capacity)
    among = {"dense": _among_all, "sparse": _among_rows}[record.engine]
    latents = among(record.sae, forward, rows, dead, min(k_aux, capacity))
    e_hat = latents.decode(forward.W_dec, record.sae.dtype)
    variance = _variance(e)
    term = jnp.mean(_squares(e_hat - e)) / jnp.maximum(variance, EPS)
    return jnp.where(jnp.any(dead) & (variance > EPS), term, 0.0)

  return Term(fn=loss, weight=weight, active=tracker.any_dead_after)


def default_k_aux(d: int) -> int:
  """The power of two nearest d / 2, on a log scale."""
  return 2 ** max(0, round(math.log2(d / 2)))


def _among_all(sae: SAE, forward: Forward, rows, dead, k: int) -> Latents:
  """relu of the k largest among candidates: the definition, over all n."""
  candidate = jnp.zeros((sae.n,), bool).at[rows].max(dead)
  return DenseLatents(_largest(forward.a, candidate, k))


def _among_rows(sae: SAE, forward: Forward, rows, dead, k: int) -> Latents:
  """The same from the candidates' encoder rows alone."""
  encoder: Affine = sae.encoder.rows(rows)
  b_pre = sae.b_pre
  # Pre-activations with the pre-bias held fixed, and a zero that carries its
  # gradient: summed over the batch before the product, not after.
  fixed = jax.lax.stop_gradient(b_pre)
  a = encoder(forward.x, fixed, sae.dtype)
  a -= (b_pre - fixed) @ encoder.W.T
  return CompactLatents(_largest(a, dead, k), rows, sae.n)


def _largest(a, candidate, k: int):
  """relu of the k largest candidates of each row, 0 elsewhere."""
  if k < a.shape[-1]:
    ranked = jax.lax.stop_gradient(jnp.where(candidate, a, -jnp.inf))
    _, kept = jax.lax.top_k(ranked, k)
    keep = jnp.put_along_axis(
      jnp.zeros(a.shape, bool), kept, True, axis=-1, inplace=False
    )
    candidate = candidate & keep
  return jnp.where(candidate, jax.nn.relu(a), 0)


def _squares(x) -> Float[Array, "*b"]:
  return jnp.sum(jnp.square(x), axis=-1)


def _variance(x) -> Float[Array, ""]:
  """mean over rows of |x - mean over rows x|^2."""
  rows = x.reshape(-1, x.shape[-1])
  return jnp.mean(_squares(rows - jnp.mean(rows, axis=0)))
