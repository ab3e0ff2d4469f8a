"""Decoders, that is the dictionary: row i is the direction of latent i.

Rows of `Free` may have any norm; kept at unit norm by
`training.parts.constraints.unit_norm_decoder` they are the usual TopK decoder.
`Normalised` rows have unit norm in every forward pass, so that gradients flow
through the normalisation and nothing needs projecting.
"""

from typing import Protocol

import jax.numpy as jnp
from jaxtyping import Array, Float

from saejax.sae.part import Part

NORM_EPS = 1e-8


def unit_rows(
  W: Float[Array, "*m n d"], axis: int = -1
) -> Float[Array, "*m n d"]:
  """W with each row (or column, by the axis) divided by its norm.

  Norms below 1e-8 count as 1e-8, so that rows of zeros stay 0.

  Args:
    W: the matrix.
    axis: axis of the norm.
  """
  norm = jnp.linalg.norm(W, axis=axis, keepdims=True)
  return W / jnp.maximum(norm, NORM_EPS)


class Decoder(Protocol):
  """The interface of a decoder; other modules read its `rows()`."""

  b: Float[Array, "d"]

  @property
  def n(self) -> int: ...

  def rows(self) -> Float[Array, "n d"]: ...

  def replace(self, **changes: Array) -> "Decoder": ...


class Stored(Part):
  """Base class of decoders that derive their rows from an array W."""

  W: Float[Array, "n d"]
  b: Float[Array, "d"]

  @property
  def n(self) -> int:
    return self.W.shape[-2]


class Free(Stored):
  """W_dec = W."""

  def rows(self) -> Float[Array, "n d"]:
    return self.W


class Normalised(Stored):
  """W_dec = W with each row divided by its norm.

  References:
    Cunningham et al., Sparse Autoencoders Find Highly Interpretable Features in
    Language Models, 2023, arXiv:2309.08600.
  """

  def rows(self) -> Float[Array, "n d"]:
    return unit_rows(self.W)


class ColumnNormalised(Stored):
  """W_dec = W with each column divided by its norm.

  The weights of all latents into one coordinate of x together have unit norm;
  the rows, the latents' directions, may have any norm.
  """

  def rows(self) -> Float[Array, "n d"]:
    return unit_rows(self.W, axis=-2)
