"""Trains SAEs on stores that experiments/harvest.py wrote.

    python experiments/train.py --store=runs/stores/store-... \\
      --held_out=runs/stores/store-... --sae.n=1024 --sae.k=8,16

Writes the trained SAEs, metrics and results.json to the run folder.
"""

import dataclasses
import pathlib
from collections.abc import Sequence

from saejax.data.mix import Mix
from saejax.data.store import reader
from saejax.errors import InputError
from saejax.report import results
from saejax.runs import folder as run_folder
from saejax.runs import grid, preflight, reading, stores
from saejax.runs.config import SAEConfig
from saejax.terminal import say
from saejax.training.loop import TrainConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Expected:
  """Required metadata of both stores; none: any value."""

  model: str | None = None  # name of the model
  layer: int | None = None  # its layer
  point: str | None = None  # the point in the layer
  d: int | None = None  # width of the rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Settings of the command."""

  run_dir: str = "runs/train"  # folder of this run
  # folder of the training store; or several, as FOLDER:WEIGHT,FOLDER:WEIGHT with
  # shares of each batch, or without weights in proportion to their rows
  store: tuple[str, ...]
  held_out: str  # folder of the held-out store
  harvest: Expected = Expected()
  sae: SAEConfig = SAEConfig()
  train: TrainConfig = TrainConfig()

  def __post_init__(self):
    for name, values in (("store", self.store), ("held_out", [self.held_out])):
      if not values or "" in values:
        rule = "must name the folder of a store"
        raise InputError(name, "", rule, "see experiments/harvest.py")


def main(config: Config) -> None:
  """Trains the SAEs on the stores and writes the results.

  Args:
    config: settings of the command.
  """
  store = training_store(config.store, config.harvest)
  held_out = opened("held_out", config.held_out, config.harvest)
  sweep = grid.Grid(
    path=pathlib.Path(config.run_dir),
    store=store,
    held_out=held_out,
    sae=config.sae,
    train=config.train,
  )
  preflight.check(
    store.rows,
    store.d,
    config.sae,
    config.train,
    columns=sweep.columns,
    target=sweep.target,
  )
  reading.check(store, config.train)
  contents = {"store": store.content, "held_out": held_out.content}
  with run_folder.opened(config.run_dir, config, stores=contents) as folder:
    say(preflight.line(store.rows, store.d, config.sae, config.train))
    points = grid.train(sweep)
    found = results.collect(
      config=config, points=points, data=stores.describe(store, held_out)
    )
    results.write(found, folder)


def training_store(
  values: Sequence[str], expected: Expected
) -> reader.Store | Mix:
  """The store at a path, or the mix of several stores.

  Args:
    values: folders, each followed by :WEIGHT or none.
    expected: required metadata of each.

  Raises:
    InputError: a store is missing or damaged, or stores cannot be mixed.
  """
  paths, weights = zip(*map(_weighted, values), strict=True)
  found = [opened("store", path, expected) for path in paths]
  given = [weight for weight in weights if weight is not None]
  if len(found) == 1 and not given:
    return found[0]
  try:
    return Mix(tuple(found), tuple(given))
  except InputError as error:
    raise error.renamed("store") from error


def _weighted(value: str) -> tuple[str, float | None]:
  """The folder and the weight of FOLDER:WEIGHT; None for no weight."""
  path, colon, weight = value.rpartition(":")
  try:
    return (path, float(weight)) if colon else (value, None)
  except ValueError:
    return value, None


def opened(flag: str, path: str, expected: Expected) -> reader.Store:
  """The store at a path; errors name the flag that gave it.

  Args:
    flag: name of the flag, "store" or "held_out".
    path: folder of the store.
    expected: required metadata; fields that are None are not compared.

  Raises:
    InputError: the store is missing or damaged, or its metadata differ.
  """
  wanted = dataclasses.asdict(expected)
  wanted = {k: v for k, v in wanted.items() if v is not None}
  try:
    return reader.open(path, expect=wanted)
  except InputError as error:
    if error.field == "path":
      raise error.renamed(flag) from error
    if error.field == "expect":
      name, _, value = str(error.value).partition("=")
      raise InputError(
        f"harvest.{name}", value, error.rule, error.remedy
      ) from error
    raise
