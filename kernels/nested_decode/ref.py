"""The definition: errors of every prefix of a sparse code, weighted.

Values of 0 are padding and count as absent.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

HIGHEST = jax.lax.Precision.HIGHEST


def squares(
  values: Float[Array, "b k"],
  indices: Int[Array, "b k"],
  W: Float[Array, "n d"],
  residual: Float[Array, "b d"],
  weights: Float[Array, "k"],
) -> Float[Array, "b"]:
  """sum_j weights[j] |residual[b] - sum_{t<=j} values[b, t] W[i_bt]|^2.

  See `op.squares` for the arguments.
  """
  rows = jnp.where(values[..., None] != 0, W[indices], 0)
  partial = jnp.cumsum(values[..., None] * rows, axis=1)
  errors = jnp.sum(jnp.square(residual[:, None] - partial), axis=-1)
  return jnp.einsum("bk,k->b", errors, weights, precision=HIGHEST)
