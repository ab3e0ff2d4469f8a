"""The definition of exact top-k."""

import jax
from jaxtyping import Array, Float, Int


def top_k(
  a: Float[Array, "*b n"], k: int
) -> tuple[Float[Array, "*b k"], Int[Array, "*b k"]]:
  """The k largest of each row, largest first, equal ones lowest index first.

  See `op.top_k` for the arguments.
  """
  return jax.lax.top_k(a, k)
