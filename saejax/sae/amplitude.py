"""A tied SAE of unit directions, each with its own amplitude.

    a_i = w_i (x - b_pre),    x_hat = sum_i amplitude_i w_i z_i + b_pre

Both layers read the same rows w_i, which a constraint holds at unit norm.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from saejax.sae import encoders
from saejax.sae.part import Part


class Amplitude(Part):
  """A decoder with rows a_i w_i.

  Attributes:
    W: rows w_i, kept at unit norm by
      `training.parts.constraints.unit_norm_decoder`.
    a: amplitudes.
    b: decoder bias.
  """

  W: Float[Array, "n d"]
  a: Float[Array, "n"]
  b: Float[Array, "d"]

  @property
  def n(self) -> int:
    return self.W.shape[-2]

  def rows(self) -> Float[Array, "n d"]:
    return self.a[..., None] * self.W


def unit(W: Float[Array, "n d"], b: Float[Array, "d"]) -> Amplitude:
  """Rows W with amplitudes 1.

  Args:
    W: the rows.
    b: the bias.
  """
  return Amplitude(W=W, a=jnp.ones(W.shape[:1]), b=b)


class Transposed(encoders.Linear):
  """a = (x - b_pre) W^T with the decoder's stored W, and no bias."""

  def affine(self, decoder) -> tuple[Float[Array, "n d"], Float[Array, "n"]]:
    return decoder.W, jnp.zeros(decoder.W.shape[:-1])
