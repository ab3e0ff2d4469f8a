"""From activations in the prep's frame to pre-activations."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from saejax.kernels.fused_encode import op as fused_encode
from saejax.sae.part import Part


class Affine(Part):
  """a = (x - b_pre) W^T + b, W [n, d], row i is latent i."""

  W: Float[Array, "n d"]
  b: Float[Array, "n"]

  def __call__(
    self,
    x: Float[Array, "*b d"],
    b_pre: Float[Array, "d"],
    dtype: str = "float32",
  ) -> Float[Array, "*b n"]:
    """Every pre-activation, accumulated in float32."""
    return self.b + jnp.matmul(
      (x - b_pre).astype(dtype),
      self.W.T.astype(dtype),
      preferred_element_type=jnp.float32,
    )

  def largest(
    self,
    x: Float[Array, "*b d"],
    b_pre: Float[Array, "d"],
    k: int,
    dtype: str = "float32",
    *,
    ordered: bool = True,
  ) -> tuple[Float[Array, "*b k"], Int[Array, "*b k"]]:
    """The k largest pre-activations of each row and their latents.

    Largest first if `ordered`, else in the order of latents, which is faster.
    """
    return fused_encode.encode_topk(
      x, b_pre, self.W, self.b, k, dtype, ordered=ordered
    )

  def rows(self, rows: Int[Array, "c"]) -> "Affine":
    """The encoder of those latents alone."""
    return Affine(W=self.W[rows], b=self.b[rows])
