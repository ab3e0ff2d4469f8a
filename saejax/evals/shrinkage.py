"""Shrinkage: reconstructions of too small norm, as under an L1 penalty."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from saejax.sae.context import Batch
from saejax.sae.sae import SAE


def shrinkage(sae: SAE, batch: Float[Array, "b d"] | Batch) -> float:
  """|1 - g|, g the factor that best stretches z W_dec to the rows.

      g = sum <z W_dec, x' - b_dec> / sum |z W_dec|^2

  over the rows of the batch in the frame of the prep.

  References:
    Rajamanoharan et al., Improving Dictionary Learning with Gated Sparse
    Autoencoders, 2024, arXiv:2404.16014, which reports 1 / g.
  """
  return float(_shrinkage(sae, batch))


@jax.jit
def _shrinkage(sae, batch):
  out = sae.forward(batch)
  made, wanted = out.x_hat - sae.b_dec, out.target - sae.b_dec
  return jnp.abs(1 - jnp.sum(made * wanted) / jnp.sum(made**2))
