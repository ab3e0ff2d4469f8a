"""Scaling laws of TopK SAEs: harvest, train a grid, fit L(n, k), report.

    python experiments/scaling.py --flagfile=experiments/flags/quickstart.flags

The run folder gets results.json, results.csv, plots, report.html, metrics and
the trained SAEs. The same command goes on where a stopped run was.

References:
  Gao et al., Scaling and evaluating sparse autoencoders, 2024,
  arXiv:2406.04093, section 3.
"""

import dataclasses

from saejax import config, runs
from saejax.data.harvest import HarvestConfig
from saejax.data.text import subject
from saejax.errors import InputError
from saejax.evals import scaling_law
from saejax.report import extras, results, scaling
from saejax.training.loop import TrainConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """All that a scaling run depends on."""

  run_dir: str = "runs/scaling"  # folder of this run
  resamples: int = 300  # of the bootstrap behind intervals and bands
  harvest: HarvestConfig = HarvestConfig()
  sae: runs.SAEConfig = runs.SAEConfig(
    n=(512, 1024, 2048, 4096), k=(4, 8, 16, 32)
  )
  train: TrainConfig = TrainConfig()


def main(config: Config) -> None:
  extras.check()
  wanted = config.harvest
  source = subject.of(wanted.model, wanted.layer, wanted.point)
  with runs.folder(config.run_dir, config) as folder:
    runs.say(
      runs.preflight(
        wanted.rows,
        source.d,
        config.sae,
        config.train,
        harvest_layers=wanted.layer + 1,
      )
    )
    store, held_out = runs.harvest_stores(wanted, source)
    points = runs.train_grid(folder, store, held_out, config.sae, config.train)
    fit, reason = None, None
    try:
      fit = scaling_law.fit(points, resamples=config.resamples)
    except InputError as error:
      reason = str(error)
      runs.say(f"no scaling law: {reason}")
    found = results.collect(
      config=config,
      points=points,
      fit=fit,
      fit_reason=reason,
      data=runs.describe(store, held_out),
    )
    scaling.write(found, fit, folder, metrics=runs.metrics(folder, config.sae))
    runs.say(f"report: {folder / 'report.html'}")


if __name__ == "__main__":
  config.run(main, Config)
