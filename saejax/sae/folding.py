"""Folds an SAE's preps into its weights, for use on raw activations."""

from saejax.sae import decoders
from saejax.sae.prep import Identity
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

  Args:
    sae: the SAE.

  Raises:
    NotImplementedError: a prep or the encoder is not linear; the message names
      it.
    ValueError: a transcoder subtracts b_dec from x.
  """
  target = sae.prep if sae.target_prep is None else sae.target_prep
  if sae.prep == Identity() == target:
    return sae
  if sae.target_prep is not None and sae.pre_bias:
    raise ValueError("a transcoder with a pre-bias cannot be folded")
  m, s = target.affine()
  return sae.replace(
    prep=Identity(),
    target_prep=None if sae.target_prep is None else Identity(),
    encoder=sae.encoder.folded(
      *sae.prep.affine(), sae.decoder, pre_bias=sae.pre_bias
    ),
    activation=sae.activation.rescaled(s),
    decoder=decoders.Free(W=s * sae.W_dec, b=s * sae.b_dec + m),
  )
