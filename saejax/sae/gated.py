"""The gated encoder: one head says whether a latent is on, one how strongly."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from saejax.sae import encoders
from saejax.sae.activations import Activation
from saejax.sae.context import Context, Pre
from saejax.sae.part import Part


class Gated(Part):
  """Two heads on shared rows W.

      p    = (x - b_pre) W^T
      gate = p + b_gate
      a    = p exp(r_mag) + b_mag

  Attributes:
    W: rows of both heads.
    b_gate: bias of the gate.
    b_mag: bias of the magnitude.
    r_mag: logarithm of the magnitude's scale.

  References:
    Rajamanoharan et al., Improving Dictionary Learning with Gated Sparse
    Autoencoders, 2024, arXiv:2404.16014.
  """

  W: Float[Array, "n d"]
  b_gate: Float[Array, "n"]
  b_mag: Float[Array, "n"]
  r_mag: Float[Array, "n"]

  def __call__(self, x: Float[Array, "*b d"], ctx: Context) -> Pre:
    """Pre-activations of both heads, accumulated in float32."""
    p = encoders.matmul(x - ctx.b_pre, self.W, ctx.dtype)
    return Pre(a=p * jnp.exp(self.r_mag) + self.b_mag, gate=p + self.b_gate)


def init(W: Float[Array, "n d"]) -> Gated:
  """An encoder with those rows; every other number 0."""
  zeros = lambda: jnp.zeros(W.shape[:1])
  return Gated(W=W, b_gate=zeros(), b_mag=zeros(), r_mag=zeros())


class Gate(Activation):
  """z = max(a, 0) where the gate is above 0, else 0.

  No gradient reaches the gate from here: the loss has terms of its own for it.
  """

  def __call__(self, pre: Pre, ctx: Context) -> Float[Array, "*b n"]:
    return jnp.where(opened(pre), jax.nn.relu(pre.a), 0)


def opened(pre: Pre) -> Array:
  """Where the gate is above 0.

  Raises:
    ValueError: the encoder has no gate head.
  """
  if pre.gate is None:
    raise ValueError("this encoder has no gate head; use gated.Gated")
  return pre.gate > 0
