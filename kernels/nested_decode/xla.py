"""Errors of every prefix in plain JAX, with one [b, d] array for any k.

The forward pass subtracts rank after rank from the residual. The backward pass
starts at the last residual and adds the ranks back, so that no residual is
stored; both are in float32, so that the additions undo the subtractions.

W is reached through `take`, from indices [b] to float32 rows [b, d], and its
gradient through `add`, so that its rows may lie on several devices.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

UNROLL = 8

Take = Callable[[Int[Array, "b"]], Float[Array, "b d"]]
Add = Callable[[Array, Int[Array, "b"], Float[Array, "b d"]], Array]


def forward(
  values: Float[Array, "b k"],
  indices: Int[Array, "b k"],
  take: Take,
  residual: Float[Array, "b d"],
  weights: Float[Array, "k"],
) -> tuple[Float[Array, "b"], Float[Array, "b d"]]:
  """The weighted errors of each row, and the residual after all ranks.

  Args:
    values: entries of the code, in the order of their ranks.
    indices: latent of each entry.
    take: gathers rows of W by latent, in float32.
    residual: target minus bias.
    weights: weight of the prefix that ends at each rank.
  """

  def step(carry, rank):
    r, total = carry
    v, i, weight = rank
    r -= _scaled(v, take(i))
    return (r, total + weight * jnp.sum(jnp.square(r), axis=-1)), None

  start = (residual.astype(jnp.float32), jnp.zeros(residual.shape[:1]))
  ranks = (_by_rank(values), _by_rank(indices), weights)
  (r, total), _ = jax.lax.scan(step, start, ranks, unroll=UNROLL)
  return total, r


def backward(
  values: Float[Array, "b k"],
  indices: Int[Array, "b k"],
  take: Take,
  add: Add,
  d_W: Float[Array, "n d"],
  rest: Float[Array, "b d"],
  weights: Float[Array, "k"],
  g: Float[Array, "b"],
) -> tuple[Float[Array, "b k"], Float[Array, "n d"], Float[Array, "b d"]]:
  """Gradients of the values, of W (added to d_W) and of the residual.

  With r_j what the first j ranks leave and S_t = 2 g sum_{j>=t} weights_j r_j:
      d value_t = -<S_t, W[i_t]>,  d W[i_t] -= value_t S_t,  d residual = S_1

  Args:
    values, indices, take: as for `forward`.
    add: adds rows to d_W by latent, and returns the sum.
    d_W: initial value of the gradient of W, float32.
    rest: residual after all ranks, from `forward`.
    weights: as for `forward`.
    g: gradient in each row's error.
  """

  def step(carry, rank):
    r, S, d_W = carry
    v, i, weight = rank
    w = take(i)
    S += (2 * weight * g)[:, None] * r
    d_v = jnp.where(v != 0, -jnp.sum(S * w, axis=-1), 0)
    return (r + _scaled(v, w), S, add(d_W, i, -_scaled(v, S))), d_v

  start = (rest, jnp.zeros_like(rest), d_W)
  ranks = (_by_rank(values), _by_rank(indices), weights)
  (_, S, d_W), d_values = jax.lax.scan(step, start, ranks, reverse=True)
  return d_values.T, d_W, S


def _by_rank(a: Array) -> Array:
  a = a.T
  return a if a.dtype == jnp.int32 else a.astype(jnp.float32)


def _scaled(v: Float[Array, "b"], rows: Float[Array, "b d"]) -> Array:
  """v rows, 0 where v is: whatever the rows of absent entries hold."""
  return jnp.where(v[:, None] != 0, v[:, None] * rows, 0)
