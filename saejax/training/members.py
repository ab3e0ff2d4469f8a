"""The members of one run: SAEs of equal shape that read one stream.

They differ in seed, learning rate and arguments of the recipe. In turn, members
of equal arguments share a program; stacked, one vmapped program serves all.
Stacked members may differ in k alone: the program has the largest, and ranks
beyond a member's own k are dropped. Both give equal weights to float tolerance.
"""

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from saejax.errors import InputError
from saejax.sae.context import Batch, as_batch
from saejax.sae.sae import SAE
from saejax.training import (
  compiling,
  dispatches,
  passes,
  sharding,
  sited,
  step,
)
from saejax.training.member import Member as Member
from saejax.training.member import own_programs, programs
from saejax.training.recipe import Hyper, Recipe, RowSource, Stats


class Group:
  """The compiled programs of all members, and where their states lie.

  Args:
    make_recipe: from a member's arguments, by name, to the recipe.
    members: at least one.
    mesh: of (ensemble, data, latent) devices.
    stacked: one vmapped program for all, instead of one for each in turn.
    engine: "auto", "dense" or "sparse".
    skip_nonfinite, accumulate, shard_optimizer: see `step.make_step`.
    sites: names of the sites along the first axis of a batch, where there are
      several; each member has one of them.

  Raises:
    InputError: a member's arguments are refused, it has none of the sites, or
      stacked members differ in what their program cannot share.
  """

  def __init__(
    self,
    make_recipe: Callable[..., Recipe],
    members: Sequence[Member],
    *,
    mesh: Mesh,
    stacked: bool,
    engine: str = "auto",
    skip_nonfinite: bool = False,
    accumulate: int = 1,
    shard_optimizer: bool = False,
    sites: Sequence[str] = (),
  ):
    self.members = tuple(members)
    self.accumulate = accumulate
    self._placed = {"stacked": stacked, "shard_optimizer": shard_optimizer}
    self._site = sited.numbers(members, sites)
    self.sites = len(sites)
    self.mesh = mesh
    self.stacked = stacked
    # One program for several k: members limit theirs by a traced one.
    self._several_ks = stacked and len({member.k for member in members}) > 1
    given, self._factors = programs(make_recipe, members)
    largest = max(range(len(members)), key=lambda i: members[i].k)
    largest = given[largest]
    if stacked:  # each with the k of the program, and its own site
      site = lambda m: {"site": m.site} if m.site else {}
      own = [{**dict(largest), **site(m)} for m in members]
      self._own = [tuple(arguments.items()) for arguments in own]
    else:
      self._own = given
    used = [largest] if stacked else given
    # Also of the k that are only limits, whose recipe may refuse them.
    every = {
      given: make_recipe(**dict(given))
      for given in dict.fromkeys(
        [*given, *self._own, *(m.given for m in members)]
      )
    }
    if stacked and (name := own_programs(make_recipe, members)):
      values = dict.fromkeys(dict(m.arguments).get(name) for m in members)
      raise InputError(
        "train.members",
        "stacked",
        f"members of {every[largest].name} with several {name} "
        f"({', '.join(map(str, values))}) need programs of their own",
        f"use --train.members=in_turn, or one {name}",
      )
    self._every = every
    self._recipes = {given: every[given] for given in dict.fromkeys(used)}
    self._programs = used
    how = {"engine": engine, "skip_nonfinite": skip_nonfinite, **self._placed}
    how["sited"] = self.sites > 0
    self._steps = {
      given: step.make_step(recipe, accumulate=accumulate, **how)
      for given, recipe in self._recipes.items()
    }
    self._compiled: dict[Any, Any] = {}

  @functools.cached_property
  def _hypers(self) -> tuple[Hyper, ...]:
    rates = jnp.asarray([m.learning_rate for m in self.members])
    swept = self._factors
    swept = jnp.asarray(swept) if set(swept) != {1.0} else None
    ks = [m.k for m in self.members]
    limits = jnp.asarray(ks, jnp.int32) if self._several_ks else None
    sites = jnp.asarray(self._site, jnp.int32) if self.sites else None
    hyper = Hyper(learning_rate=rates, k=limits, coefficient=swept, site=sites)
    if not self.stacked:
      count = range(len(self.members))
      return tuple(jax.tree.map(lambda a, i=i: a[i], hyper) for i in count)
    where = NamedSharding(self.mesh, P("ensemble"))
    return (sharding.place(hyper, jax.tree.map(lambda _: where, hyper)),)

  @functools.cached_property
  def shapes(self) -> tuple[SAE, ...]:
    """The SAE of each program, with shapes in place of arrays."""
    draws = [partial(r.init, sample=None) for r in self._recipes.values()]
    return tuple(jax.eval_shape(draw, jax.random.key(0)) for draw in draws)

  @property
  def sizes(self) -> set[int]:
    """Latents of the members."""
    return {sae.n for sae in self.shapes}

  def check(self, fields: tuple[str, ...]) -> None:
    """Checks that the method can use the stream and the number of members.

    Args:
      fields: names of the fields of the batches.

    Raises:
      InputError: as for `Recipe.check` and `passes.check`.
    """
    for recipe, sae in zip(self._recipes.values(), self.shapes, strict=True):
      recipe.check(fields, len(self.members))
      passes.check(recipe, sae, self.accumulate)

  def init(
    self, sample: Float[Array, "s d"] | Batch | None = None
  ) -> tuple[step.TrainState, ...]:
    """States before the first step: one per member, or one stack of all.

    Args:
      sample: raw rows or a batch for the initial weights, of every site where
        there are several; None for none.
    """
    keys = [jax.random.key(member.seed) for member in self.members]
    # The sample is an argument: a constant would be folded while compiling.
    start = {
      given: jax.jit(
        lambda key, rows, r=r: step.init_state(r, key, sample=rows)
      )
      for given, r in self._every.items()
      if given in self._own
    }
    if self.stacked and not self.sites:
      (one,) = start.values()
      states = (jax.vmap(one, (0, None))(jnp.stack(keys), sample),)
    else:
      states = tuple(
        start[given](key, sited.part(sample, i) if self.sites else sample)
        for given, key, i in zip(self._own, keys, self._site, strict=True)
      )
    if self.stacked and self.sites:  # preps and samples differ
      states = (jax.tree.map(lambda *leaves: jnp.stack(leaves), *states),)
    return tuple(
      sharding.place(s, where)
      for s, where in zip(states, self.shardings(states), strict=True)
    )

  def shardings(self, states: Any) -> tuple[Any, ...]:
    """The sharding of each leaf of the states.

    Args:
      states: states from `init`, or their shapes.
    """
    return tuple(
      sharding.state_shardings(self.mesh, s, **self._placed) for s in states
    )

  def put(self, batch: Mapping[str, np.ndarray], parts: int = 1) -> Batch:
    """Places a batch on the devices; entries that `Batch` lacks are dropped.

    Args:
      batch: arrays by field, equally many rows each.
      parts: processes that each have a part of the batch, see `sharding.put`.
    """
    several = self.sites > 0
    return sharding.put(self.mesh, as_batch(batch), parts, sited=several)

  def run(
    self,
    states: tuple[step.TrainState, ...],
    batches: Sequence[Batch],
    *,
    most: int = 1,
  ) -> tuple[tuple[step.TrainState, ...], tuple[step.Metrics, ...], np.ndarray]:
    """Every member through some batches, in one dispatch a program.

    Args:
      states: donated.
      batches: batches on the devices.
      most: batches that the program has room for, at least as many as it is
        called with: calls with fewer are the same program, whose steps give
        the same bits.

    Returns:
      The new states; metrics with a leading axis of steps; and seconds for each
      member [members]. Stacked members share theirs equally. Members in turn
      are waited for one by one, which also keeps forced CPU devices from
      running out of threads.
    """
    room = max(most, len(batches))
    filled = (*batches, *[batches[-1]] * (room - len(batches)))
    self._compile(room, states, filled, len(batches))
    new, metrics, seconds = [], [], np.zeros(len(self.members))
    for i, (given, hyper) in enumerate(
      zip(self._programs, self._hypers, strict=True)
    ):
      start = time.perf_counter()
      program = self._compiled[given, room]
      state, out = program(states[i], hyper, filled, len(batches))
      if len(batches) < room:
        out = jax.tree.map(lambda a: a[: len(batches)], out)
      new.append(state)
      metrics.append(out)
      if jax.default_backend() == "cpu":
        jax.block_until_ready(state)
      seconds[i] = time.perf_counter() - start
    if self.stacked:
      seconds[:] = seconds[0] / len(self.members)
    return tuple(new), tuple(metrics), seconds

  def run_drawn(
    self,
    states: tuple[step.TrainState, ...],
    draw: Callable[[Array], Array | Batch],
    start: int,
    stop: int,
  ) -> tuple[tuple[step.TrainState, ...], tuple[step.Metrics, ...], np.ndarray]:
    """Every member through steps start to stop on batches made on the device.

    Args:
      states: donated.
      draw: from the step to a batch, traced once. A `jax.tree_util.Partial`
        hands its arrays to the program; those of a closure would be compiled
        into it.
      start: first step.
      stop: step after the last.

    Returns:
      As `run`, with the metrics on the host.
    """
    if not isinstance(draw, jax.tree_util.Partial):
      draw = jax.tree_util.Partial(draw)
    new, metrics, seconds = [], [], np.zeros(len(self.members))
    for i, (given, hyper, state) in enumerate(
      zip(self._programs, self._hypers, states, strict=True)
    ):
      began = time.perf_counter()
      if (given, "drawn") not in self._compiled:
        several = partial(dispatches.drawn, self._steps[given])
        self._compiled[given, "drawn"] = jax.jit(several, donate_argnums=0)
      parts = []
      for first in range(start, stop, dispatches.MOST_STEPS):
        last = min(first + dispatches.MOST_STEPS, stop)
        bounds = jnp.asarray(first, jnp.int32), jnp.asarray(last, jnp.int32)
        program = self._compiled[given, "drawn"]
        state, out = program(state, hyper, draw, *bounds)
        out = jax.device_get(out)
        parts.append(jax.tree.map(lambda a, k=last - first: a[:k], out))
      new.append(state)
      metrics.append(jax.tree.map(lambda *a: np.concatenate(a), *parts))
      seconds[i] = time.perf_counter() - began
    if self.stacked:
      seconds[:] = seconds[0] / len(self.members)
    return tuple(new), tuple(metrics), seconds

  def _compile(self, room: int, states, batches, count: int) -> None:
    """Compiles the programs with room for some batches that are missing."""
    missing = {}
    for given, hyper, state in zip(
      self._programs, self._hypers, states, strict=True
    ):
      if (given, room) in self._compiled or (given, room) in missing:
        continue
      (where,) = self.shardings([state])
      # Metrics are read in every process.
      read = None if jax.process_count() == 1 else NamedSharding(self.mesh, P())
      jitted = jax.jit(
        partial(dispatches.several, self._steps[given]),
        donate_argnums=0,
        out_shardings=(where, read),
      )
      with jax.set_mesh(self.mesh):
        missing[given, room] = jitted.lower(state, hyper, batches, count)
    self._compiled |= compiling.together(missing)

  def by_member(self, metrics: Sequence[step.Metrics]) -> dict[str, np.ndarray]:
    """Metrics on the host, [steps, members] each.

    NaN stands for a metric that a member's loss does not have.

    Args:
      metrics: metrics from `run` or `run_drawn`.
    """
    host = jax.device_get(list(metrics))
    if self.stacked:
      return {name: np.asarray(value) for name, value in host[0].items()}
    return _stacked(host)

  def member_states(
    self, states: tuple[step.TrainState, ...]
  ) -> list[step.TrainState]:
    """The state of each member on its own.

    Args:
      states: states from `init` or `run`.
    """
    if not self.stacked:
      return list(states)
    count = len(self.members)
    return [jax.tree.map(lambda a, i=i: a[i], states[0]) for i in range(count)]

  def trained(
    self, states: tuple[step.TrainState, ...]
  ) -> list[tuple[SAE, Stats]]:
    """The training form of each member: averaged weights, and statistics.

    A selection over the batch is still one, with the member's own k.

    Args:
      states: states from `init` or `run`.
    """
    found = []
    for member, own, state in zip(
      self.members, self._own, self.member_states(states), strict=True
    ):
      sae = step.averaged(self._every[own], state)
      if self._several_ks and member.k:
        sae = sae.replace(activation=sae.activation.with_k(member.k))
      found.append((sae, state.stats))
    return found

  def finished(
    self,
    forms: Sequence[tuple[SAE, Stats]],
    rows: RowSource | None = None,
  ) -> list[SAE]:
    """The inference form of each member, from its training form.

    Args:
      forms: what `trained` returns.
      rows: source of training rows for calibration; None for none.
    """
    return [
      self._every[own].finish(sae, stats, self._rows(rows, i))
      for i, (own, (sae, stats)) in enumerate(
        zip(self._own, forms, strict=True)
      )
    ]

  def _rows(self, rows: RowSource | None, i: int) -> RowSource | None:
    """The source of the rows that member i reads."""
    if rows is None or not self.sites:
      return rows
    return sited.SiteRows(rows, self._site[i])


def _stacked(metrics: Sequence[Mapping[str, np.ndarray]]) -> dict[str, Any]:
  """[steps, members] of each metric; NaN where a member lacks one."""
  absent = np.full_like(metrics[0]["loss"], np.nan)
  names = dict.fromkeys(name for m in metrics for name in m)
  return {
    name: np.stack([m.get(name, absent) for m in metrics], axis=1)
    for name in names
  }
