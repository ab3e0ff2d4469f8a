"""How many latents a `Ranked` activation keeps.

A budget maps an encoder's `Pre` and the `Context` to latents a row, one number
or [*b, 1]; or, for scope "column", to rows a latent [n].
"""

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Float

from saejax.sae.context import Context, Pre
from saejax.sae.part import Part


class Budget(Part):
  """The base of budgets."""

  def __call__(self, pre: Pre, ctx: Context) -> Float[Array, "..."]:
    """Latents a row, or rows a latent."""
    raise NotImplementedError


class Constant(Budget):
  """k latents a row, which under batch scope may be a fraction."""

  k: float = flax.struct.field(pytree_node=False)

  def __call__(self, pre: Pre, ctx: Context) -> Float[Array, ""]:
    return jnp.asarray(self.k if ctx.k is None else ctx.k, jnp.float32)


class Annealed(Budget):
  """From k_start to k in a straight line over the first steps, then k.

      k_t = max(k, k_start + (k - k_start) t / steps), rounded down

  Attributes:
    k: in the end, and outside training.
    k_start: at step 0.
    steps: that the line takes.
  """

  k: float = flax.struct.field(pytree_node=False)
  k_start: float = flax.struct.field(pytree_node=False)
  steps: int = flax.struct.field(pytree_node=False)

  def __call__(self, pre: Pre, ctx: Context) -> Float[Array, ""]:
    k = jnp.asarray(self.k if ctx.k is None else ctx.k, jnp.float32)
    if ctx.step is None:
      return k
    t = jnp.minimum(ctx.step.astype(jnp.float32) / self.steps, 1.0)
    return jnp.floor(self.k_start + (k - self.k_start) * t)
