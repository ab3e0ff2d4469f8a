"""KL divergence of a Gaussian posterior from the standard normal, as losses.

Both terms read the means of all latents, so they need the dense engine. They
are sums over latents, while the error is a sum over d: the right coefficient
scales with the norm of the rows.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from saejax.training.recipe import Record

LARGEST_MEAN = 10.0  # means are clipped to this


def kl(record: Record) -> Float[Array, "*b"]:
  """KL(N(mu, sigma^2) || N(0, 1)) of each row, summed over all latents.

      1/2 sum_i (mu_i^2 + sigma_i^2 - 1 - log sigma_i^2)

  which is 1/2 sum_i mu_i^2 where the variance is 1 or there is none. mu is the
  mean, not the sample.

  Args:
    record: the record of the batch.
  """
  return jnp.sum(_each(record), axis=-1)


def masked_kl(record: Record) -> Float[Array, "*b"]:
  """The divergence as in `kl`, summed over the active latents only.

  Args:
    record: the record of the batch.
  """
  kept = record.forward.latents.dense() != 0
  return jnp.sum(jnp.where(kept, _each(record), 0), axis=-1)


def _each(record: Record) -> Float[Array, "*b n"]:
  pre = record.forward.pre
  if pre is None or pre.mean is None:
    raise ValueError("the divergence needs an encoder with a Gaussian head")
  squared = jnp.square(jnp.clip(pre.mean, -LARGEST_MEAN, LARGEST_MEAN))
  if pre.logvar is None:
    return 0.5 * squared
  return 0.5 * (squared + jnp.expm1(pre.logvar) - pre.logvar)
