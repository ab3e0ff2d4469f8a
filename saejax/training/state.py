"""The training state of one member, and the axes of all its arrays."""

from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import numpy as np
from jaxtyping import Array, Bool, Int, PRNGKeyArray

from saejax import processes
from saejax.sae import axes as sae_axes
from saejax.sae.sae import SAE

Stats = Mapping[str, Array]


class TrainState(flax.struct.PyTreeNode):
  """The complete training state of one member (or of all, stacked).

  Attributes:
    step: number of batches consumed.
    sae: the weights.
    opt_state: state of the optimizer.
    ema: state of the weight EMA, () without one.
    stats: statistics updated by rules.
    key: random key for steps.
    alive: False once a loss or gradient was not finite; the member then keeps
      its last good weights.
    failed_step: that step, -1 while alive.
    skipped: updates left out in a row under the policy "skip", because this
      member's loss or gradient was not finite.
    halted: True once a batch held non-finite rows under the policy "stop";
      nothing changes from then on.
    stats_axes: names of the axes of each statistic, as named by its rule, such
      as ("density", "n").
  """

  step: Int[Array, ""]
  sae: SAE
  opt_state: Any
  ema: Any
  stats: Stats
  key: PRNGKeyArray
  alive: Bool[Array, ""]
  failed_step: Int[Array, ""]
  skipped: Int[Array, ""]
  halted: Bool[Array, ""]
  stats_axes: tuple[tuple[str, str], ...] = flax.struct.field(
    pytree_node=False, default=()
  )


def failed_steps(states: Any) -> list[int]:
  """The step at which each member was frozen, in order; -1 while it is alive.

  Args:
    states: states of all members, of `Group` or of `Stacks`.
  """
  is_state = lambda node: isinstance(node, TrainState)
  each = jax.tree.leaves(states, is_leaf=is_state)
  failed = processes.local([state.failed_step for state in each])
  return [int(step) for own in failed for step in np.atleast_1d(own)]


def axes(state: TrainState, *, stacked: bool = False) -> TrainState:
  """Names the axes of each array of a state, see `saejax.sae.axes.axes`.

  Arrays of the optimizer have the axes of the weight they belong to, also those
  with one number per row [n, 1]. Those of other shapes, such as Adafactor's, have
  None: it is unknown which rows belong to which latent.

  Args:
    state: arrays or shapes.
    stacked: whether every array has a leading axis of members.

  Raises:
    TypeError: no rule names the axes of a statistic, or a part holds an array
      that its class does not declare.
  """
  at = jax.tree_util.tree_leaves_with_path
  shapes = {path: np.shape(leaf) for path, leaf in at(state.sae)}

  def like_weights(node: Any) -> Any:
    names = sae_axes.axes(node, stacked=stacked)
    if not isinstance(node, SAE):
      return names
    leaves, structure = jax.tree_util.tree_flatten_with_path(node)
    like = lambda own, shape: own in (shape, (*shape[:-1], 1))
    return structure.unflatten(
      own if own == () or like(np.shape(leaf), shapes.get(path, ())) else None
      for (path, leaf), own in zip(
        leaves, structure.flatten_up_to(names), strict=True
      )
    )

  per_weight = lambda tree: jax.tree.map(
    like_weights, tree, is_leaf=lambda node: isinstance(node, SAE)
  )
  declared = dict(state.stats_axes)
  unnamed = sorted(set(state.stats) - set(declared))
  if unnamed:
    raise TypeError(f"no rule names the axes of {', '.join(unnamed)}")
  numbers = ("step", "key", "alive", "failed_step", "skipped", "halted")
  return state.replace(
    **dict.fromkeys(numbers, ()),
    sae=sae_axes.axes(state.sae, stacked=stacked),
    opt_state=per_weight(state.opt_state),
    ema=per_weight(state.ema),
    stats={name: tuple(declared[name].split()) for name in state.stats},
  )
