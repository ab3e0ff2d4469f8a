"""Variational SAEs against TopK and an L2 control, over the KL weight.

    python experiments/variational.py \\
      --flagfile=experiments/flags/variational.flags

The run folder gets results.json, results.csv, plots and report.html. A stopped
run is resumed by the same command.

References:
  Analysis of Variational Sparse Autoencoders, 2025.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from saejax import checks
from saejax.data.harvest import HarvestConfig
from saejax.errors import InputError
from saejax.evals import geometry
from saejax.recipes import row_sparse, stochastic
from saejax.report import curves, extras, page, study
from saejax.runs import folder as run_folder
from saejax.studies import arms
from saejax.training.config import TrainConfig

ROWS = 4096  # held-out rows that correlations are taken over
COLUMNS = {
  "method": ("Method", ""),
  "weight": ("KL weight", ".3g"),
  "seed": ("Seed", "d"),
  "l0": ("L0", ".2f"),
  "fvu": ("FVU", ".4f"),
  "dead": ("Dead", ".3f"),
  "dependence": ("Dependence", ".4f"),
  "mean_square": ("Mean square", ".3f"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Settings of the study."""

  run_dir: str = "runs/variational"  # folder of this run
  harvest: HarvestConfig = HarvestConfig()
  train: TrainConfig = TrainConfig()
  seeds: int = 3  # SAEs of each arm, paired across arms by seed
  n: int = 768  # latents
  k: int = 16  # active latents per row
  weights: tuple[float, ...] = (0.001, 0.01, 0.1, 1.0)  # of KL and L2 terms

  def __post_init__(self):
    checks.distinct(self, "weights", least=0)
    if 0 in self.weights:
      raise InputError(
        "weights", self.weights, "must be positive", "TopK has none"
      )
    arms.check(self.train)
    checks.at_least(self, 1, "n", "k", "seeds")
    checks.at_most(self, self.n, "k")


def main(config: Config) -> None:
  """Trains every arm and writes the report.

  Args:
    config: settings of the study.
  """
  extras.check()
  with run_folder.opened(config.run_dir, config) as folder:
    rows = arms.harvested(config.harvest)
    points = arms.run(
      folder,
      all_arms(config, rows),
      rows,
      config.train,
      seeds=config.seeds,
      measure=measure,
    )
    study.write(
      folder,
      sections(points),
      config=config,
      points=points,
      data=rows.about,
      title="Variational sparse autoencoders",
      script="experiments/variational.py",
    )


def all_arms(config: Config, rows: arms.Rows) -> list[arms.Arm]:
  """TopK, and each form of the posterior and the control at every weight.

  Args:
    config: settings of the study: n, k, weights and train.
    rows: rows to train on.
  """
  options = arms.options(config.train, rows)
  vsae = stochastic.vsae
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

  return [arm("TopK", None, row_sparse.topk)] + [
    arm(method, weight, partial(make, coefficient=weight))
    for method, make in methods.items()
    for weight in config.weights
  ]


def measure(trained: arms.Trained) -> list[dict[str, Any]]:
  """Dependence of latents and size of the posterior mean, of each SAE.

  Args:
    trained: the SAEs of an arm and their held-out rows.

  Returns:
    The numbers of `evals.geometry.dependence` on ROWS held-out rows, per SAE.
  """
  batch = next(arms.chunks(trained.rows.held_out, ROWS))
  return [dict(geometry.dependence(sae, batch)) for sae in trained.saes]


def sections(
  points: Sequence[Mapping[str, Any]],
) -> tuple[list[page.Section], dict[str, Any]]:
  """The sections of the page, and its plots by name.

  Args:
    points: points of all arms, as in results.json.
  """
  swept = [p for p in points if p["weight"] is not None]
  baseline = [p for p in points if p["weight"] is None]
  weights = sorted({p["weight"] for p in swept})
  drawn = {}
  for title, name in (
    ("Reconstruction", "fvu"),
    ("Dead latents", "dead"),
    ("Dependence", "dependence"),
    ("Posterior mean", "mean_square"),
  ):
    curve = curves.by_arm(_named(swept), "weight", name, by=("weight",))
    values = [p[name] for p in baseline]
    curve["TopK"] = curves.Curve(
      weights, [float(np.mean(values))] * len(weights)
    )
    drawn[title] = curve
  made = curves.panels(
    drawn,
    curves.Axis("weight of the KL or L2 term", log=True),
    [
      curves.Axis("FVU", log=True),
      curves.Axis("dead (share of latents)"),
      curves.Axis("mean |correlation| of live latents"),
      curves.Axis("mean sum of squares", log=True),
    ],
  )
  return [
    page.Section(
      "Over the weight",
      [
        page.Prose(
          "Each curve is one form of the posterior, with standard deviations "
          "over seeds; the flat line is TopK without a penalty. Where the "
          "variational curves follow the L2 control, the KL term acts as a "
          "penalty on the size of the latents and nothing else."
        ),
        study.figure(
          made,
          "FVU, dead latents, dependence and posterior mean over KL weight.",
          "Measured on held-out rows.",
        ),
      ],
    ),
    page.Section(
      "Every SAE", [study.table(points, COLUMNS, "All trained SAEs.")]
    ),
  ], {"over_weight": made}


def _named(points):
  return [{**p, "arm": p["method"]} for p in points]
