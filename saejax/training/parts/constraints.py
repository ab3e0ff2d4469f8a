"""What holds for the weights, and what that asks of their gradients."""

from typing import Any

import jax.numpy as jnp

from saejax.sae.decoders import unit_rows
from saejax.sae.sae import SAE


def unit_norm_decoder(sae: SAE) -> SAE:
  """Each row of the decoder divided by its norm."""
  return _with_decoder(sae, unit_rows(_stored(sae)))


def folded_norms(sae: SAE) -> SAE:
  """Unit decoder rows, their norms moved to the encoder.

      w_i <- w_i / |w_i|,  W_enc_i <- |w_i| W_enc_i,  b_enc_i <- |w_i| b_enc_i

  Reconstructions stay as they are, where latents are kept by their sign or all
  norms are equal. For affine encoders.
  """
  W = _stored(sae)
  norm = jnp.maximum(jnp.linalg.norm(W, axis=-1), 1e-12)
  encoder: Any = sae.encoder  # one that stores its rows as W and b
  encoder = encoder.replace(W=encoder.W * norm[:, None], b=encoder.b * norm)
  return _with_decoder(sae.replace(encoder=encoder), W / norm[:, None])


def without_parallel_gradient(sae: SAE, gradients: SAE) -> SAE:
  """g_i - <g_i, w_i> w_i for each decoder row, w_i of unit norm.

  The part along w_i would be undone by renormalising, but not before it had
  entered the optimizer's moments. Taken away before clipping and the
  optimizer; rows are renormalised after it. OpenAI's code renormalises before
  the optimizer's step and so stores rows that are off unit norm by one step.

  References:
    Gao et al., Scaling and evaluating sparse autoencoders, 2024,
    arXiv:2406.04093.
  """
  W, g = _stored(sae), _stored(gradients)
  along = jnp.sum(g * W, axis=-1, keepdims=True)
  return _with_decoder(gradients, g - along * W)


def thresholds_above(sae: SAE, least: float = 0.0) -> SAE:
  """Each learned threshold raised to `least` where it is below.

  A threshold below 0 would keep negative latents.
  """
  activation: Any = sae.activation  # one with thresholds
  theta = jnp.maximum(activation.theta, least)
  return sae.replace(activation=activation.replace(theta=theta))


def without_decoder_bias(sae: SAE, gradients: SAE) -> SAE:
  """Gradients that leave b_dec where it is."""
  del sae
  zero = jnp.zeros_like(gradients.decoder.b)
  return gradients.replace(decoder=gradients.decoder.replace(b=zero))


def _stored(sae: SAE):
  decoder: Any = sae.decoder  # one that stores its rows as W
  return decoder.W


def _with_decoder(sae: SAE, W) -> SAE:
  return sae.replace(decoder=sae.decoder.replace(W=W))
