"""The same SAE on raw activations, its prep folded into the weights."""

from saejax.sae import decoders, encoders, prep
from saejax.sae.sae import SAE


def fold_prep(sae: SAE) -> SAE:
  """An SAE without prep that gives the same latents and reconstructions.

  With x' = (x - m) / s and a pre-bias:
      W_enc <- W_enc / s,  W_dec <- s W_dec,  b_dec <- s b_dec + m
  and without a pre-bias also b_enc <- b_enc - W_enc m / s. Latents keep their
  values; the decoder's rows are no longer of unit norm.

  Raises:
    ValueError: the prep or the encoder is not linear, so that no weights can
      hold it.
  """
  if isinstance(sae.prep, prep.Identity):
    return sae
  if not isinstance(sae.prep, prep.Affine):
    raise ValueError(
      f"{type(sae.prep).__name__} depends on each row and cannot be folded"
    )
  m, s = sae.prep.centre, sae.prep.scale
  W_enc = sae.W_enc / s
  b_enc = sae.b_enc if sae.pre_bias else sae.b_enc - W_enc @ m
  return sae.replace(
    prep=prep.Identity(),
    encoder=encoders.Affine(W=W_enc, b=b_enc),
    decoder=decoders.Free(W=s * sae.W_dec, b=s * sae.b_dec + m),
  )
