"""Variants of Adam: a separate rate for some weights, moments per row."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from saejax.errors import InputError

Optimizer = Callable[[Any], optax.GradientTransformation]


def multiplied(optimizer: Optimizer, factors: Mapping[str, float]) -> Optimizer:
  """Multiplies an optimizer's learning rate by factors that depend on the path.

  The state is that of the optimizer, so that checkpoints and shardings do not
  change. Valid for elementwise optimizers whose updates are proportional to the
  learning rate, such as Adam.

  Args:
    optimizer: function of a learning rate that gives an optax transformation.
    factors: factor of the learning rate by the end of a leaf's path, such as
      "activation.theta".
  """

  return functools.partial(_multiplied, optimizer, factors)


def _multiplied(
  optimizer: Optimizer, factors: Mapping[str, float], rate: Any
) -> optax.GradientTransformation:
  def scaled(path, update):
    name = jax.tree_util.keystr(path, simple=True, separator=".")
    for end, factor in factors.items():
      if name.endswith(end):
        return update * factor
    return update

  inner = optimizer(rate)

  def update(updates, state, params=None):
    updates, state = inner.update(updates, state, params)
    return jax.tree_util.tree_map_with_path(scaled, updates), state

  return optax.GradientTransformation(inner.init, update)


def by_rows(optimizer: Optimizer, name: str) -> Optimizer:
  """The optimizer with second moments per row instead of per entry.

  See `adam_by_rows`.

  Args:
    optimizer: Adam, with settings of its own or with `multiplied` rates.
    name: name of the method, for the error.

  Raises:
    InputError: it is another optimizer.
  """
  if optimizer is optax.adam:
    return adam_by_rows
  if isinstance(optimizer, functools.partial):
    if optimizer.func is optax.adam:
      return functools.partial(
        adam_by_rows, *optimizer.args, **optimizer.keywords
      )
    if optimizer.func is _multiplied:
      inner, factors = optimizer.args
      return multiplied(by_rows(inner, name), factors)
  raise InputError(
    "second_moments",
    "row",
    f"must be element: {name} is not trained by Adam alone",
    "leave it out",
  )


def adam_by_rows(
  learning_rate: Any, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> optax.GradientTransformation:
  """Adam whose second moment is one number per latent.

      m <- b1 m + (1 - b1) g
      v <- b2 v + (1 - b2) mean_d g^2
      w <- w - rate (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)

  for each row w [d] of a matrix, so that v [n, 1] takes a d-th of the memory of m.
  Vectors have a second moment per entry.

  Args:
    learning_rate: the rate.
    b1, b2, eps: settings of Adam.

  References:
    Zhang et al., Adam-mini: Use Fewer Learning Rates To Gain More, 2024,
    arXiv:2406.16793.
  """

  def moment(g):
    square = jnp.square(g)
    return jnp.mean(square, -1, keepdims=True) if g.ndim > 1 else square

  def init(params):
    zeros = functools.partial(jax.tree.map, jnp.zeros_like)
    return optax.ScaleByAdamState(
      count=jnp.zeros((), jnp.int32),
      mu=zeros(params),
      nu=zeros(jax.tree.map(moment, params)),
    )

  def update(updates, state, params=None):
    del params
    mu = optax.tree.update_moment(updates, state.mu, b1, 1)
    nu = optax.tree.update_moment(
      jax.tree.map(moment, updates), state.nu, b2, 1
    )
    count = optax.safe_increment(state.count)
    first = optax.tree.bias_correction(mu, b1, count)
    second = optax.tree.bias_correction(nu, b2, count)
    moved = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), first, second)
    return moved, optax.ScaleByAdamState(count=count, mu=mu, nu=nu)

  return optax.chain(
    optax.GradientTransformation(init, update),
    optax.scale_by_learning_rate(learning_rate),
  )
