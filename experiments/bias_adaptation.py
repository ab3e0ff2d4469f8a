"""Group Bias Adaptation on planted dictionaries and on real activations.

    python experiments/bias_adaptation.py \\
      --flagfile=experiments/flags/bias-adaptation.flags

The run folder gets results.json, results.csv, plots and report.html. The same
command goes on where a stopped run was.

References:
  Chen et al., Taming Polysemanticity in LLMs: Provable Feature Recovery via
  Sparse Autoencoders, 2025, arXiv:2506.14002.
"""

import dataclasses

from saejax import config
from saejax.data.harvest import HarvestConfig
from saejax.report import extras, study
from saejax.runs import folder as run_folder
from saejax.studies import arms, bias_adaptation


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """All that the study depends on."""

  run_dir: str = "runs/bias_adaptation"  # folder of this run
  harvest: HarvestConfig = HarvestConfig()
  study: arms.StudyConfig = arms.StudyConfig(steps=2000, seeds=3)
  every: int = 5  # steps between adaptations
  directions: int = 64  # planted features
  d: int = 32  # width of planted rows
  active: int = 3  # planted features on a row
  n: int = 256  # latents on planted rows
  targets: tuple[float, ...] = (0.01, 0.02, 0.047, 0.1, 0.2, 0.4)  # of BA
  phase_n: tuple[int, ...] = (64, 128, 256)  # latents of the phase diagram
  phase_d: tuple[int, ...] = (16, 32)  # widths
  phase_active: tuple[int, ...] = (1, 3, 6, 10)  # features on a row
  real_n: int = 768  # latents on real rows


def main(config: Config) -> None:
  extras.check()
  with run_folder.opened(config.run_dir, config) as folder:
    real = arms.harvested(config.harvest)
    planted, V = bias_adaptation.planted_rows(
      config.directions, config.d, config.active
    )
    resonance = bias_adaptation.resonance_arms(
      planted,
      config.study,
      n=config.n,
      targets=config.targets,
      active=config.active,
      every=config.every,
    )
    phase, truths = bias_adaptation.phase_arms(
      config.study,
      widths=config.phase_n,
      dims=config.phase_d,
      actives=config.phase_active,
      directions=config.directions,
      every=config.every,
    )
    frontier = bias_adaptation.real_arms(
      real, config.study, n=config.real_n, every=config.every
    )
    truths |= {arm.name: V for arm in resonance}
    points = arms.run(
      folder,
      [*resonance, *phase, *frontier],
      real,
      config.study,
      measure=bias_adaptation.measure(truths),
    )
    study.write(
      folder,
      bias_adaptation.sections(points, config.active / config.directions),
      config=config,
      points=points,
      data=real.about,
      title="Group bias adaptation",
      script="experiments/bias_adaptation.py",
    )


if __name__ == "__main__":
  config.run(main, Config)
