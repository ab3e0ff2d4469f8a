"""Optimizers in which some weights have a learning rate of their own."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax


def multiplied(
  optimizer: Callable[[Any], optax.GradientTransformation],
  factors: Mapping[str, float],
) -> Callable[[Any], optax.GradientTransformation]:
  """The same optimizer with learning rates multiplied by path.

  The state is that of the optimizer, so that checkpoints and shardings do not
  change. Right for optimizers that are proportional to their rate and treat each
  number on its own, as Adam does.

  Args:
    optimizer: from a learning rate to an optax transformation.
    factors: from the end of a leaf's path, such as "activation.theta", to the
      factor of its rate.
  """

  def scaled(path, update):
    name = jax.tree_util.keystr(path, simple=True, separator=".")
    for end, factor in factors.items():
      if name.endswith(end):
        return update * factor
    return update

  def make(rate: Any) -> optax.GradientTransformation:
    inner = optimizer(rate)

    def update(updates, state, params=None):
      updates, state = inner.update(updates, state, params)
      return jax.tree_util.tree_map_with_path(scaled, updates), state

    return optax.GradientTransformation(inner.init, update)

  return make
