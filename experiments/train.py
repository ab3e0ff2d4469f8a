"""Trains SAEs on stores that experiments/harvest.py wrote.

    python experiments/train.py --store=runs/stores/store-... \\
      --held_out=runs/stores/store-... --sae.n=1024 --sae.k=8,16

Writes the trained SAEs, metrics and results.json to the run folder.
"""

import dataclasses

from saejax import config, runs
from saejax.data import store as stores
from saejax.report import results
from saejax.training.loop import TrainConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """What to train, and on what."""

  run_dir: str = "runs/train"  # folder of this run
  store: str  # folder of the training store
  held_out: str  # folder of the held-out store
  model: str | None = None  # what both stores must be of; none: any
  layer: int | None = None  # likewise
  point: str | None = None  # likewise
  d: int | None = None  # likewise, the width of rows
  sae: runs.SAEConfig = runs.SAEConfig()
  train: TrainConfig = TrainConfig()


def main(config: Config) -> None:
  expected = {
    name: getattr(config, name)
    for name in ("model", "layer", "point", "d")
    if getattr(config, name) is not None
  }
  store = stores.open(config.store, expect=expected)
  held_out = stores.open(config.held_out, expect=expected)
  with runs.folder(config.run_dir, config) as folder:
    runs.say(runs.preflight(store.rows, store.d, 0, config.sae, config.train))
    points = runs.train_grid(folder, store, held_out, config.sae, config.train)
    results.write(results.build(config, points), folder)


if __name__ == "__main__":
  config.run(main, Config)
