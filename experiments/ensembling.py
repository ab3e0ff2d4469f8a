"""Bagging and boosting of TopK SAEs against one SAE and one wider SAE.

    python experiments/ensembling.py \\
      --flagfile=experiments/flags/ensembling.flags

The run folder gets results.json, results.csv, plots, report.html and every
trained SAE. The same command goes on where a stopped run was.

References:
  Ensembling Sparse Autoencoders, 2025, arXiv:2505.16077.
"""

import dataclasses

from saejax import config
from saejax.data.harvest import HarvestConfig
from saejax.errors import InputError
from saejax.recipes import row_sparse
from saejax.report import extras, study
from saejax.runs import folder as run_folder
from saejax.studies import arms, ensembling


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """All that the study depends on."""

  run_dir: str = "runs/ensembling"  # folder of this run
  harvest: HarvestConfig = HarvestConfig()
  study: arms.StudyConfig = arms.StudyConfig(seeds=2)  # seeds: replicates
  n: int = 384  # latents of each member
  k: int = 8  # latents that each member keeps in a row
  sizes: tuple[int, ...] = (1, 2, 4, 8)  # members J

  def __post_init__(self):
    if list(self.sizes) != sorted(set(self.sizes)) or min(self.sizes) < 1:
      raise InputError(
        "sizes", self.sizes, "must increase from at least 1", "such as 1,2,4,8"
      )
    if not 1 <= self.k <= self.n:
      raise InputError("k", self.k, f"must be in [1, n={self.n}]", "lower it")


def main(config: Config) -> None:
  extras.check()
  with run_folder.opened(config.run_dir, config) as folder:
    rows = arms.harvested(config.harvest)
    options = arms.options(config.study, rows)

    def base(n, k, *, prep):
      return row_sparse.topk(rows.d, n, k, **{**options, "prep": prep})

    points = ensembling.Study(
      base=base,
      n=config.n,
      k=config.k,
      sizes=config.sizes,
      replicates=config.study.seeds,
      rows=rows,
      config=config.study,
      folder=folder,
    ).run()
    study.write(
      folder,
      ensembling.sections(points),
      config=config,
      points=points,
      data=rows.about,
      title="Ensembles of sparse autoencoders",
      script="experiments/ensembling.py",
    )


if __name__ == "__main__":
  config.run(main, Config)
