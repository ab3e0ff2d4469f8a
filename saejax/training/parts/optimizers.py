"""Optimizers with a separate learning rate for some weights."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax


def multiplied(
  optimizer: Callable[[Any], optax.GradientTransformation],
  factors: Mapping[str, float],
) -> Callable[[Any], optax.GradientTransformation]:
  """Multiplies an optimizer's learning rate by factors that depend on the path.

  The state is that of the optimizer, so that checkpoints and shardings do not
  change. Valid for elementwise optimizers whose updates are proportional to the
  learning rate, such as Adam.

  Args:
    optimizer: function of a learning rate that gives an optax transformation.
    factors: factor of the learning rate by the end of a leaf's path, such as
      "activation.theta".
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
