"""JumpReLU: a learned threshold per latent with a kernel gradient estimate.

    z = a H(a - theta)      H(t) = 1 where t > 0, else 0

The derivatives in theta are estimates; see `kernels.jumprelu.ref`.
"""

from typing import Any

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Float

from saejax.kernels.jumprelu import op
from saejax.kernels.jumprelu.ref import KERNELS as KERNELS
from saejax.kernels.jumprelu.ref import Estimator, jump, step
from saejax.sae.activations import Activation, Threshold, scaled_thetas
from saejax.sae.context import Context, Pre


class JumpReLU(Activation):
  """z_i = a_i where a_i > theta_i, else 0; theta is learned.

  theta itself is the leaf, not its logarithm, with which Adam would move small
  thresholds too slowly. It is kept >= 0 after each update by
  `training.parts.constraints.thresholds_above` and never clamped here: a clamp
  has gradient 0 and would pin the latent.

  Attributes:
    theta: thresholds in the units of a, float32.
    eps: bandwidth of the kernel, in the units of a.
    kernel: name in `KERNELS`.
    ste_to_input: whether the estimators reach a too; see `jump` and `step`.
    post_jump: whether H is taken of z instead of a, as in the published listing
      and in dictionary_learning. Where theta > eps/2 this halves its gradient;
      below, every inactive latent is in the kernel's window and the gradient
      is wrong by orders of magnitude.

  References:
    Rajamanoharan et al., Jumping Ahead: Improving Reconstruction Fidelity with
    JumpReLU Sparse Autoencoders, 2024, arXiv:2407.14435.
  """

  theta: Float[Array, "n"]
  eps: float = flax.struct.field(pytree_node=False, default=0.001)
  kernel: str = flax.struct.field(pytree_node=False, default="rectangle")
  ste_to_input: bool = flax.struct.field(pytree_node=False, default=False)
  post_jump: bool = flax.struct.field(pytree_node=False, default=False)

  def __call__(self, pre: Pre, ctx: Context) -> Float[Array, "*b n"]:
    return jump(pre.a, self.theta, *self._estimator)

  def autoencoded(
    self, encoder, ctx: Context
  ) -> tuple[Pre, Float[Array, "*b n"], Float[Array, "*b d_out"]]:
    """Pre-activations with their L0, latents z and z W_dec, by one op."""
    if not encoder.is_affine:
      return super().autoencoded(encoder, ctx)
    W, b = encoder.affine(ctx.decoder)
    x_hat, a, z, l0 = op.autoencode(
      ctx.x - ctx.b_pre,
      W,
      b,
      self.theta,
      ctx.W_dec,
      Estimator(*self._estimator),
      ctx.dtype,
    )
    return Pre(a=a, l0=l0), z, x_hat

  def l0(self, pre: Pre, ctx: Context) -> Float[Array, "*b"]:
    """sum_i H(a_i - theta_i) of each row, with a gradient in theta.

    Args:
      pre: pre-activations, with L0 where an op counted it.
      ctx: context of the pass.
    """
    if pre.l0 is None or self.post_jump:
      return jnp.sum(self.opened(pre, ctx), axis=-1)
    return pre.l0

  def opened(self, pre: Pre, ctx: Context) -> Float[Array, "*b n"]:
    """H(a - theta): 1 where a latent is on, with a gradient in theta.

    Args:
      pre: pre-activations.
      ctx: context of the pass.
    """
    a = self(pre, ctx) if self.post_jump else pre.a
    return step(a, self.theta, *self._estimator)

  def threshold_form(self, encoder) -> tuple[Any, Threshold]:
    """The unchanged encoder, and theta as a plain `Threshold`."""
    return encoder, Threshold(jnp.maximum(self.theta, 0))

  def flattened(self, members, alphas, n) -> "JumpReLU":
    return self.replace(theta=scaled_thetas(members, alphas, n))

  @property
  def _estimator(self) -> tuple[float, str, bool]:
    return self.eps, self.kernel, self.ste_to_input
