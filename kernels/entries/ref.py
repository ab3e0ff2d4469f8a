"""The definitions: products of a code given entry by entry.

Values of 0 are padding and count as absent.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

HIGHEST = jax.lax.Precision.HIGHEST


def add_rows(
  values: Float[Array, "e"],
  to: Int[Array, "e"],
  source: Int[Array, "e"],
  y: Float[Array, "m d"],
  size: int,
) -> Float[Array, "size d"]:
  """Row i: the sum of values[e] y[source[e]] over all e with to[e] = i.

  See `op.add_rows` for the arguments.
  """
  rows = jnp.where(values[:, None] != 0, y[source], 0)
  chosen = jnp.where(to[:, None] == jnp.arange(size), values[:, None], 0)
  return jnp.einsum("en,ed->nd", chosen, rows, precision=HIGHEST)


def products(
  a: Float[Array, "m d"],
  i: Int[Array, "e"],
  b: Float[Array, "n d"],
  j: Int[Array, "e"],
) -> Float[Array, "e"]:
  """<a[i[e]], b[j[e]]>.

  See `op.products` for the arguments.
  """
  return jnp.einsum("ed,ed->e", a[i], b[j], precision=HIGHEST)
