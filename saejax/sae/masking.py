"""A ReLU whose latents are masked at random in training."""

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from saejax.sae.activations import Activation
from saejax.sae.context import Context, Pre

PROBABILITY = "mask_probability"  # statistic [n] updated by a rule


class RandomMask(Activation):
  """ReLU with random masks in training: z = relu(a) m, P(m_i = 0) = p_i.

  p is a statistic of the batches before. Nothing is masked outside training,
  and nothing is rescaled.

  Attributes:
    per_row: whether a mask is drawn per row instead of per batch.

  References:
    Time-Aware Feature Selection: Adaptive Temporal Masking for Stable Sparse
    Autoencoder Training, 2025, arXiv:2510.08855.
  """

  per_row: bool = flax.struct.field(pytree_node=False, default=False)

  def __call__(self, pre: Pre, ctx: Context) -> Float[Array, "*b n"]:
    """Masks in training. Raises ValueError without a key or the statistic."""
    z = jax.nn.relu(pre.a)
    if not ctx.train:
      return z
    key = ctx.rows_key() if self.per_row else ctx.random_key()
    if PROBABILITY not in ctx.stats:
      raise ValueError(f"masking in training needs stats with {PROBABILITY}")
    shape = z.shape if self.per_row else z.shape[-1:]
    masked = jax.random.bernoulli(key, ctx.stats[PROBABILITY], shape)
    return jnp.where(masked, 0, z)
