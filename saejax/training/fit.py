"""Training in memory: a recipe, a function that gives batches, trained SAEs.

For small studies and for use inside other code. Nothing is written and nothing
resumes; `loop.train` is the one that does both. The step is the same.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from saejax.errors import InputError
from saejax.sae.context import FIELDS, Batch, as_batch
from saejax.sae.sae import SAE
from saejax.training import sharding
from saejax.training.members import Group, Member
from saejax.training.recipe import Recipe
from saejax.training.step import TrainState

Draw = Callable[[Array], Array | Batch | Mapping[str, Array]]


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
    The inference form of each member, their states, and metrics [kept,
    members].

  Raises:
    InputError: the batches lack a field that the method needs, a coupled
      method has one member, or members have arguments beside a recipe that is
      already built.
  """
  group = Group(
    make_recipe if callable(make_recipe) else _built(make_recipe, members),
    members,
    mesh=sharding.make_mesh((1, 1, 1)),
    stacked=stacked,
    engine=engine,
  )
  first = as_batch(jax.jit(draw)(jnp.asarray(0, jnp.int32)))
  given = (name for name in FIELDS if getattr(first, name) is not None)
  group.check(tuple(given))
  sample = first if sample is None else as_batch(sample)
  states = group.init(sample)
  kept, done = [], 0
  while done < steps:
    stop = min(done + (log_steps or steps), steps) if done else 1
    states, metrics = group.run_drawn(states, draw, done, stop)
    kept.append(metrics)
    done = stop
  logged = {name: np.stack([m[name] for m in kept]) for name in kept[0]}
  saes = group.saes(states, Drawn(draw, steps))
  return saes, group.member_states(states), logged


@dataclasses.dataclass(frozen=True)
class Drawn:
  """The rows of a run whose batches are drawn, to be read again.

  Attributes:
    draw: from the step to a batch.
    steps: of the run.
  """

  draw: Draw
  steps: int

  def sample(self, count: int) -> Batch:
    """Whole batches, at least `count` rows where there are so many."""
    draw = jax.jit(lambda draw, i: as_batch(draw(i)))
    source = self.draw
    if not isinstance(source, jax.tree_util.Partial):
      source = jax.tree_util.Partial(source)
    first = draw(source, jnp.asarray(0, jnp.int32))
    batches = min(-(-count // len(first.x)), self.steps)
    which = np.linspace(0, self.steps - 1, batches).round().astype(np.int32)
    drawn = [draw(source, jnp.asarray(i)) for i in which]
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *drawn)


def member(
  seed: int = 0, *, learning_rate: float = 3e-3, **arguments: Any
) -> Member:
  """A member by its seed, with its own arguments of the recipe."""
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
