"""From pre-activations to latents: what is kept, and with which value.

An activation maps pre-activations a [*b, n] to latents z [*b, n]. One that
keeps at most `row_k` latents a row also maps its row's `row_k` largest
pre-activations to their values, which is all the sparse engine computes.

`k` overrides a static k by a traced one, at most as large: members of a sweep
over k share one program under the largest k and drop the ranks beyond theirs.
"""

from typing import Protocol

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from saejax.kernels.topk import op as topk
from saejax.sae.part import Part


class Activation(Protocol):
  """The interface of an activation; see the module docstring."""

  @property
  def row_k(self) -> int | None:
    """Most latents a row keeps; None where a row is unbounded."""
    ...

  def with_k(self, k: int) -> "Activation":
    """The same with another static k; itself where there is none."""
    ...

  def __call__(
    self, a: Float[Array, "*b n"], k: Int[Array, ""] | None = None
  ) -> Float[Array, "*b n"]: ...

  def keep(
    self, values: Float[Array, "*b k"], k: Int[Array, ""] | None = None
  ) -> Float[Array, "*b k"]: ...


class ReLU(Part):
  """z = max(a, 0)."""

  @property
  def row_k(self) -> None:
    return None

  def with_k(self, k: int) -> "ReLU":
    return self

  def __call__(
    self, a: Float[Array, "*b n"], k: Int[Array, ""] | None = None
  ) -> Float[Array, "*b n"]:
    return jax.nn.relu(a)

  def keep(
    self, values: Float[Array, "*b k"], k: Int[Array, ""] | None = None
  ) -> Float[Array, "*b k"]:
    return jax.nn.relu(values)


class TopK(Part):
  """The k largest pre-activations of each row, then ReLU.

  Equal pre-activations are kept lowest index first.

  References:
    Makhzani and Frey, k-Sparse Autoencoders, 2013, arXiv:1312.5663.
    Gao et al., Scaling and evaluating sparse autoencoders, 2024,
    arXiv:2406.04093.
  """

  k: int = flax.struct.field(pytree_node=False)

  @property
  def row_k(self) -> int:
    return self.k

  def with_k(self, k: int) -> "TopK":
    return self.replace(k=k)

  def __call__(
    self, a: Float[Array, "*b n"], k: Int[Array, ""] | None = None
  ) -> Float[Array, "*b n"]:
    values, indices = topk.top_k(a, self.k)
    return jnp.put_along_axis(
      jnp.zeros_like(a), indices, self.keep(values, k), axis=-1, inplace=False
    )

  def keep(
    self, values: Float[Array, "*b k"], k: Int[Array, ""] | None = None
  ) -> Float[Array, "*b k"]:
    values = jax.nn.relu(values)
    if k is None:
      return values
    return jnp.where(jnp.arange(self.k) < k, values, 0)
