"""Token choice, mutual choice and feature choice on the same activations.

    python experiments/allocation.py \\
      --flagfile=experiments/flags/allocation.flags

The run folder gets results.json, results.csv, plots and report.html. A stopped
run is resumed by the same command.

References:
  Ayonrinde, Adaptive Sparse Allocation with Mutual Choice and Feature Choice
  Sparse Autoencoders, 2024, arXiv:2411.02124.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from saejax import checks
from saejax.data.harvest import HarvestConfig
from saejax.errors import InputError
from saejax.recipes import batch_sparse, row_sparse
from saejax.report import curves, extras, page, study
from saejax.runs import folder as run_folder
from saejax.studies import arms
from saejax.training.config import TrainConfig
from saejax.training.recipe import Recipe

QUANTILES = (5, 25, 50, 75, 95)
RANKS = 40  # places on the curve of density against rank


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Settings of the study."""

  run_dir: str = "runs/allocation"  # folder of this run
  harvest: HarvestConfig = HarvestConfig()
  train: TrainConfig = TrainConfig()
  seeds: int = 5  # SAEs of each arm, paired across arms by seed
  n: int = 768  # latents
  k: tuple[int, ...] = (4, 8, 16, 32)  # mean active latents per row
  shown_k: int = 8  # the k whose use of latents is plotted

  def __post_init__(self):
    arms.check(self.train)
    checks.at_least(self, 1, "n", "seeds")
    checks.distinct(self, "k")
    if self.shown_k not in self.k:
      raise InputError(
        "shown_k", self.shown_k, f"must be one of k={self.k}", "add it to k"
      )
    if min(self.k) * self.train.batch_rows < self.n:
      raise InputError(
        "k",
        min(self.k),
        f"feature choice needs k B >= n, and {self.train.batch_rows} rows"
        f" give {min(self.k) * self.train.batch_rows} places for {self.n}",
        f"use train.batch_rows of at least {math.ceil(self.n / min(self.k))}",
      )


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
      [
        arms.Arm(name=name, make=make, n=config.n, k=config.k)
        for name, make in methods(config, rows).items()
      ],
      rows,
      config.train,
      seeds=config.seeds,
      measure=measure,
    )
    study.write(
      folder,
      sections(points, config.shown_k),
      config=config,
      points=points,
      data=rows.about,
      title="Allocation of latents to tokens",
      script="experiments/allocation.py",
    )


def methods(
  config: Config, rows: arms.Rows
) -> dict[str, Callable[[int], Recipe]]:
  """Maps the name of each allocation to its recipe as a function of k.

  Args:
    config: settings of the study; n and train are used.
    rows: rows to train on.
  """
  options = arms.options(config.train, rows)
  choice, phased = batch_sparse.feature_choice, batch_sparse.mc_then_fc
  recipes = {
    "TopK": row_sparse.topk,
    "MC (BatchTopK)": batch_sparse.batchtopk,
    "MC, aux zipf": partial(batch_sparse.batchtopk, aux="zipf"),
    "FC uniform": choice,
    "FC Zipf": partial(choice, budget="zipf"),
    "MC→FC": partial(phased, aux="dead"),
    "MC→FC, aux zipf": phased,
  }
  return {
    name: lambda k, make=make: make(rows.d, config.n, k, **options)
    for name, make in recipes.items()
  }


def measure(trained: arms.Trained) -> list[dict[str, Any]]:
  """Use of latents on held-out rows, of each SAE.

  Args:
    trained: the SAEs of an arm and their held-out rows.

  Returns:
    density_ranks, density: the density of the latent at some ranks, densest
    first, of those not dead; latents_per_token: quantiles of the number of
    latents of a row.
  """
  points = []
  for sae, found in zip(trained.saes, trained.found, strict=True):
    density = np.sort(found.density)[::-1]
    alive = density[density > 0]
    ranks = np.unique(
      np.geomspace(1, max(len(alive), 1), RANKS).round().astype(int)
    )
    counts = np.concatenate(
      [
        np.asarray(_counts(sae, part))
        for part in arms.chunks(trained.rows.held_out)
      ]
    )
    points.append(
      {
        "density_ranks": ranks[: len(alive)].tolist(),
        "density": alive[ranks[: len(alive)] - 1].tolist(),
        "latents_per_token": np.percentile(counts, QUANTILES).tolist(),
      }
    )
  return points


@jax.jit
def _counts(sae, batch):
  return sae.forward(batch).latents.count()


COLUMNS = {
  "arm": ("Method", ""),
  "k": ("k", "d"),
  "seed": ("Seed", "d"),
  "l0": ("L0", ".2f"),
  "fvu": ("FVU", ".4f"),
  "dead": ("Dead", ".3f"),
  "seconds": ("Seconds", ".1f"),
}


def sections(
  points: Sequence[Mapping[str, Any]], k: int
) -> tuple[list[page.Section], dict[str, Any]]:
  """The sections of the page, and its plots by name.

  Args:
    points: of all arms.
    k: whose use of latents is drawn.
  """
  use, drawn = _use_of_latents(points, k)
  l0 = curves.Axis("held-out L0 (latents per token)", log=True)
  drawn["frontier"] = curves.panels(
    {
      "Reconstruction": curves.by_arm(points, "l0", "fvu"),
      "Dead latents": curves.by_arm(points, "l0", "dead"),
    },
    l0,
    [curves.Axis("FVU", log=True), curves.Axis("dead (share of latents)")],
  )
  frontier = page.Section(
    "Frontier",
    [
      page.Prose(
        "Means over seeds with standard deviations. L0 and dead latents are "
        "those of the inference form: thresholds in the place of selection "
        "over the batch."
      ),
      study.figure(
        drawn["frontier"],
        "FVU and dead latents against L0 for each allocation.",
        "FVU (left) and share of dead latents (right) at held-out L0.",
      ),
    ],
  )
  table = study.table(points, COLUMNS, "All trained SAEs.")
  return [frontier, use, page.Section("Every SAE", [table])], drawn


def _use_of_latents(points, k: int) -> tuple[page.Section, dict[str, Any]]:
  """Plots density against rank and quantiles of latents per token (seed 0)."""
  chosen = [p for p in points if p["k"] == k and p["seed"] == 0]
  ranks = {
    p["arm"]: curves.Curve(p["density_ranks"], p["density"])
    for p in chosen
    if p["density_ranks"]
  }
  tokens = {
    p["arm"]: curves.Curve(QUANTILES, p["latents_per_token"]) for p in chosen
  }
  density = curves.panels(
    {"Tokens per latent": ranks},
    curves.Axis("rank of the latent", log=True),
    curves.Axis("density (share of tokens)", log=True),
  )
  per_token = curves.panels(
    {"Latents per token": tokens},
    curves.Axis("percentile of tokens"),
    curves.Axis("latents of the token"),
  )
  blocks = [
    study.figure(
      density,
      "Density of latents against their rank.",
      f"Density against rank at k = {k}, seed 0.",
    ),
    study.figure(
      per_token,
      "Quantiles of the number of latents of a token.",
      f"Latents per token at k = {k}, seed 0.",
    ),
  ]
  drawn = {"density_rank": density, "latents_per_token": per_token}
  return page.Section("Use of latents", blocks), drawn
