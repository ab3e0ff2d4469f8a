"""Measures claims of papers about their methods over paired seeds.

    python experiments/claims.py --flagfile=experiments/flags/claims.flags

The run folder gets results.json (with "claims": recipe, paper, claim, verdict,
effect, interval, margin, seeds, data), results.csv, plots and report.html. A
stopped run is resumed by the same command.
"""

import dataclasses

from saejax import checks
from saejax.data.harvest import HarvestConfig
from saejax.errors import InputError
from saejax.report import extras, study
from saejax.runs import folder as run_folder
from saejax.studies import arms, scores
from saejax.studies.claims import causal, planted, training, words
from saejax.studies.claims import claim as claims
from saejax.studies.claims import site as sites
from saejax.training.config import TrainConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class SiteConfig:
  """A site and the sizes of SAEs on it."""

  harvest: HarvestConfig = HarvestConfig()
  train: TrainConfig = TrainConfig()
  n: int = 768  # latents
  k: tuple[int, ...] = (8, 16, 32)  # active latents per token, ascending

  def __post_init__(self):
    arms.check(self.train)
    checks.at_least(self, 1, "n")
    checks.distinct(self, "k", most=self.n, increasing=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlantedConfig:
  """How arms on planted rows and those of `causal` are trained."""

  train: TrainConfig = TrainConfig()

  def __post_init__(self):
    arms.check(self.train)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Settings of the study."""

  run_dir: str = "runs/claims"  # folder of this run
  first: SiteConfig = SiteConfig()  # a site that every claim is measured on
  second: SiteConfig = SiteConfig()  # another one
  sites: int = 1  # how many of the two to use
  planted: PlantedConfig = PlantedConfig()
  seeds: int = 5  # SAEs of each arm, paired across arms by seed
  # a small causal model, for claims on layers and own text; empty: left out
  causal: str = ""

  def __post_init__(self):
    checks.at_least(self, 1, "seeds")
    if self.sites not in (1, 2):
      raise InputError("sites", self.sites, "must be 1 or 2", "use 1")
    if self.sites == 2 and self.first.harvest == self.second.harvest:
      raise InputError(
        "sites", self.sites, "the two sites must differ", "set second.harvest"
      )


def main(config: Config) -> None:
  """Trains every arm, measures every claim, writes the report.

  Args:
    config: settings of the study.
  """
  extras.check()
  with run_folder.opened(config.run_dir, config) as folder:
    # By name of the data: facts about it, and sizes where it is a site.
    points, data = planted.points(folder, config.planted.train, config.seeds)
    sizes: dict[str, claims.Sizes | None] = dict.fromkeys(data)
    if config.causal:
      more, about = causal.points(
        folder, config.causal, config.planted.train, config.seeds
      )
      points, data = points + more, data | about
      sizes |= dict.fromkeys(about)
    for site in (config.first, config.second)[: config.sites]:
      rows = scores.with_scores(arms.harvested(site.harvest))
      name = arms.label(rows)
      data[name] = rows.about
      sizes[name] = claims.Sizes(n=site.n, k=site.k)
      points += arms.run(
        folder,
        sites.site_arms(
          sites.Site(name=name, rows=rows, config=site.train, sizes=sizes[name])
        ),
        rows,
        site.train,
        seeds=config.seeds,
        measure=sites.measure,
      )
    records = [
      claims.measured(claim, points, where, sizes[where])
      for claim in training.CLAIMS
      for where in data
      if claim.group == (where if sizes[where] is None else claims.SITE)
    ]
    study.write(
      folder,
      words.sections(records),
      config=config,
      points=points,
      data=data,
      title="Claims of papers, measured",
      script="experiments/claims.py",
      claims=records,
    )
