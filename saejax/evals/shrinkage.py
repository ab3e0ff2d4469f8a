"""Shrinkage: too small norms of reconstructions, as with an L1 penalty."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from saejax.sae.context import Batch
from saejax.sae.sae import SAE


def shrinkage(sae: SAE, batch: Float[Array, "b d"] | Batch) -> float:
  """Computes |1 - g|, where g is the least-squares scale of reconstructions.

      g = sum <z W_dec, x' - b_dec> / sum |z W_dec|^2

  over the rows x' of the batch in the frame of the prep.

  Args:
    sae: the SAE.
    batch: rows.

  References:
    Rajamanoharan et al., Improving Dictionary Learning with Gated Sparse
    Autoencoders, 2024, arXiv:2404.16014, which reports 1 / g.
  """
  return float(_shrinkage(sae, batch))


@jax.jit
def _shrinkage(sae, batch):
  out = sae.forward(batch)
  x_hat, x = out.x_hat - sae.b_dec, out.target - sae.b_dec
  return jnp.abs(1 - jnp.sum(x_hat * x) / jnp.sum(x_hat**2))
