"""Rows of a training state replaced or permuted, latent by latent.

A latent is a row of the weights, of the optimizer's moments, of the weight
average and of the statistics. Rules change them together or not at all; which
arrays have one row per latent follows from their axes (`training.state.axes`).
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
  """Row i becomes what row order[i] was, everywhere.

  Raises:
    ValueError: an array that should have one row per latent has not, or it has
      one row per head.
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
  given = dict(stats or {})
  where = lambda old, new: jnp.where(
    mask.reshape(-1, *(1,) * (old.ndim - 1)), new, old
  )
  zeros = lambda tree: jax.tree.map(jnp.zeros_like, tree)
  ema = state.ema
  if jax.tree.leaves(ema):
    if ema_decay is None:
      raise ValueError("the state keeps a weight average: give its ema_decay")
    # The average is stored before its bias towards 0 is divided out.
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
  """f of every array with one row per latent; the others as they are."""
  n = state.sae.n

  def leaf(path, value, names, *values):
    name = jax.tree_util.keystr(path, simple=True, separator=".")
    if names is None:
      raise InputError(
        "optimizer",
        name,
        "must be shaped like its weight where a recipe moves latents, got "
        f"shape {value.shape}",
        "use an optimizer such as optax.adam",
      )
    if names[:1] == (HEAD,):
      raise ValueError(f"{name} has rows of heads: no latent moves alone")
    if names[:1] != (LATENT,):
      return value
    if value.shape[:1] != (n,):
      raise ValueError(f"{name} is not a row a latent: {value.shape}, n={n}")
    return f(value, *values)

  return jax.tree_util.tree_map_with_path(
    leaf, state, states.axes(state), *others
  )
