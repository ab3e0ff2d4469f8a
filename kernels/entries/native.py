"""Products of a code given entry by entry, in C++ calls on a CPU, in float32.

As in `sparse_decode.native`, each row of a result is summed by one thread in the
order of the entries.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from saejax.kernels import native


def add_rows(
  values: Float[Array, "e"],
  to: Int[Array, "e"],
  source: Int[Array, "e"],
  y: Float[Array, "m d"],
  *,
  size: int,
) -> Float[Array, "size d"]:
  """Row i: the sum of values[e] y[source[e]] over all e with to[e] = i.

  See `op.add_rows` for the arguments.
  """
  out = jax.ShapeDtypeStruct((size, y.shape[1]), jnp.float32)
  values, y = values.astype(jnp.float32), y.astype(jnp.float32)
  return native.call("AddEntries", [out], values, to, source, y)[0]


def gradients(
  values: Float[Array, "e"],
  rows: Int[Array, "e"],
  indices: Int[Array, "e"],
  g: Float[Array, "m d"],
  W: Float[Array, "n d"],
) -> tuple[Float[Array, "e"], Float[Array, "n d"]]:
  """`products` of the entries that are not 0, and `add_rows` of g by latent.

  See `op.gradients` for the arguments. Rows of g are read once for both.
  """
  float32 = lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32)
  d_values, d_W = native.call(
    "EntryGradients",
    [float32(values.shape), float32(W.shape)],
    *(values.astype(jnp.float32), rows, indices, g, W),
  )
  return d_values, d_W
