"""Budgets with a separate number of latents for each row."""

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from saejax.sae.budgets import Budget
from saejax.sae.context import Context, Pre


class NormMatch(Budget):
  """The number of latents that brings |z| closest to the norm of the row.

      g_i = relu(a_i) |w_i|, largest first;   c_j = sqrt(g_1^2 + ... + g_j^2)
      k = argmin_{1 <= j < n} |c_j - |x - b_pre||

  the smallest j among ties. For the scope "row" and the score "norm".

  References:
    Lee et al., Evaluating and Designing Sparse Autoencoders by Approximating
    Quasi-Orthogonality, 2025.
  """

  def __call__(self, pre: Pre, ctx: Context) -> Float[Array, "*b 1"]:
    a, x, norms = jax.lax.stop_gradient((pre.a, ctx.x - ctx.b_pre, ctx.norms))
    g = jnp.sort(jnp.square(jax.nn.relu(a) * norms), axis=-1, descending=True)
    c = jnp.sqrt(jnp.cumsum(g, axis=-1))
    off = jnp.abs(c - jnp.linalg.norm(x, axis=-1, keepdims=True))
    # As in the official code the last c is 1e4: all n are never kept.
    off = jnp.where(jnp.arange(a.shape[-1]) < a.shape[-1] - 1, off, jnp.inf)
    k = 1 + jnp.argmin(off, axis=-1, keepdims=True)
    return k.astype(jnp.float32)


class Probe(Budget):
  """The number of latents as a function of the score a linear probe predicts.

      y = clip(x w + b, least, most),   s = (y - least) / (most - least)
      k = round(min_k + (max_k - min_k) sigmoid(steepness (s - 1/2)))

  x is raw, not in the frame of the prep. k has no gradient: w and b are trained
  by a separate loss, see `training.parts.probe`. For the scope "row".

  Attributes:
    w, b: weights and bias of the probe.
    penalty: ridge penalty of the fit per row; frozen.
    min_k, max_k: exclusive bounds of k before rounding.
    least, most: range of the scores.
    steepness: slope of the sigmoid.

  References:
    AdaptiveK Sparse Autoencoders: Dynamic Sparsity Allocation for Interpretable
    LLM Representations, 2025, arXiv:2508.17320.
  """

  w: Float[Array, "d"]
  b: Float[Array, ""]
  penalty: Float[Array, ""]
  min_k: int = flax.struct.field(pytree_node=False)
  max_k: int = flax.struct.field(pytree_node=False)
  least: float = flax.struct.field(pytree_node=False, default=0.0)
  most: float = flax.struct.field(pytree_node=False, default=10.0)
  steepness: float = flax.struct.field(pytree_node=False, default=6.0)

  def predict(self, x: Float[Array, "*b d"]) -> Float[Array, "*b"]:
    """x w + b of raw activations, in float32.

    Args:
      x: raw activations.
    """
    return x.astype(jnp.float32) @ self.w + self.b

  def at(self, score: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """Number of latents for a score.

    Args:
      score: scores.
    """
    score = jnp.clip(score, self.least, self.most)
    s = (score - self.least) / (self.most - self.least)
    share = jax.nn.sigmoid(self.steepness * (s - 0.5))
    return jnp.round(self.min_k + (self.max_k - self.min_k) * share)

  def __call__(self, pre: Pre, ctx: Context) -> Float[Array, "*b 1"]:
    score = self.predict(ctx.batch.x)
    return jax.lax.stop_gradient(self.at(score))[..., None]
