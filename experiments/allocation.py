"""Token choice, mutual choice and feature choice on the same activations.

    python experiments/allocation.py \\
      --flagfile=experiments/flags/allocation.flags

The run folder gets results.json, results.csv, plots and report.html. The same
command goes on where a stopped run was.

References:
  Ayonrinde, Adaptive Sparse Allocation with Mutual Choice and Feature Choice
  Sparse Autoencoders, 2024, arXiv:2411.02124.
"""

import dataclasses
from functools import partial

from saejax import config
from saejax.data.harvest import HarvestConfig
from saejax.errors import InputError
from saejax.recipes import batch_sparse, row_sparse
from saejax.report import extras, study
from saejax.runs import folder as run_folder
from saejax.studies import allocation, arms


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """All that the study depends on."""

  run_dir: str = "runs/allocation"  # folder of this run
  harvest: HarvestConfig = HarvestConfig()
  study: arms.StudyConfig = arms.StudyConfig(batch_rows=1024)
  n: int = 768  # latents
  k: tuple[int, ...] = (4, 8, 16, 32)  # latents a row on average
  shown_k: int = 8  # whose use of latents is drawn

  def __post_init__(self):
    if self.shown_k not in self.k:
      raise InputError(
        "shown_k", self.shown_k, f"must be one of k={self.k}", "add it to k"
      )
    if min(self.k) * self.study.batch_rows < self.n:
      raise InputError(
        "k",
        min(self.k),
        f"feature choice needs k B >= n, and {self.study.batch_rows} rows"
        f" give {min(self.k) * self.study.batch_rows} places for {self.n}",
        "raise k or study.batch_rows",
      )


def main(config: Config) -> None:
  extras.check()
  with run_folder.opened(config.run_dir, config) as folder:
    rows = arms.harvested(config.harvest)
    options = arms.options(config.study, rows)
    choice = partial(
      batch_sparse.feature_choice, batch_rows=config.study.batch_rows
    )
    phased = partial(
      batch_sparse.mc_then_fc,
      batch_rows=config.study.batch_rows,
      steps=config.study.steps,
    )
    methods = {
      "TopK": row_sparse.topk,
      "MC (BatchTopK)": batch_sparse.batchtopk,
      "MC, aux zipf": partial(batch_sparse.batchtopk, aux="zipf"),
      "FC uniform": choice,
      "FC Zipf": partial(choice, budget="zipf"),
      "MC→FC": partial(phased, aux="dead"),
      "MC→FC, aux zipf": phased,
    }
    points = arms.run(
      folder,
      [
        arms.Arm(
          name=name,
          make=lambda k, make=make: make(rows.d, config.n, k, **options),
          n=config.n,
          k=config.k,
        )
        for name, make in methods.items()
      ],
      rows,
      config.study,
      measure=allocation.measure,
    )
    study.write(
      folder,
      allocation.sections(points, config.shown_k),
      config=config,
      points=points,
      data=rows.about,
      title="Allocation of latents to tokens",
      script="experiments/allocation.py",
    )


if __name__ == "__main__":
  config.run(main, Config)
