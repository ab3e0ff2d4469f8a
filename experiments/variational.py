"""Variational SAEs against TopK and an L2 control, over the KL weight.

    python experiments/variational.py \\
      --flagfile=experiments/flags/variational.flags

The run folder gets results.json, results.csv, plots and report.html. The same
command goes on where a stopped run was.

References:
  Analysis of Variational Sparse Autoencoders, 2025.
"""

import dataclasses
from functools import partial

from saejax import config
from saejax.data.harvest import HarvestConfig
from saejax.errors import InputError
from saejax.recipes import row_sparse, stochastic
from saejax.report import extras, study
from saejax.runs import folder as run_folder
from saejax.studies import arms, variational


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """All that the study depends on."""

  run_dir: str = "runs/variational"  # folder of this run
  harvest: HarvestConfig = HarvestConfig()
  study: arms.StudyConfig = arms.StudyConfig(seeds=3)
  n: int = 768  # latents
  k: int = 16  # latents kept in a row
  weights: tuple[float, ...] = (0.001, 0.01, 0.1, 1.0)  # of the KL or L2 term

  def __post_init__(self):
    if not self.weights or min(self.weights) <= 0:
      raise InputError(
        "weights", self.weights, "must be positive", "TopK is there without"
      )


def main(config: Config) -> None:
  extras.check()
  with run_folder.opened(config.run_dir, config) as folder:
    rows = arms.harvested(config.harvest)
    options = arms.options(config.study, rows)
    vsae = partial(
      stochastic.vsae, warmup_steps=max(1, config.study.steps // 10)
    )
    methods = {
      "posterior none": partial(vsae, posterior="none"),
      "posterior none, masked": partial(vsae, posterior="none", masked=True),
      "posterior fixed": partial(vsae, posterior="fixed"),
      "posterior learned": partial(vsae, posterior="learned"),
      "L2 control": stochastic.topk_l2,
    }

    def arm(method, weight, make):
      return arms.Arm(
        name=f"{method} {weight}" if weight else method,
        make=lambda k: make(rows.d, config.n, k, **options),
        n=config.n,
        k=(config.k,),
        facts={"method": method, "weight": weight},
      )

    points = arms.run(
      folder,
      [arm("TopK", None, row_sparse.topk)]
      + [
        arm(method, weight, partial(make, coefficient=weight))
        for method, make in methods.items()
        for weight in config.weights
      ],
      rows,
      config.study,
      measure=variational.measure,
    )
    study.write(
      folder,
      variational.sections(points),
      config=config,
      points=points,
      data=rows.about,
      title="Variational sparse autoencoders",
      script="experiments/variational.py",
    )


if __name__ == "__main__":
  config.run(main, Config)
