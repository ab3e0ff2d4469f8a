"""What papers claim of their methods, measured here over paired seeds.

    python experiments/claims.py --flagfile=experiments/flags/claims.flags

The run folder gets results.json (with "claims": recipe, paper, claim, verdict,
effect, interval, seeds, data), results.csv, plots and report.html. The same
command goes on where a stopped run was.
"""

import dataclasses

from saejax import config
from saejax.data.harvest import HarvestConfig
from saejax.errors import InputError
from saejax.report import extras, study
from saejax.runs import folder as run_folder
from saejax.studies import (
  architectures,
  arms,
  causal_claims,
  claim_arms,
  claims,
  other_claims,
  site_claims,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SiteConfig:
  """One site and the sizes of SAEs on it."""

  harvest: HarvestConfig = HarvestConfig()
  study: arms.StudyConfig = arms.StudyConfig(steps=600)
  n: int = 768  # latents
  k: tuple[int, ...] = (8, 16, 32)  # latents a row, ascending


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """All that the study depends on."""

  run_dir: str = "runs/claims"  # folder of this run
  first: SiteConfig = SiteConfig()  # a site that every claim is measured on
  second: SiteConfig = SiteConfig()  # another one
  sites: int = 1  # how many of the two to use
  planted: arms.StudyConfig = arms.StudyConfig()  # on planted rows and `causal`
  # a small causal model, for claims on layers and own text; empty: left out
  causal: str = ""

  def __post_init__(self):
    if self.sites not in (1, 2):
      raise InputError("sites", self.sites, "must be 1 or 2", "use 1")
    if self.sites == 2 and self.first.harvest == self.second.harvest:
      raise InputError(
        "sites", self.sites, "the two sites must differ", "set second.harvest"
      )


def main(config: Config) -> None:
  extras.check()
  with run_folder.opened(config.run_dir, config) as folder:
    points, wanted = other_claims.of(folder, config.planted)
    data = {}
    if config.causal:
      found = causal_claims.of(folder, config.causal, config.planted)
      points, wanted, data = points + found[0], wanted + found[1], found[2]
    for site in (config.first, config.second)[: config.sites]:
      rows = architectures.with_scores(arms.harvested(site.harvest))
      name = arms.label(rows)
      data[name] = rows.about
      mine, more = site_claims.of(
        claim_arms.Site(
          name=name, rows=rows, config=site.study, n=site.n, k=site.k
        )
      )
      wanted += more
      points += arms.run(
        folder, mine, rows, site.study, measure=claim_arms.measure
      )
    found = [claims.measure(claim, points) for claim in wanted]
    study.write(
      folder,
      claims.sections(found),
      config=config,
      points=points,
      data=data,
      title="Claims of papers, measured",
      script="experiments/claims.py",
      claims=found,
    )


if __name__ == "__main__":
  config.run(main, Config)
