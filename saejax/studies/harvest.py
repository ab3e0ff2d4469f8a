"""Harvests activations of a model into a training and a held-out store.

    python experiments/harvest.py --harvest.layer=3 --harvest.rows=300000

Prints the folders of the two stores, for experiments/train.py; those of each site
with --harvest.sites. The same command
resumes after a kill, and returns at once where both are complete. Several
processes, on one machine or many, write the stores together where each is given
its number:

    python experiments/harvest.py --process=0 --processes=4 ...

With --repair it reads what is there and harvests what is damaged again.
"""

import dataclasses

from saejax.data.harvest import HarvestConfig
from saejax.data.store.share import Share
from saejax.runs import stores


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Settings of the command."""

  harvest: HarvestConfig = HarvestConfig()
  process: int = 0  # number of this process, from 0
  processes: int = 1  # processes that harvest the same stores
  repair: bool = False  # read what is there, and harvest what is damaged again

  def __post_init__(self):
    Share(self.process, self.processes)


def main(config: Config) -> None:
  """Harvests the stores, or resumes, and prints their folders.

  Args:
    config: settings of the command.
  """
  found = stores.harvested_share(
    config.harvest,
    share=Share(config.process, config.processes),
    repair=config.repair,
  )
  for place, complete in (store for site in found for store in site):
    print(place if complete else f"{place} (other processes are not done)")
