"""Truncates an SAE to its first latents."""

import jax

from saejax.errors import InputError
from saejax.sae import axes, decoders, encoders
from saejax.sae.sae import SAE


def truncate(sae: SAE, m: int) -> SAE:
  """The SAE of the first m latents, for nested (Matryoshka) dictionaries.

  Encoder and decoder become `Affine` and `Free`. With a threshold its latents
  equal the first m of the whole SAE; an activation that ranks latents now ranks
  m of them, and keeps at most m.

  Args:
    sae: the SAE.
    m: number of latents to keep.

  Raises:
    InputError: m is outside [1, n].
    ValueError: the encoder is not affine.
  """
  n = sae.n
  if not 1 <= m <= n:
    raise InputError("m", m, f"must be in [1, n={n}]", f"use {n} or less")
  activation = sae.activation
  if activation.row_k is not None and activation.row_k > m:
    activation = activation.with_k(m)
  return sae.replace(
    encoder=encoders.Affine(W=sae.W_enc[:m], b=sae.b_enc[:m]),
    activation=jax.tree.map(
      lambda leaf, names: (
        leaf[:m] if names and names[0] == axes.LATENT else leaf
      ),
      activation,
      axes.axes(activation),
    ),
    decoder=decoders.Free(W=sae.W_dec[:m], b=sae.b_dec),
  )
