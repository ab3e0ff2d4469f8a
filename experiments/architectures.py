"""Every method on the same activations, at several L0, with seeds.

    python experiments/architectures.py \\
      --flagfile=experiments/flags/architectures.flags

The run folder gets results.json (with "summary": every method against TopK at
equal L0), results.csv, plots and report.html: one table and figure of all
methods, then the frontiers of each site. The same command goes on where a
stopped run was.
"""

import dataclasses

from saejax import config
from saejax.data.harvest import HarvestConfig
from saejax.errors import InputError
from saejax.recipes import catalogue
from saejax.report import extras, study
from saejax.runs import folder as run_folder
from saejax.studies import architectures, arms


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """All that the study depends on."""

  run_dir: str = "runs/architectures"  # folder of this run
  harvest: HarvestConfig = HarvestConfig()  # of the first site
  more_sites: tuple[str, ...] = ()  # model:layer of others, same corpus
  study: arms.StudyConfig = arms.StudyConfig(seeds=3)
  methods: tuple[str, ...] = tuple(catalogue.METHODS)  # names in the catalogue
  expansion: float = 2.0  # latents over width of the rows
  k: tuple[int, ...] = (8, 16, 32)  # latents a row, where a method has a k

  def __post_init__(self):
    for name in self.methods:
      if name not in catalogue.METHODS:
        raise InputError(
          "methods",
          name,
          f"must be among {', '.join(catalogue.METHODS)}",
          "leave it out",
        )
    for site in self.more_sites:
      if not site.rpartition(":")[2].isdecimal():
        raise InputError(
          "more_sites", site, "must be model:layer", "such as gpt2:6"
        )


def main(config: Config) -> None:
  extras.check()
  sites = [config.harvest]
  for site in config.more_sites:
    model, _, layer = site.rpartition(":")
    sites.append(
      dataclasses.replace(config.harvest, model=model, layer=int(layer))
    )
  with run_folder.opened(config.run_dir, config) as folder:
    points, data = [], {}
    for site in sites:
      rows = architectures.with_scores(arms.harvested(site))
      name = arms.label(rows)
      data[name] = rows.about
      points += arms.run(
        folder,
        architectures.all_arms(
          rows,
          config.study,
          names=config.methods,
          n=round(config.expansion * rows.d),
          ks=config.k,
          site=name,
        ),
        rows,
        config.study,
        measure=architectures.measure,
      )
    study.write(
      folder,
      architectures.sections(points),
      config=config,
      points=points,
      data=data,
      title="Methods on the same activations",
      script="experiments/architectures.py",
      summary=architectures.against_reference(points),
    )


if __name__ == "__main__":
  config.run(main, Config)
