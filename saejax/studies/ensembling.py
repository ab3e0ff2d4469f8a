"""Bagging and boosting of TopK SAEs against one SAE and one wider SAE.

    python experiments/ensembling.py \\
      --flagfile=experiments/flags/ensembling.flags

The run folder gets results.json, results.csv, plots, report.html and every
trained SAE. A stopped run is resumed by the same command.

Replicates differ in every initial seed; stability compares them two by two.

References:
  Ensembling Sparse Autoencoders, 2025, arXiv:2505.16077.
"""

import dataclasses
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from saejax import checks, terminal
from saejax.data.harvest import HarvestConfig
from saejax.errors import InputError
from saejax.evals import ensembles as metrics
from saejax.evals import held_out
from saejax.recipes import row_sparse
from saejax.report import curves, extras, page, study
from saejax.runs import folder as run_folder
from saejax.sae import ensembles, files
from saejax.sae.sae import SAE
from saejax.studies import arms
from saejax.training import loop
from saejax.training.config import TrainConfig
from saejax.training.members import Member
from saejax.training.recipe import Recipe

BAGGING, BOOSTING, WIDER = "bagging", "boosting", "one wider SAE"
MEET_CHUNK = 1024  # rows counted at once
MEET_ROWS = 16_384  # held-out rows on which co-activation is counted

# A function of n, k and the prep that gives the base recipe.
Base = Callable[..., Recipe]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Settings of the study."""

  run_dir: str = "runs/ensembling"  # folder of this run
  harvest: HarvestConfig = HarvestConfig()
  train: TrainConfig = TrainConfig()
  seeds: int = 2  # replicates: ensembles of each kind and size
  n: int = 384  # latents of each member
  k: int = 8  # active latents per row, of each member
  sizes: tuple[int, ...] = (1, 2, 4, 8)  # members J

  def __post_init__(self):
    checks.distinct(self, "sizes", increasing=True)
    arms.check(self.train)
    checks.at_least(self, 1, "n", "k", "seeds")
    checks.at_most(self, self.n, "k")
    least = self.harvest.held_out_rows
    if least < MEET_CHUNK:
      raise InputError(
        "harvest.held_out_rows",
        least,
        f"must be at least {MEET_CHUNK:,}: co-activation is counted on them",
        "raise it",
      )


def main(config: Config) -> None:
  """Trains every ensemble and writes the report.

  Args:
    config: settings of the study.

  Raises:
    InputError: the held-out store has fewer than MEET_CHUNK rows.
  """
  extras.check()
  with run_folder.opened(config.run_dir, config) as folder:
    rows = arms.harvested(config.harvest)
    if len(rows.held_out.x) < MEET_CHUNK:
      raise InputError(
        "harvest.held_out_rows",
        len(rows.held_out.x),
        f"the held-out store must have {MEET_CHUNK:,} rows",
        "use more or longer documents",
      )
    options = arms.options(config.train, rows)
    base = lambda n, k, *, prep: row_sparse.topk(
      rows.d, n, k, **{**options, "prep": prep}
    )
    points = Study(
      base=base,
      n=config.n,
      k=config.k,
      sizes=config.sizes,
      replicates=config.seeds,
      rows=rows,
      config=config.train,
      folder=folder,
    ).run()
    study.write(
      folder,
      sections(points),
      config=config,
      points=points,
      data=rows.about,
      title="Ensembles of sparse autoencoders",
      script="experiments/ensembling.py",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
  """The ensembles that are compared.

  Attributes:
    base: recipe(n, k, prep=...).
    n, k: of each member.
    sizes: numbers of members, ascending.
    replicates: ensembles of each kind, at least 2 for stability.
    rows: data.
    config: training of each member.
    folder: of the run; every trained SAE is kept there.
  """

  base: Base
  n: int
  k: int
  sizes: tuple[int, ...]
  replicates: int
  rows: arms.Rows
  config: TrainConfig
  folder: pathlib.Path

  def run(self) -> list[dict[str, Any]]:
    """Points of every kind, size and replicate, with stability among them."""
    points, dictionaries = [], {}
    for replicate in range(self.replicates):
      for kind, build in (
        (BAGGING, self._bagging),
        (BOOSTING, self._boosting),
        (WIDER, self._wider),
      ):
        for size, sae, seconds in build(replicate):
          terminal.say(f"{kind}, {size} of n = {self.n}, replicate {replicate}")
          points.append(self._point(kind, size, replicate, sae, seconds))
          W = ensembles.decoder_of_stages(sae)[0]
          dictionaries[kind, size, replicate] = np.asarray(W)
    return [{**p, **self._stability(p, dictionaries)} for p in points]

  def _bagging(self, replicate: int):
    """The mean of the first members, for each size."""
    began, members = time.monotonic(), []
    for j in range(max(self.sizes)):
      seed = self._seed(replicate, j)
      members.append(self._trained(f"member-{seed}", seed, self._recipe()))
      if j + 1 in self.sizes:
        yield j + 1, ensembles.flatten(members), time.monotonic() - began

  def _boosting(self, replicate: int):
    """Stages one after the other; each is the whole ensemble so far."""
    began, sae = time.monotonic(), None
    for j in range(max(self.sizes)):
      seed = self._seed(replicate, j)
      stages = ensembles.stages_of(sae) if sae is not None else ()
      if not stages:  # the first member of the bag
        sae = self._trained(f"member-{seed}", seed, self._recipe())
      else:
        behind = ensembles.residual(stages, arms.sample(self.rows.train))
        recipe = self.base(self.n, self.k, prep=behind)
        sae = self._trained(f"stage-{seed}", seed, recipe)
      if j + 1 in self.sizes:
        yield j + 1, sae, time.monotonic() - began

  def _wider(self, replicate: int):
    """A single SAE with the total latents and L0 of all members."""
    for size in self.sizes:
      began, seed = time.monotonic(), self._seed(replicate, 0)
      name = f"wider-{size}-{seed}" if size > 1 else f"member-{seed}"
      sae = self._trained(name, seed, self._recipe(size), size)
      yield size, sae, time.monotonic() - began

  def _seed(self, replicate: int, j: int) -> int:
    return replicate * max(self.sizes) + j

  def _recipe(self, times: int = 1) -> Recipe:
    return self.base(times * self.n, times * self.k, prep=self.rows.prep)

  def _trained(
    self, name: str, seed: int, recipe: Recipe, times: int = 1
  ) -> SAE:
    """An SAE of the folder, trained if it is not there."""
    path, folder = (
      self.folder / "saes" / name,
      self.folder / run_folder.ARMS / name,
    )
    if not path.exists():
      rate = self.config.rate(times * self.n)
      (trained,) = arms.train(
        folder,
        lambda: recipe,
        [Member(seed=seed, learning_rate=rate)],
        self.rows,
        self.config,
      )
      files.save(trained.sae, path)
    loop.remove_checkpoints(folder)
    return files.load(path)

  def _point(self, kind, size, replicate, sae, seconds) -> dict[str, Any]:
    found = held_out.evaluate(
      sae, arms.chunks(self.rows.held_out), mean=self.rows.mean
    )
    encode = jax.jit(lambda x: ensembles.encode_stages(sae, x))
    rows = self.rows.held_out.x[:MEET_ROWS]
    starts = range(0, len(rows) - MEET_CHUNK + 1, MEET_CHUNK)
    parts = [rows[i : i + MEET_CHUNK] for i in starts]
    latents = np.concatenate([np.asarray(encode(x) != 0) for x in parts])
    W, _ = ensembles.decoder_of_stages(sae)
    return {
      "arm": kind,
      "size": size,
      "n": len(W),
      "k": size * self.k,
      "seed": replicate,
      "status": "ok",
      "seconds": seconds,
      **found.record(),
      # Of all stages, not of the last.
      "l0": float(latents.sum(axis=1).mean()),
      "dead": float((~latents.any(axis=0)).mean()),
      "explained_variance": 1 - found.fvu,
      "connectivity": metrics.connectivity(encode, parts),
      "diversity": metrics.diversity(W) / len(W),
    }

  def _stability(self, point, dictionaries) -> dict[str, float | None]:
    """Mean over the other replicates of the two matches."""
    key = (point["arm"], point["size"])
    own = dictionaries[*key, point["seed"]]
    others = [
      dictionaries[*key, r]
      for r in range(self.replicates)
      if r != point["seed"]
    ]
    return {
      f"stability_{how}": float(
        np.mean([metrics.stability(own, other, how) for other in others])
      )
      if others
      else None
      for how in ("assigned", "nearest")
    }


def sections(
  points: Sequence[Mapping[str, Any]],
) -> tuple[list[page.Section], dict[str, Any]]:
  """The sections of the page, and its plots by name.

  Args:
    points: points of all ensembles, as `Study.run` returns them.
  """
  shown = {
    "Explained variance": ("explained_variance", "1 − FVU"),
    "Connectivity": ("connectivity", "1 − share of pairs that meet"),
    "Stability": ("stability_assigned", "mean cosine of matched latents"),
    "Diversity": ("diversity", "share of latents not near-duplicates"),
  }
  made = curves.panels(
    {
      title: curves.by_arm(points, "size", name, by=("size",))
      for title, (name, _) in shown.items()
    },
    curves.Axis("members J", log=True),
    [curves.Axis(label) for _, label in shown.values()],
  )
  columns = {
    "arm": ("Kind", ""),
    "size": ("J", "d"),
    "seed": ("Replicate", "d"),
    "n": ("Latents", ",d"),
    "l0": ("L0", ".1f"),
    "explained_variance": ("EV", ".4f"),
    "dead": ("Dead", ".3f"),
    "connectivity": ("Connectivity", ".3f"),
    "stability_assigned": ("Stability, one to one", ".3f"),
    "stability_nearest": ("Stability, nearest", ".3f"),
    "diversity": ("Diversity", ".3f"),
  }
  return [
    page.Section(
      "Over the number of members",
      [
        page.Prose(
          "An ensemble of J members has J times the latents and J times the "
          "L0 of one; the wider SAE is given both. Bars are standard "
          "deviations over replicates."
        ),
        study.figure(
          made,
          "Explained variance, connectivity, stability and diversity over J.",
          "Held-out rows; the wider SAE has J n latents and keeps J k.",
        ),
      ],
    ),
    page.Section(
      "Every ensemble", [study.table(points, columns, "All ensembles.")]
    ),
  ], {"over_members": made}
