"""Merges stores of one model and site into one store.

    python experiments/merge.py --stores=runs/a/store-...,runs/b/store-...

Prints the folder of the new store. The same command resumes after a kill.
"""

import dataclasses

from saejax.data import merged
from saejax.data.store import create, reader
from saejax.data.store.share import Share
from saejax.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Settings of the command."""

  stores: tuple[str, ...]  # folders or URLs of stores, two or more
  dir: str = "runs/stores"  # folder of the new store, or s3://, gs://
  seed: int = 0  # seed for shuffling; -1 keeps the order of the rows
  bucket_rows: int = create.BUCKET_ROWS  # rows shuffled together
  shard_rows: int = create.SHARD_ROWS  # rows per file
  chunk_rows: int = create.CHUNK_ROWS  # rows read at once
  process: int = 0  # number of this process, from 0
  processes: int = 1  # processes that write the store

  def __post_init__(self):
    Share(self.process, self.processes)
    if self.seed < -1:
      raise InputError("seed", self.seed, "must be at least -1", "correct it")


def main(config: Config) -> None:
  """Merges the stores and prints the folder.

  Args:
    config: settings of the command.
  """
  place = merged.merge(
    [reader.open(path) for path in config.stores],
    config.dir,
    shuffle_seed=None if config.seed < 0 else config.seed,
    bucket_rows=config.bucket_rows,
    shard_rows=config.shard_rows,
    chunk_rows=config.chunk_rows,
    share=Share(config.process, config.processes),
  )
  print(place)
