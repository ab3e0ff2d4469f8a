"""Multi-TopK: TopK with k at inference and a multiple of k in training."""

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from saejax.sae import activations
from saejax.sae.context import Context, Pre


class Widened(activations.Activation):
  """Multi-TopK: TopK with k latents, and with factor k latents in training.

  Sparse latents come largest first, so that a loss can read the first k and
  train the reconstruction at both numbers of latents (Gao et al. 2024,
  "Multi-TopK").

  Attributes:
    k: active latents per row outside training.
    factor: multiple of k kept in training.
  """

  k: int = flax.struct.field(pytree_node=False)
  factor: int = flax.struct.field(pytree_node=False)

  @property
  def row_k(self) -> int:
    return self.k * self.factor

  @property
  def fused(self) -> bool:
    return True

  @property
  def is_ordered(self) -> bool:
    return True

  def with_k(self, k: int) -> "Widened":
    return self.replace(k=k)

  def __call__(self, pre: Pre, ctx: Context) -> Float[Array, "*b n"]:
    wide = activations.TopK(self.row_k)
    count = self._count(ctx)
    return wide(pre, ctx.replace(k=jnp.asarray(count, jnp.int32)))

  def keep_largest(
    self, values: Float[Array, "*b k"], ctx: Context
  ) -> Float[Array, "*b k"]:
    kept = jnp.arange(self.row_k) < self._count(ctx)
    return jnp.where(kept, jax.nn.relu(values), 0)

  def _count(self, ctx: Context):
    k = self.k if ctx.k is None else ctx.k
    return k * self.factor if ctx.train else k
