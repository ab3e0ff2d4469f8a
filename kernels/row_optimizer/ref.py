"""The definition of one step of Adam on the rows of a matrix of unit rows."""

import jax.numpy as jnp
from jaxtyping import Array, Float

NORM_EPS = 1e-8  # smaller norms count as this, so that rows of zeros stay 0


def update(
  W: Float[Array, "n d"],
  g: Float[Array, "n d"],
  m: Float[Array, "n d"],
  v: Float[Array, "n d"],
  scalars: Float[Array, "5"],
  *,
  b1: float,
  b2: float,
  eps: float,
) -> tuple[Float[Array, "n d"], Float[Array, "n d"], Float[Array, "n d"]]:
  """The new W, m and v.

  Args:
    W, g, m, v, b1, b2, eps: see `op.update`.
    scalars: factor of the gradient, learning rate, 1 - b1^t, 1 - b2^t, and
      whether to do the step (above 0).
  """
  scale, rate, correct1, correct2, good = scalars
  along = jnp.sum(g * W, axis=-1, keepdims=True)
  g = scale * (g - along * W)
  new_m = b1 * m + (1 - b1) * g
  new_v = b2 * v + (1 - b2) * g * g
  step = (new_m / correct1) / (jnp.sqrt(new_v / correct2) + eps)
  moved = W - rate * step
  norm = jnp.sqrt(jnp.sum(moved * moved, axis=-1, keepdims=True))
  moved = moved / jnp.maximum(norm, NORM_EPS)
  keep = lambda new, old: jnp.where(good > 0, new, old)
  return keep(moved, W), keep(new_m, m), keep(new_v, v)
