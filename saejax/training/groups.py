"""Chooses how the members of a run are stepped: in turn, or in stacks."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from saejax.errors import InputError
from saejax.sae.context import Batch
from saejax.sae.sae import SAE
from saejax.training import sharding, step
from saejax.training.config import TrainConfig
from saejax.training.dispatches import MOST_STEPS
from saejax.training.member import Member, own_programs
from saejax.training.members import Group
from saejax.training.recipe import Recipe, RowSource, Stats
from saejax.training.sources import Source

# Operations of the steps in one call: about 0.1 s of two cores, and a
# millisecond of an accelerator.
WORK, WORK_ACCELERATOR = {"cpu": 5 * 10**9}, 2 * 10**11
ROOM_BYTES = 2**28  # of the rows in one call


class Stacks:
  """Several groups as one: members in several stacks, each with its program.

  Attributes, methods and their results are those of `Group`; states and metrics
  are one entry for each group.

  Args:
    groups: in order; all read the same batches.
  """

  def __init__(self, groups: Sequence[Group]):
    self._groups = tuple(groups)
    self.members = tuple(m for group in groups for m in group.members)
    self.mesh = groups[0].mesh
    self.sites = groups[0].sites
    self.put = groups[0].put

  def check(self, fields: tuple[str, ...]) -> None:
    """Checks that every group can use the batches.

    Args:
      fields: names of the fields of the batches.

    Raises:
      InputError: as for `Recipe.check`.
    """
    for group in self._groups:
      group.check(fields)

  def init(self, sample: Any = None) -> tuple[Any, ...]:
    """The states of each group before the first step.

    Args:
      sample: raw rows [s, d] or a batch for the initial weights; None for none.
    """
    return tuple(group.init(sample) for group in self._groups)

  @property
  def shapes(self) -> tuple[SAE, ...]:
    """The SAE of each program, with shapes in place of arrays."""
    return tuple(sae for group in self._groups for sae in group.shapes)

  def run(
    self, states: Any, batches: Sequence[Batch], *, most: int = 1
  ) -> tuple[Any, Any, Any]:
    """Steps every group on some batches; see `Group.run`.

    Args:
      states: states of each group; donated.
      batches: batches on the devices.
      most: batches that a program has room for.

    Returns:
      The new states and the metrics of each group, and the seconds of each
      member [members].
    """
    return _joined(
      group.run(own, batches, most=most) for group, own in self._each(states)
    )

  def run_drawn(
    self, states: Any, draw: Any, start: int, stop: int
  ) -> tuple[Any, Any, Any]:
    """Steps every group on batches made on the device; see `Group.run_drawn`.

    Args:
      states: states of each group; donated.
      draw: maps the step to a batch.
      start: first step.
      stop: step after the last.

    Returns:
      As `run`, with the metrics on the host.
    """
    return _joined(
      group.run_drawn(own, draw, start, stop)
      for group, own in self._each(states)
    )

  def by_member(self, metrics: Sequence[Any]) -> dict[str, np.ndarray]:
    """Metrics on the host, [steps, members] each; NaN where a group has none.

    Args:
      metrics: metrics of each group, from `run`.
    """
    found = [group.by_member(own) for group, own in self._each(metrics)]
    names = dict.fromkeys(name for own in found for name in own)
    absent = [np.full_like(own["loss"], np.nan) for own in found]
    return {
      name: np.concatenate(
        [own.get(name, nan) for own, nan in zip(found, absent, strict=True)],
        axis=1,
      )
      for name in names
    }

  def member_states(self, states: Any) -> list[step.TrainState]:
    """The state of each member, in order.

    Args:
      states: states of each group.
    """
    return [
      state
      for group, own in self._each(states)
      for state in group.member_states(own)
    ]

  def trained(self, states: Any) -> list[tuple[SAE, Stats]]:
    """The training form and the statistics of each member, in order.

    Args:
      states: states of each group.
    """
    return [
      form for group, own in self._each(states) for form in group.trained(own)
    ]

  def finished(
    self, forms: Sequence[tuple[SAE, Stats]], rows: RowSource | None = None
  ) -> list[SAE]:
    """The inference form of each member, from its training form.

    Args:
      forms: what `trained` returns.
      rows: source of training rows for calibration; None for none.
    """
    left = iter(forms)
    return [
      sae
      for group in self._groups
      for sae in group.finished(
        list(itertools.islice(left, len(group.members))), rows
      )
    ]

  def _each(self, given: Sequence[Any]):
    return zip(self._groups, given, strict=True)


def _joined(results) -> tuple[Any, Any, Any]:
  states, metrics, seconds = zip(*results, strict=True)
  return states, metrics, np.concatenate(seconds)


def build(
  make_recipe: Callable[..., Recipe],
  members: Sequence[Member],
  source: Source,
  config: TrainConfig,
) -> Group | Stacks:
  """The members' programs, after refusing what cannot be trained.

  Members are stacked where their method couples them, where the mesh has an
  ensemble axis, and on accelerators; where a stack cannot share one program,
  neighbours that can are a stack of their own.

  Args:
    make_recipe: from a member's arguments, by name, to the recipe.
    members: at least one.
    source: of the rows.
    config: how they are trained.

  Raises:
    InputError: the mesh does not divide the sizes, or the batches or the number
      of members are none that the method can use.
  """
  mesh = sharding.make_mesh(config.mesh, first=config.first_device)
  check_source(source, mesh)
  apart = own_programs(make_recipe, members)
  coupled = make_recipe(**dict(members[0].given)).coupling is not None
  needed = mesh.shape["ensemble"] > 1 or coupled
  stacked = config.members == "stacked" or (
    config.members == "auto"
    and (needed or (not apart and jax.default_backend() != "cpu"))
  )
  if mesh.shape["ensemble"] > 1 and not stacked:
    raise InputError(
      "train.members",
      config.members,
      "an ensemble axis of several devices needs stacked members",
      "use --train.members=auto, or a mesh without an ensemble axis",
    )
  parts = [list(members)]
  if stacked and apart and config.members == "auto":
    parts = _stackable(make_recipe, members, coupled)
  made = []
  for part in parts:
    group = Group(
      make_recipe,
      part,
      mesh=mesh,
      stacked=stacked,
      engine=config.engine,
      skip_nonfinite=config.nonfinite == "skip",
      accumulate=config.accumulate,
      shard_optimizer=config.shard_optimizer,
      sites=source.sites,
    )
    group.check(source.fields)
    for n in group.sizes:
      sharding.check(
        mesh,
        n=n,
        batch_rows=config.batch_rows,
        members=len(part),
        accumulate=config.accumulate,
      )
    made.append(group)
  return made[0] if len(made) == 1 else Stacks(made)


def _stackable(
  make_recipe: Callable[..., Recipe], members: Sequence[Member], coupled: bool
) -> list[list[Member]]:
  """Neighbours that can share a program; of a coupled method, equal ones."""
  if coupled:
    by = itertools.groupby(members, key=lambda member: member.arguments)
    return [list(part) for _, part in by]
  parts: list[list[Member]] = []
  for member in members:
    if parts and not own_programs(make_recipe, [*parts[-1], member]):
      parts[-1].append(member)
    else:
      parts.append([member])
  return parts


def check_source(source: Source, mesh: Any) -> None:
  """Refuses rows that are drawn on one device where there is a mesh.

  Args:
    source: source of the rows.
    mesh: the device mesh.

  Raises:
    InputError: see above.
  """
  if mesh.size > 1 and source.is_drawn:
    raise InputError(
      "train.mesh",
      ",".join(map(str, mesh.shape.values())),
      "must be one device where rows are drawn inside the program",
      "give a stream of batches instead",
    )


def steps_at_once(
  group: Group | Stacks, total_steps: int, config: TrainConfig
) -> int:
  """Steps in one call of the compiled program, where nothing is in between.

  The host takes about a millisecond per call. As many steps as keep that below
  a few percent are in one call: a number that follows from sizes and hardware
  alone, since another number may be another program.

  Args:
    group: the members' programs.
    total_steps: steps of the whole run.
    config: settings of the run.
  """
  if config.steps_per_dispatch is not None:
    return config.steps_per_dispatch
  if group.mesh.size > 1:
    return 1
  counts = [sum(a.size for a in jax.tree.leaves(sae)) for sae in group.shapes]
  # Multiply-adds of an encoder's forward and backward pass and a sparse decoder.
  work = 3 * config.batch_rows * max(1, min(counts))
  wanted = WORK.get(jax.default_backend(), WORK_ACCELERATOR) // work
  row_bytes = 4 * max(sae.d for sae in group.shapes) * max(1, group.sites)
  room = ROOM_BYTES // (config.batch_rows * row_bytes)
  return max(1, min(MOST_STEPS, total_steps, 1 + wanted, room))


def dispatch_steps(
  step: int, total_steps: int, at_once: int, config: TrainConfig
) -> int:
  """Steps of the next call of the program: up to a multiple of the usual ones.

  A call also ends where a checkpoint is due. It changes no result, since every
  number of steps is the same program.

  Args:
    step: number of completed steps.
    total_steps: steps of the whole run.
    at_once: the usual number, see `steps_at_once`.
    config: settings of the run: steps between checkpoints.
  """
  due = config.checkpoint_steps - step % config.checkpoint_steps
  return min(at_once - step % at_once, total_steps - step, due)


def settings(members: Sequence[Member]) -> list[Mapping[str, Any]]:
  """The members as JSON-able settings.

  Args:
    members: the members.

  Returns:
    One mapping per member: its fields, with its arguments by name.
  """
  return [
    {
      name: dict(value) if name == "arguments" else value
      for name, value in vars(member).items()
      if name not in ("site", "label") or value
    }
    for member in members
  ]
