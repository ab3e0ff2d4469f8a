"""The same SAE on raw activations, its preps folded into the weights."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from saejax.sae import decoders, encoders, gated
from saejax.sae.prep import Affine, Identity
from saejax.sae.sae import SAE


def fold_prep(sae: SAE) -> SAE:
  """An SAE without prep that gives the same latents and reconstructions.

  With x' = (x - m) / s and a pre-bias:
      W_enc <- W_enc / s,  W_dec <- s W_dec,  b_dec <- s b_dec + m
  and without a pre-bias also b_enc <- b_enc - W_enc m / s. For a transcoder m
  and s of the decoder are those of the target's prep. Both heads of a gated
  encoder are folded, the magnitude's shift times exp(r_mag).

  Latents keep their values, and so do thresholds on them; thresholds on a |w|
  are multiplied by s, as W_dec is. The decoder's rows are no longer of unit
  norm.

  Raises:
    ValueError: a prep or the encoder is not linear, so that no weights can hold
      it; or b_dec of a transcoder is subtracted from x.
  """
  target = sae.prep if sae.target_prep is None else sae.target_prep
  if isinstance(sae.prep, Identity) and isinstance(target, Identity):
    return sae
  if sae.target_prep is not None and sae.pre_bias:
    raise ValueError("a transcoder with a pre-bias cannot be folded")
  m, s = _numbers(target)
  activation = sae.activation
  theta = getattr(activation, "theta", None)
  if theta is not None and getattr(activation, "score", None) == "norm":
    activation = activation.replace(theta=theta * s)
  return sae.replace(
    prep=Identity(),
    target_prep=None if sae.target_prep is None else Identity(),
    encoder=_encoder(sae, *_numbers(sae.prep)),
    activation=activation,
    decoder=decoders.Free(W=s * sae.W_dec, b=s * sae.b_dec + m),
  )


def _numbers(prep) -> tuple[Float[Array, "d"] | float, Array | float]:
  """Centre and scale of a linear prep."""
  if isinstance(prep, Identity):
    return 0.0, 1.0
  if isinstance(prep, Affine):
    return prep.centre, prep.scale
  raise ValueError(
    f"{type(prep).__name__} depends on each row and cannot be folded"
  )


def _encoder(sae: SAE, m, s) -> encoders.Encoder:
  """The encoder for raw rows, each of its heads."""
  encoder = sae.encoder
  heads = isinstance(encoder, gated.Gated)
  W = (encoder.W if heads else sae.W_enc) / s
  shift = 0.0 if sae.pre_bias else jnp.sum(W * m, axis=-1)
  if not heads:
    return encoders.Affine(W=W, b=sae.b_enc - shift)
  return encoder.replace(
    W=W,
    b_gate=encoder.b_gate - shift,
    b_mag=encoder.b_mag - jnp.exp(encoder.r_mag) * shift,
  )
