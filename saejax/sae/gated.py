"""The gated encoder: one head gates a latent, one gives its magnitude."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from saejax.sae import encoders
from saejax.sae.activations import Activation, Threshold
from saejax.sae.context import Context, Pre


class Gated(encoders.Encoder):
  """The encoder of a gated SAE: two heads on shared rows W.

  Used with the activation `Gate`.

      p    = (x - b_pre) W^T
      gate = p + b_gate
      a    = p exp(r_mag) + b_mag

  Attributes:
    W: weights shared by both heads.
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
    p = encoders.centred_matmul(x, ctx.b_pre, self.W, ctx.dtype)
    return Pre(a=p * jnp.exp(self.r_mag) + self.b_mag, gate=p + self.b_gate)

  def width(self, decoder) -> int:
    del decoder
    return self.W.shape[-1]

  def weights(self, decoder) -> tuple[Float[Array, "n d"], Float[Array, "n"]]:
    """The rows of both heads, and the magnitude's bias."""
    del decoder
    return self.W, self.b_mag

  def threshold_form(
    self,
  ) -> tuple[Float[Array, "n d"], Float[Array, "n"], Float[Array, "n"]]:
    """exp(r_mag) W, b_mag and max(b_mag - exp(r_mag) b_gate, 0)."""
    scale = jnp.exp(self.r_mag)
    theta = jnp.maximum(self.b_mag - scale * self.b_gate, 0)
    return scale[:, None] * self.W, self.b_mag, theta

  def folded(self, centre, scale, decoder, *, pre_bias: bool) -> "Gated":
    """Folds both heads; the magnitude's shift is scaled by exp(r_mag)."""
    del decoder
    W = self.W / scale
    shift = encoders.centre_shift(W, centre, pre_bias)
    return self.replace(
      W=W,
      b_gate=self.b_gate - shift,
      b_mag=self.b_mag - jnp.exp(self.r_mag) * shift,
    )


def init(W: Float[Array, "n d"]) -> Gated:
  """An encoder with the rows W; all other parameters are 0.

  Args:
    W: encoder rows.
  """
  zeros = lambda: jnp.zeros(W.shape[:1])
  return Gated(W=W, b_gate=zeros(), b_mag=zeros(), r_mag=zeros())


class Gate(Activation):
  """The activation of a gated SAE: z = max(a, 0) where the gate is above 0.

  The step function gives the gate no gradient: separate loss terms train it.
  """

  def __call__(self, pre: Pre, ctx: Context) -> Float[Array, "*b n"]:
    return jnp.where(opened(pre), jax.nn.relu(pre.a), 0)

  def threshold_form(self, encoder) -> tuple[encoders.Encoder, Activation]:
    """The exactly equivalent affine encoder and thresholds."""
    W, b, theta = encoder.threshold_form()
    return encoders.Affine(W=W, b=b), Threshold(theta)


def opened(pre: Pre) -> Array:
  """Boolean mask of latents whose gate is above 0.

  Args:
    pre: pre-activations.

  Raises:
    ValueError: the encoder has no gate head.
  """
  if pre.gate is None:
    raise ValueError("this encoder has no gate head; use gated.Gated")
  return pre.gate > 0
