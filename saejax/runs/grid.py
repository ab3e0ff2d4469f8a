"""The grid of SAEs that a run trains, one group of equal n after the other.

The SAEs of a group, one for each value of the arguments that are swept and each
seed, are trained in one pass over the rows. A store that has the column target
trains transcoders, and methods that read more of a row than x take it from the
columns of the store. A group whose points.json is there is finished; the same
command resumes the others.
"""

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from saejax import durable, processes, terminal
from saejax.data import loader
from saejax.data import mix as mixes
from saejax.data.online import OnlineRows
from saejax.data.store import quality
from saejax.data.store.reader import Store
from saejax.recipes import arguments, catalogue, common
from saejax.runs import held_out, points, reading, stores
from saejax.runs.config import SAEConfig
from saejax.runs.shares import Shares
from saejax.sae import files
from saejax.sae import prep as preps
from saejax.training import log, loop
from saejax.training.members import Member
from saejax.training.recipe import Recipe

TRANSIENT = ("seconds", "group_seconds", "density")  # not kept with an SAE


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid:
  """A grid of SAEs and the rows they are trained and evaluated on.

  Attributes:
    path: the run folder.
    store: rows to train on: a store, a mix, or rows that are computed meanwhile.
    held_out: rows to evaluate on.
    sae: which SAEs.
    train: how they are trained.
    shares: measures how long training and evaluation take.
  """

  path: pathlib.Path
  store: reading.Rows
  held_out: Store
  sae: SAEConfig
  train: loop.TrainConfig
  shares: Shares = dataclasses.field(default_factory=Shares)

  def __post_init__(self):
    for store, _ in mixes.parts(self.store):
      quality.check_rows(store)
      stores.check_held_out(store, self.held_out)
      if self.sae.residual_of:
        stores.check_stage(store, self.sae.residual_of)
    held_out.check(self.held_out, self.columns)

  @functools.cached_property
  def total_steps(self) -> int:
    """Batches of each group's run."""
    return reading.steps(self.store, self.train)

  @property
  def prep(self) -> preps.Prep:
    """The prep of x, with the store's statistics; a recipe may have its own."""
    return _prep(self.sae, self.store.stats)

  @functools.cached_property
  def mean(self) -> np.ndarray:
    """Mean of the training rows, in the frame of the prep."""
    return reading.mean(self.prep, self.store)

  @property
  def target(self) -> common.Target | None:
    """What is reconstructed instead of x, where the store has the column."""
    if "target" not in self.columns:
      return None
    moments = self.store.moments["target"]
    width = self.store.columns["target"].shape[-1]
    return common.Target(d=width, prep=_prep(self.sae, moments))

  @property
  def columns(self) -> tuple[str, ...]:
    """The columns of the store that training reads."""
    return loader.fields(self.store)


def train(grid: Grid) -> list[dict[str, Any]]:
  """Trains and evaluates every SAE of a grid, see `train_all`.

  Args:
    grid: the SAEs, their rows and the run folder.
  """
  return train_all([grid])[0]


def train_all(grids: Sequence[Grid]) -> list[list[dict[str, Any]]]:
  """Trains and evaluates every SAE of some grids.

  Groups of equal n read a store one after the other. Rows that are computed are
  computed once for all groups of all grids, which take turns.

  Args:
    grids: with the same settings of training, and rows of one origin where they
      are computed; finished groups are read.

  Returns:
    For each grid one point per SAE: n, k, seed, learning_rate, status, tokens,
    seconds, group_seconds, the metrics of `evals.reconstruction` in the inference
    form, L0 and FVU in the training form at the training batch size, and
    `density`, the histogram.
  """
  for grid in grids:
    for store, _ in mixes.parts(grid.store):
      for doubt in quality.warnings(store):
        terminal.say(f"warning: {doubt}")
  groups = [(grid, n) for grid in grids for n in grid.sae.n]
  finished = processes.gathered([_is_finished(*group) for group in groups])[0]
  left = [g for g, is_done in zip(groups, finished, strict=True) if not is_done]
  together = isinstance(grids[0].store, OnlineRows)
  for part in [left] if together and left else [[group] for group in left]:
    shares = part[0][0].shares
    with shares.during("train"):
      trained = _train(part)
    with shares.during("evaluate"):
      for (grid, n), own in zip(part, trained, strict=True):
        with terminal.busy(f"n{n}: evaluating on the held-out rows"):
          found = points.points(grid, n, own)
        processes.first(partial(_save, grid, n, own, found))
  return [
    [point for n in grid.sae.n for point in _points(grid, n)] for grid in grids
  ]


def _file(grid: Grid, n: int) -> pathlib.Path:
  return grid.path / f"n{n}" / "points.json"


def _is_finished(grid: Grid, n: int) -> bool:
  return _file(grid, n).exists() and _is_saved(grid, n, _points(grid, n))


def _points(grid: Grid, n: int) -> list[dict[str, Any]]:
  """The points of a finished group."""
  remedy = "remove it and repeat the same command"
  read = durable.read_sealed(_file(grid, n), field="run_dir", remedy=remedy)
  return read["points"]


def _train(groups: Sequence[tuple[Grid, int]]) -> list[list[loop.Trained]]:
  """Trains the members of groups on one reading of their rows."""
  rows = [grid.store for grid, _ in groups]
  with contextlib.ExitStack() as stack:
    streams = reading.batches(rows, groups[0][0].train)
    for batches in streams:
      stack.enter_context(batches)
    runs = [
      _steps(*group, batches, _label(*group) * (len(groups) > 1))
      for group, batches in zip(groups, streams, strict=True)
    ]
    return loop.together(runs)


def _label(grid: Grid, n: int) -> str:
  return f"{grid.path.name}/n{n}"


def _steps(grid: Grid, n: int, batches: Any, label: str) -> loop.Steps:
  """Trains the members with n latents, a step at a time."""
  rated = held_out.sample(grid.held_out, grid.columns, grid.train.eval_rows)
  try:
    return (
      yield from loop.steps(
        lambda **swept: recipe(
          n,
          swept,
          d=grid.store.d,
          prep=grid.prep,
          target=grid.target,
          sae=grid.sae,
          train=grid.train,
          total_steps=grid.total_steps,
        ),
        members(n, grid.sae, grid.train),
        batches,
        config=grid.train,
        folder=grid.path / f"n{n}",
        total_steps=grid.total_steps,
        fingerprint=_fingerprint(grid, n),
        metric=lambda forms: float(
          np.mean([r["fvu"] for r in points.during(grid, forms, rated)])
        ),
        held_out=lambda forms: points.during(grid, forms, rated),
        provenance=batches.provenance,
        label=label,
      )
    )
  except loop.NonFiniteError as error:
    raise SystemExit(f"error: n={n}: {error}") from error


def _save(
  grid: Grid,
  n: int,
  trained: Sequence[loop.Trained],
  found: Sequence[dict[str, Any]],
) -> None:
  """Saves the SAEs with what is known about them, and then their points."""
  for t, point in zip(trained, found, strict=True):
    files.save(
      t.sae,
      sae_folder(grid, n, t.member, point),
      about={
        **{k: v for k, v in point.items() if k not in TRANSIENT},
        **stores.describe(grid.store, grid.held_out),
      },
    )
  durable.write_sealed(_file(grid, n), {"points": found}, field="run_dir")


def sae_folder(
  grid: Grid, n: int, member: Member, point: Mapping[str, Any]
) -> pathlib.Path:
  """Returns the folder of an SAE; its name says if the SAE diverged.

  Args:
    grid: the grid.
    n: latents.
    member: the member of the group with n latents.
    point: its point, with its status.
  """
  return grid.path / "saes" / files.marked(f"n{n}-{member.name}", point)


def _is_saved(grid: Grid, n: int, found: Sequence[Mapping[str, Any]]) -> bool:
  """Whether every SAE of a group is there with its weights."""
  every = members(n, grid.sae, grid.train)
  return len(every) == len(found) and all(
    (sae_folder(grid, n, member, point) / file).is_file()
    for member, point in zip(every, found, strict=True)
    for file in (files.STRUCTURE, files.ARRAYS)
  )


def members(n: int, sae: SAEConfig, train: loop.TrainConfig) -> list[Member]:
  """The members with n latents: all combinations of arguments, rates, seeds.

  Args:
    n: latents.
    sae: recipe, swept arguments, factors of the rate and number of seeds.
    train: settings that give the learning rate at n.
  """
  rate = train.rate(n)
  if sae.recipe in catalogue.METHODS:
    rate *= catalogue.METHODS[sae.recipe].rate
  return [
    Member(
      seed=seed,
      learning_rate=rate * factor,
      arguments=given,
      label=f"rate={factor:g}" if len(sae.rates) > 1 else "",
    )
    for given in sae.combinations
    for factor in sae.rates
    for seed in range(sae.seeds)
  ]


def recipe(
  n: int,
  swept: Mapping[str, Any],
  *,
  d: int,
  prep: preps.Prep,
  target: common.Target | None = None,
  sae: SAEConfig,
  train: loop.TrainConfig,
  total_steps: int,
) -> Recipe:
  """The recipe that the flags select.

  Args:
    n: latents.
    swept: the arguments of this member.
    d: width of x.
    prep: of x, for recipes without one of their own.
    target: what is reconstructed instead of x.
    sae: the grid, with the other arguments.
    train: how it is trained.
    total_steps: of the run.
  """
  options = train.options(total_steps)
  if sae.prep == "default":
    options["defaults"]["prep"] = prep
  else:
    options["prep"] = prep
  if target is not None:
    options["target"] = target
  if sae.residual_of:
    options["residual_of"] = sae.residual_of
  given = {**sae.fixed, **swept}
  return arguments.make(sae.recipe, d=d, n=n, arguments=given, **options)


def _prep(sae: SAEConfig, stats: Mapping[str, Any]) -> preps.Prep:
  kind = "centre_scale" if sae.prep == "default" else sae.prep
  return preps.from_stats(kind, stats)


def _fingerprint(grid: Grid, n: int) -> dict[str, Any]:
  """Settings that a resumed group must share."""
  sae = grid.sae.decisive()
  del sae["n"]
  return {
    "n": n,
    "store": grid.store.content,
    "sae": sae,
    "train": grid.train.decisive(),
  }


def metrics(grid: Grid) -> dict[int, list[dict]]:
  """The metric records of each group, by n.

  Args:
    grid: a grid that was trained.
  """
  return {n: log.read(grid.path / f"n{n}") for n in grid.sae.n}
