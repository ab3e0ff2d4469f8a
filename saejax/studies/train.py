"""Trains SAEs on stores that experiments/harvest.py wrote, or online.

    python experiments/train.py --store=runs/stores/store-... \\
      --held_out=runs/stores/store-... --sae.n=1024 --sae.k=8,16

Writes the trained SAEs, metrics, results.json and, where the packages of the extra
'report' are installed, report.html to the run folder. With --online
the rows are trained on as the model computes them, and only held-out rows are
stored:

    python experiments/train.py --online --harvest.layer=3 --sae.n=1024 --sae.k=8

--harvest.sites trains the same SAEs at several sites of one forward pass, each in a
folder of its own in the run folder.
"""

import dataclasses
import pathlib
import shlex
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

from saejax import fields, processes
from saejax.data import spec
from saejax.data.mix import Mix
from saejax.data.spec import OnlineConfig
from saejax.data.store import reader
from saejax.errors import InputError
from saejax.processes import DistributedConfig
from saejax.recipes import common
from saejax.report import extras, results, scaling
from saejax.runs import folder as run_folder
from saejax.runs import grid, latents, preflight, reading, stores
from saejax.runs.config import SAEConfig
from saejax.sae import prep
from saejax.studies import plan
from saejax.terminal import busy, say
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
  """Settings of the command; those of `Stored` or of `Online` come with `online`."""

  CHOICE: ClassVar[str] = "online"

  run_dir: str = "runs/train"  # folder of this run
  online: bool = False  # train on rows as a model computes them
  dry_run: bool = False  # print what the run needs and takes, and end
  sae: SAEConfig = SAEConfig()
  train: TrainConfig = TrainConfig()
  distributed: DistributedConfig = DistributedConfig()

  @classmethod
  def variant(cls, online: bool) -> type["Config"]:
    """Returns the class with the settings of where rows come from.

    Args:
      online: whether they are computed in training.
    """
    base = Online if online else Stored
    changed = [
      (field.name, kind, dataclasses.field(default=field.default))
      for field, kind in fields.typed(cls)
      if field.name != "online"
    ]
    return dataclasses.make_dataclass(
      "Config", changed, bases=(base,), frozen=True, kw_only=True
    )

  @staticmethod
  def choices() -> dict[str, str]:
    """Returns both, each with a line about it."""
    return {
      "false": "rows of stores (store, held_out)",
      "true": "rows that a model computes meanwhile (harvest)",
    }

  @staticmethod
  def elsewhere(online: bool, name: str) -> tuple[str, str]:
    """Returns rule and remedy for a setting of the other kind.

    Args:
      online: whether rows are computed in training.
      name: name of the setting.
    """
    known = {leaf.name for leaf in fields.leaves(Stored if online else Online)}
    if name not in known:
      return "", ""
    if online:
      return "cannot be set beside --online", "leave one of the two out"
    return "is a setting of --online", "add --online, or leave it out"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stored(Config):
  """Settings of a run on stores."""

  # folder of the training store; or several, as FOLDER:WEIGHT,FOLDER:WEIGHT with
  # shares of each batch, or without weights in proportion to their rows
  store: tuple[str, ...]
  held_out: str  # folder of the held-out store
  harvest: Expected = Expected()

  def __post_init__(self):
    for name, values in (("store", self.store), ("held_out", [self.held_out])):
      if not values or "" in values:
        rule = "must name the folder of a store"
        raise InputError(name, "", rule, "see experiments/harvest.py")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Online(Config):
  """Settings of a run on rows that are computed meanwhile."""

  online: bool = True  # train on rows as a model computes them
  harvest: OnlineConfig = OnlineConfig()

  def __post_init__(self):
    least = 2 * self.train.batch_rows
    if self.harvest.buffer_rows < least:
      raise InputError(
        "harvest.buffer_rows",
        self.harvest.buffer_rows,
        f"must be at least {least}, two batches",
        "raise it, or lower train.batch_rows",
      )
    for name in ("window_chunks", "lanes"):
      value = getattr(self.train, name)
      if value != getattr(TrainConfig, name):
        rule = "is about reading a store, and cannot be set beside --online"
        raise InputError(f"train.{name}", value, rule, "leave it out")


def main(config: Config) -> None:
  """Trains the SAEs and writes the results.

  Args:
    config: settings of the command.
  """
  with processes.started(config):
    if isinstance(config, Online):
      _online(config)
    else:
      _stored(config)


def _stored(config: Any) -> None:
  """Trains on stores."""
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
  if config.dry_run:
    plan.dry_run(
      config.sae,
      config.train,
      d=store.d,
      rows=store.rows,
      target=sweep.target,
    )
    return
  contents = {"store": store.content, "held_out": held_out.content}
  with run_folder.opened(config.run_dir, config, stores=contents):
    say(preflight.line(store.rows, store.d, config.sae, config.train))
    _train([sweep], config)


def _online(config: Online) -> None:
  """Trains on rows that are computed meanwhile, those of all sites at once."""
  wanted, path = config.harvest, pathlib.Path(config.run_dir)
  sites = spec.sites(wanted)
  width = max(_checked(site, config, together=len(sites)) for site in sites)
  if config.dry_run:
    plan.dry_run(config.sae, config.train, d=width, rows=wanted.rows)
    return
  with run_folder.opened(path, config):
    line = preflight.line(
      wanted.rows,
      width,
      config.sae,
      config.train,
      harvest_layers=1 + max(site.layer for site in sites),
      together=len(sites),
    )
    say(line)
    names = wanted.sites or [""]  # with one site its folder is that of the run
    _train(
      [
        grid.Grid(
          path=path / name,
          store=rows,
          held_out=held_out,
          sae=config.sae,
          train=config.train,
        )
        for name, (rows, held_out) in zip(
          names, stores.online(wanted), strict=True
        )
      ],
      config,
    )


def _checked(site: OnlineConfig, config: Online, *, together: int) -> int:
  """The width of a site, after refusing what cannot be trained there."""
  source, target = spec.subject_of(site), spec.target(site)
  columns = spec.columns(site, source, target).items()
  preflight.check(
    site.rows,
    source.d,
    config.sae,
    config.train,
    columns=tuple(name for name, column in columns if column.train),
    target=target and common.Target(d=target.d, prep=prep.Identity()),
    together=together,
  )
  return source.d


def _train(sweeps: Sequence[grid.Grid], config: Config) -> None:
  """Trains grids, and writes the results of each to its folder."""
  for sweep, points in zip(sweeps, grid.train_all(sweeps), strict=True):
    data = stores.describe(sweep.store, sweep.held_out)
    found = results.collect(config=config, points=points, data=data)
    processes.first(partial(results.write, found, sweep.path))
    processes.first(partial(_report, sweep, config, points, found))
    say(f"results: {sweep.path / results.JSON}, SAEs: {sweep.path / 'saes'}")


def _report(
  sweep: grid.Grid,
  config: Config,
  points: list[dict[str, Any]],
  found: dict[str, Any],
) -> None:
  """Writes the page of a grid; without the packages for it, says so."""
  try:
    extras.check()
  except InputError as error:
    say(f"no report page: {error.value} ({error.remedy})")
    return
  features = latents.blocks(sweep, points)
  flags = pathlib.Path(config.run_dir) / run_folder.FLAGS
  with busy("drawing the report"):
    scaling.write(
      found,
      None,
      sweep.path,
      metrics=grid.metrics(sweep),
      features=features,
      title="Trained sparse autoencoders",
      command=f"python experiments/train.py --flagfile={shlex.quote(str(flags))}",
    )
  say(f"report: {sweep.path / scaling.PAGE}")


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
