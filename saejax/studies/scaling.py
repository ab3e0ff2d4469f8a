"""Scaling laws of TopK SAEs: harvest, train a grid, fit L(n, k), report.

    python experiments/scaling.py --flagfile=experiments/flags/quickstart.flags

The run folder gets results.json, results.csv, plots, report.html, metrics and
the trained SAEs. A stopped run is resumed by the same command.
--downstream_tokens=16384 adds what SAEs in place of the site cost the model, on as
many held-out tokens: to a new run after training, and to a finished one without
training again.

References:
  Gao et al., Scaling and evaluating sparse autoencoders, 2024,
  arXiv:2406.04093, section 3.
"""

import dataclasses
import pathlib
from functools import partial
from typing import Any

from saejax import checks, processes
from saejax.data import spec
from saejax.data.harvest import HarvestConfig
from saejax.errors import InputError
from saejax.evals import scaling_law
from saejax.processes import DistributedConfig
from saejax.report import extras, results, scaling
from saejax.runs import folder as run_folder
from saejax.runs import grid, latents, preflight, shares, stores
from saejax.runs.config import SAEConfig, sae_config
from saejax.studies import downstream, plan
from saejax.terminal import busy, say
from saejax.training.loop import TrainConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Settings of a scaling run."""

  run_dir: str = "runs/scaling"  # folder of this run
  dry_run: bool = False  # print what the run needs and takes, and end
  resamples: int = 300  # bootstrap resamples for intervals and bands
  # held-out tokens on which SAEs are evaluated in the model; 0 for none
  downstream_tokens: int = 0
  harvest: HarvestConfig = HarvestConfig()
  sae: SAEConfig = sae_config(n=(512, 1024, 2048, 4096), k=[4, 8, 16, 32])
  train: TrainConfig = TrainConfig()
  distributed: DistributedConfig = DistributedConfig()

  def __post_init__(self):
    checks.at_least(self, 2, "resamples")
    checks.at_least(self, 0, "downstream_tokens")


def main(config: Config) -> None:
  """Harvests, trains the grid, fits a scaling law and writes the report.

  The report is written without a law where none can be fitted.

  Args:
    config: settings of the run.
  """
  with processes.started(config), shares.Shares() as spent:
    _run(config, spent)
    say(f"time: {spent.line()}")


def _run(config: Config, spent: shares.Shares) -> None:
  extras.check()
  wanted = config.harvest
  with busy("preflight: reading the model and checking the settings"):
    source = spec.subject_of(wanted)
    preflight.check(wanted.rows, source.d, config.sae, config.train)
  if config.dry_run:
    plan.dry_run(config.sae, config.train, d=source.d, rows=wanted.rows)
    return
  if config.downstream_tokens:
    with busy("preflight: checking that SAEs can be evaluated in the model"):
      processes.first(
        partial(
          downstream.check, config.run_dir, wanted, config.downstream_tokens
        )
      )
  with run_folder.opened(config.run_dir, config) as folder:
    say(
      preflight.line(
        wanted.rows,
        source.d,
        config.sae,
        config.train,
        harvest_layers=wanted.layer + 1,
      )
    )
    with spent.during("harvest"):
      store, held_out = stores.harvested(wanted, source)
    sweep = grid.Grid(
      path=folder,
      store=store,
      held_out=held_out,
      sae=config.sae,
      train=config.train,
      shares=spent,
    )
    points = grid.train(sweep)
    measured = None
    if config.downstream_tokens:
      with spent.during("evaluate in the model"):
        measured = processes.first(
          partial(
            downstream.measure, sweep, points, wanted, config.downstream_tokens
          )
        )
    with spent.during("report"):
      processes.first(
        partial(_report, config, folder, sweep, points, measured, spent)
      )
    say(f"report: {folder / 'report.html'}")


def _report(
  config: Config,
  folder: pathlib.Path,
  sweep: grid.Grid,
  points: list[dict[str, Any]],
  measured: tuple[list[dict[str, Any]], dict[str, Any]] | None,
  spent: shares.Shares,
) -> None:
  """Fits the law and writes results, plots and the page.

  `measured` are the points and facts of `downstream.measure`, if it was wanted.
  """
  fit, reason = None, None
  try:
    fit = scaling_law.fit(points, resamples=config.resamples)
  except InputError as error:
    reason = str(error)
    say(f"no scaling law: {reason}")
  found = results.collect(
    config=config,
    points=measured[0] if measured else points,
    fit=fit,
    fit_reason=reason,
    data=stores.describe(sweep.store, sweep.held_out),
    seconds=spent.seconds(),
  )
  found["downstream"] = measured and measured[1]
  features = latents.blocks(sweep, points)
  with busy("drawing the report"):
    scaling.write(
      found, fit, folder, metrics=grid.metrics(sweep), features=features
    )
