"""Constraints on weights, and the matching projections of gradients."""

from typing import Any

import jax
import jax.numpy as jnp

from saejax.sae.decoders import NORM_EPS, unit_rows
from saejax.sae.sae import SAE

# Size from which on no second copy of a matrix is made, at the price of reading
# it more often. Left alone, XLA fuses an update with a sum over its result, and
# on a GPU such a fusion cannot write in place.
LARGE_BYTES = 1 << 31


def is_large(sae: SAE) -> bool:
  """Whether there should be no temporary of the size of the largest weights.

  Args:
    sae: the SAE.
  """
  leaves = jax.tree.leaves(sae)
  return any(a.size * a.dtype.itemsize >= LARGE_BYTES for a in leaves)


def unit_norm_decoder(sae: SAE) -> SAE:
  """Divides each row of the decoder by its norm.

  Args:
    sae: the SAE.
  """
  W = _stored(sae)
  if not is_large(sae):
    return _with_decoder(sae, unit_rows(W))
  W = jax.lax.optimization_barrier(W)
  norm = jnp.linalg.norm(W, axis=-1, keepdims=True)
  norm = jax.lax.optimization_barrier(norm)
  return _with_decoder(sae, W / jnp.maximum(norm, NORM_EPS))


def folded_norms(sae: SAE) -> SAE:
  """Divides decoder rows by their norms, which multiply the encoder instead.

      w_i <- w_i / |w_i|,  W_enc_i <- |w_i| W_enc_i,  b_enc_i <- |w_i| b_enc_i

  Reconstructions are unchanged if the selection depends only on the sign of
  pre-activations, or all norms are equal. For affine encoders.

  Args:
    sae: the SAE.
  """
  W = _stored(sae)
  norm = jnp.maximum(jnp.linalg.norm(W, axis=-1), 1e-12)
  encoder: Any = sae.encoder  # stores its weights as W and b
  encoder = encoder.replace(W=encoder.W * norm[:, None], b=encoder.b * norm)
  return _with_decoder(sae.replace(encoder=encoder), W / norm[:, None])


def without_parallel_gradient(sae: SAE, gradients: SAE) -> SAE:
  """Projects decoder gradients: g_i - <g_i, w_i> w_i, with |w_i| = 1.

  Renormalising would undo the component along w_i, but only after it had
  entered the optimizer's moments. It is removed before clipping and the
  optimizer; rows are renormalised after it. OpenAI's code renormalises before
  the optimizer's step, so that its stored rows deviate from unit norm by one
  step.

  Args:
    sae: the SAE.
    gradients: gradients of its leaves.

  References:
    Gao et al., Scaling and evaluating sparse autoencoders, 2024,
    arXiv:2406.04093.
  """
  W, g = _stored(sae), _stored(gradients)
  along = jnp.sum(g * W, axis=-1, keepdims=True)
  return _with_decoder(gradients, g - along * W)


def thresholds_above(sae: SAE, least: float = 0.0) -> SAE:
  """Clips learned thresholds to at least `least`.

  A threshold below 0 would keep negative latents.

  Args:
    sae: the SAE.
    least: lower bound.
  """
  activation: Any = sae.activation  # has thresholds theta
  theta = jnp.maximum(activation.theta, least)
  return sae.replace(activation=activation.replace(theta=theta))


def without_decoder_bias(sae: SAE, gradients: SAE) -> SAE:
  """Sets the gradient of b_dec to 0.

  Args:
    sae: the SAE.
    gradients: gradients of its leaves.
  """
  del sae
  zero = jnp.zeros_like(gradients.decoder.b)
  return gradients.replace(decoder=gradients.decoder.replace(b=zero))


def _stored(sae: SAE):
  decoder: Any = sae.decoder  # stores its rows as W
  return decoder.W


def _with_decoder(sae: SAE, W) -> SAE:
  return sae.replace(decoder=sae.decoder.replace(W=W))
