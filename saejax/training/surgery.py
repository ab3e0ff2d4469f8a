"""Rows of a training state replaced or permuted, latent by latent.

A latent is a row of the weights, of the optimizer's moments, of the weight
average and of the statistics. Rules change them together or not at all; which
leaves have latents first is said by the table of `sharding`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from saejax.sae.sae import SAE
from saejax.training import sharding
from saejax.training.state import TrainState


def permute_latents(state: TrainState, order: Int[Array, "n"]) -> TrainState:
  """Row i becomes what row order[i] was, everywhere.

  Raises:
    ValueError: a leaf that the table calls per latent has no row a latent.
  """
  take = lambda leaf: leaf[order]
  n = state.sae.n
  return state.replace(
    sae=_map(take, state.sae, n),
    opt_state=_map(take, state.opt_state, n),
    ema=_map(take, state.ema, n),
    stats=_map(take, state.stats, n),
  )


def replace_latents(
  state: TrainState,
  mask: Bool[Array, "n"],
  new: SAE,
  *,
  stats: Mapping[str, Array] | None = None,
  ema_decay: float | None = None,
) -> TrainState:
  """The latents of a mask start anew: weights from `new`, moments 0.

  Args:
    state: of one member.
    mask: which latents.
    new: an SAE of the same structure; its rows at the mask are used.
    stats: new values of statistics of each latent, by name; 0 for the others.
    ema_decay: of the weight average, where one is kept: it goes on as if the
      new rows had been there from the start.

  Raises:
    ValueError: a weight average without its decay; as `permute_latents`.
  """
  n, given = state.sae.n, dict(stats or {})
  where = lambda new, old: jnp.where(
    mask.reshape(-1, *(1,) * (old.ndim - 1)), new, old
  )
  zero = lambda leaf: where(jnp.zeros_like(leaf), leaf)
  ema = state.ema
  if jax.tree.leaves(ema):
    if ema_decay is None:
      raise ValueError("the state keeps a weight average: give its ema_decay")
    # The average is stored before its bias towards 0 is divided out.
    scale = 1 - ema_decay ** ema.count.astype(jnp.float32)
    rows = jax.tree.map(lambda a: a * scale, new)
    ema = ema._replace(ema=_map(where, rows, n, ema.ema))
  started = {
    name: jnp.zeros_like(leaf) if name not in given else given[name]
    for name, leaf in state.stats.items()
  }
  return state.replace(
    sae=_map(where, new, n, state.sae),
    opt_state=_map(zero, state.opt_state, n),
    ema=ema,
    stats=_map(where, started, n, dict(state.stats)),
  )


def _map(f: Callable[..., Array], tree: Any, n: int, old: Any = None) -> Any:
  """f of every leaf with latents first; the others as they are, or were."""

  def leaf(path, value, *before):
    if not sharding.per_latent(path, value):
      return before[0] if before else value
    if value.shape[:1] != (n,):
      name = jax.tree_util.keystr(path, simple=True, separator=".")
      raise ValueError(f"{name} is not a row a latent: {value.shape}, n={n}")
    return f(value, *before)

  rest = () if old is None else (old,)
  return jax.tree_util.tree_map_with_path(leaf, tree, *rest)
