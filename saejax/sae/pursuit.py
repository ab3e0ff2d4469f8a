"""Matching pursuit: latents are chosen one at a time, of what is left of x."""

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from saejax.sae.activation import Activation
from saejax.sae.context import Context, Pre


class Pursuit(Activation):
  """Adds the latent that fits the residual best, until little is left.

      i = argmax_j r w_j,   v = max(r w_i, 0),   z_i += v,   r -= v w_i

  with r = x - b_pre at first. Rows of the decoder should have unit norm; the
  encoder is `encoders.Tied`, whose pre-activations are not read.

  Attributes:
    residual: a row is done where |r| is below it; 0 switches this off.
    steps: most steps per row.
    stop_on_repeat: whether a row is done when a step adds no new latent.

  References:
    Costa et al., From Flat to Hierarchical: Extracting Sparse Representations
    with Matching Pursuit, 2025, arXiv:2506.03093.
    SAELens 6.54.12, matching_pursuit_sae.py, for when rows are done.
  """

  residual: float = flax.struct.field(pytree_node=False)
  steps: int = flax.struct.field(pytree_node=False)
  stop_on_repeat: bool = flax.struct.field(pytree_node=False, default=True)

  def __call__(self, pre: Pre, ctx: Context) -> Float[Array, "*b n"]:
    W = ctx.W_dec
    r = (ctx.x - ctx.b_pre).astype(jnp.float32)
    z = jnp.zeros_like(pre.a)
    done = jnp.zeros(r.shape[:-1], bool)

    def going(state) -> Array:
      step, _, _, done = state
      return (step < self.steps) & ~jnp.all(done)

    def step(state):
      count, r, z, done = state
      best = jnp.argmax(jax.nn.relu(r @ W.T), axis=-1)
      w = W[best]
      v = jax.nn.relu(jnp.sum(r * w, axis=-1))
      v = jnp.where(done, 0, v)[..., None]
      before = jnp.take_along_axis(z, best[..., None], axis=-1)
      after = jnp.put_along_axis(
        z, best[..., None], before + v, axis=-1, inplace=False
      )
      r = r - v * w
      if self.stop_on_repeat:
        done |= jnp.all((after != 0) == (z != 0), axis=-1)
      if self.residual > 0:
        done |= jnp.linalg.norm(r, axis=-1) < self.residual
      return count + 1, r, after, done

    return jax.lax.while_loop(going, step, (0, r, z, done))[2]
