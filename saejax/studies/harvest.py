"""Harvests activations of a model into a training and a held-out store.

    python experiments/harvest.py --harvest.layer=3 --harvest.rows=300000

Prints the folders of the two stores, for experiments/train.py. The same command
resumes after a kill, and returns at once where both are complete.
"""

import dataclasses

from saejax.data.harvest import HarvestConfig
from saejax.runs import stores


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Settings of the command."""

  harvest: HarvestConfig = HarvestConfig()


def main(config: Config) -> None:
  """Harvests both stores, or resumes, and prints their folders.

  Args:
    config: settings of the command.
  """
  train, held_out = stores.harvested(config.harvest)
  print(train.path)
  print(held_out.path)
