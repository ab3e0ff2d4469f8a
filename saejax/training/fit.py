"""Training in memory: a recipe, a function that gives batches, trained SAEs.

For small studies and for use inside other code: `loop.train` without a folder.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from saejax.errors import InputError
from saejax.sae.context import Batch, as_batch
from saejax.sae.sae import SAE
from saejax.training import loop
from saejax.training.config import TrainConfig
from saejax.training.members import Member
from saejax.training.recipe import Recipe
from saejax.training.sources import Draw, Drawn
from saejax.training.step import TrainState


def fit(
  make_recipe: Recipe | Callable[..., Recipe],
  draw: Draw,
  *,
  steps: int,
  members: Sequence[Member],
  stacked: bool = False,
  engine: str = "auto",
  sample: Array | Batch | None = None,
  log_steps: int = 0,
) -> tuple[list[SAE], list[TrainState], dict[str, np.ndarray]]:
  """Trains members on one stream.

  Args:
    make_recipe: a recipe, or a function from a member's arguments, by name, to
      one.
    draw: from the step (a traced int32) to a batch; a `jax.tree_util.Partial`
      where it holds large arrays, see `Group.run_drawn`.
    steps: batches to consume.
    members: SAEs of equal shape; all read the same batches.
    stacked: vmapped instead of in turn; for coupled or tiny members.
    engine: "auto", "dense" or "sparse".
    sample: raw rows for the initial weights; the first batch by default.
    log_steps: steps between the metrics kept after those of the first step; 0
      keeps the first and the last.

  Returns:
    The inference form of each member, their states without those of the
    optimizer, and metrics [kept, members].

  Raises:
    InputError: the batches lack a field that the method needs, a coupled
      method has one member, or members have arguments beside a recipe that is
      already built.
    NonFiniteError: rows were not finite.
  """
  first = as_batch(jax.jit(draw)(jnp.asarray(0, jnp.int32)))
  kept: list[Mapping[str, np.ndarray]] = []
  wanted = {0, *range(log_steps or steps, steps, log_steps or steps), steps - 1}
  trained = loop.train(
    make_recipe if callable(make_recipe) else _built(make_recipe, members),
    members,
    Drawn(draw, steps),
    config=TrainConfig(
      batch_rows=first.rows,
      engine=engine,
      members="stacked" if stacked else "in_turn",
    ),
    total_steps=steps,
    sample=first if sample is None else sample,
    observe=lambda step, found: kept.append(found) if step in wanted else None,
    all_frozen=True,
    stream=io.StringIO(),
  )
  logged = {name: np.stack([m[name] for m in kept]) for name in kept[0]}
  return [t.sae for t in trained], [t.state for t in trained], logged


def member(
  seed: int = 0, *, learning_rate: float = 3e-3, **arguments: Any
) -> Member:
  """Builds a member from its seed, with its own arguments of the recipe.

  Args:
    seed: seed of the initial weights.
    learning_rate: peak learning rate.
    **arguments: arguments of the recipe, by name.
  """
  return Member(
    seed=seed,
    learning_rate=learning_rate,
    arguments=tuple(arguments.items()),
  )


def _built(recipe: Recipe, members: Sequence[Member]) -> Callable[..., Recipe]:
  """The recipe for every member, none of which may have arguments."""
  for own in members:
    for name, value in own.arguments:
      raise InputError(
        name,
        value,
        f"the recipe {recipe.name} is built and has its arguments",
        f"give a function of {name} that returns the recipe",
      )
  return lambda: recipe
