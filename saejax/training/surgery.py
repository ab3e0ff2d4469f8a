"""Replaces or permutes latents in all arrays of a training state.

A latent is a row of the weights, of the optimizer's moments, of the weight EMA
and of the statistics. Rules change all of them together; which arrays have one
row per latent follows from their axes (`training.state.axes`).
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from saejax.errors import InputError
from saejax.sae.axes import HEAD, LATENT
from saejax.sae.sae import SAE
from saejax.training import state as states
from saejax.training.state import TrainState


def permute_latents(state: TrainState, order: Int[Array, "n"]) -> TrainState:
  """Permutes latents: the new row i of every array is the old row order[i].

  Args:
    state: the state.
    order: old index of each new latent.

  Raises:
    ValueError: an array should have one row per latent and does not, or has one
      row per head.
    InputError: the optimizer's arrays are not shaped like the weights.
  """
  return _map(lambda leaf: leaf[order], state)


def replace_latents(
  state: TrainState,
  mask: Bool[Array, "n"],
  new: SAE,
  *,
  stats: Mapping[str, Array] | None = None,
  ema_decay: float | None = None,
) -> TrainState:
  """Replaces the latents of a mask: weights from `new`, optimizer moments 0.

  Args:
    state: state of one member.
    mask: latents to replace.
    new: an SAE of the same structure; its rows at the mask are used.
    stats: new values of statistics per latent, by name; 0 for the others.
    ema_decay: decay of the weight EMA, if there is one: the EMA is set as if
      the new rows had been there from the start.

  Raises:
    ValueError: the state has a weight EMA and no decay is passed; as
      `permute_latents`.
  """
  given = dict(stats or {})
  where = lambda old, new: jnp.where(
    mask.reshape(-1, *(1,) * (old.ndim - 1)), new, old
  )
  zeros = lambda tree: jax.tree.map(jnp.zeros_like, tree)
  ema = state.ema
  if jax.tree.leaves(ema):
    if ema_decay is None:
      raise ValueError("the state has a weight EMA: pass its ema_decay")
      # The EMA is stored without the correction of its bias towards 0.
    scale = 1 - ema_decay ** ema.count.astype(jnp.float32)
    ema = ema._replace(ema=jax.tree.map(lambda a: a * scale, new))
  started = state.replace(
    sae=new,
    opt_state=zeros(state.opt_state),
    ema=ema,
    stats={**zeros(dict(state.stats)), **given},
  )
  return _map(where, state, started)


def _map(
  f: Callable[..., Array], state: TrainState, *others: TrainState
) -> TrainState:
  """Applies f to every array with one row per latent."""
  n = state.sae.n

  def leaf(path, value, names, *values):
    name = jax.tree_util.keystr(path, simple=True, separator=".")
    if names is None:
      raise InputError(
        "optimizer",
        name,
        "must be shaped like its weight where a recipe permutes or replaces "
        f"latents, got shape {value.shape}",
        "use an optimizer such as optax.adam",
      )
    if names[:1] == (HEAD,):
      raise ValueError(
        f"{name} has one row per head: its latents cannot move separately"
      )
    if names[:1] != (LATENT,):
      return value
    if value.shape[:1] != (n,):
      raise ValueError(
        f"{name} must have one row per latent (n={n}), got {value.shape}"
      )
    return f(value, *values)

  return jax.tree_util.tree_map_with_path(
    leaf, state, states.axes(state), *others
  )
