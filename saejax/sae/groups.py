"""GroupMax: keeps one latent in each of k contiguous groups."""

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from saejax.sae.activations import Activation
from saejax.sae.context import Context, Pre


class GroupMax(Activation):
  """The largest pre-activation of each of k contiguous groups, then ReLU.

  Groups have n / k latents; ties keep the lowest index. A traced k
  (`Context.k`) that does not divide n makes the last group larger.

  Attributes:
    k: number of groups, a divisor of n.

  References:
    EleutherAI, sparsify, activation "groupmax".
  """

  k: int = flax.struct.field(pytree_node=False)

  @property
  def row_k(self) -> int:
    return self.k

  def with_k(self, k: int) -> "GroupMax":
    return self.replace(k=k)

  def __call__(self, pre: Pre, ctx: Context) -> Float[Array, "*b n"]:
    n = pre.a.shape[-1]
    if n % self.k:
      raise ValueError(f"k={self.k} groups must divide n={n}")
    a = jax.lax.stop_gradient(pre.a)
    first = _first_of_groups(a, self.k) if ctx.k is None else _first(a, ctx.k)
    return jnp.where(jnp.arange(n) == first, jax.nn.relu(pre.a), 0)


def _first_of_groups(a: Float[Array, "*b n"], k: int):
  """For each latent, the index of the largest latent of its group."""
  groups = a.reshape(*a.shape[:-1], k, -1)
  first = jnp.argmax(groups, axis=-1)
  first += jnp.arange(k) * groups.shape[-1]
  return jnp.repeat(first, groups.shape[-1], axis=-1)


def _first(a: Float[Array, "*b n"], k: Array):
  """As `_first_of_groups`, for a traced number of groups."""
  n = a.shape[-1]
  group = jnp.minimum(jnp.arange(n) // (n // k), k - 1)
  starts = jnp.diff(group, prepend=-1) != 0

  def larger(left, right):
    """Runs of one group, joined: the value and index of the largest."""
    (v, i, _), (w, j, new) = left, right
    better = new | (w > v)
    return jnp.where(better, w, v), jnp.where(better, j, i), left[2] | new

  at = jnp.broadcast_to(jnp.arange(n), a.shape)
  starts = jnp.broadcast_to(starts, a.shape)
  _, best, _ = jax.lax.associative_scan(larger, (a, at, starts), axis=-1)
  last = jnp.searchsorted(group, group, side="right") - 1
  return jnp.take(best, last, axis=-1)
