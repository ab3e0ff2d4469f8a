"""Writing rows to a store beside writing their bytes to one file.

  python benchmarks/store_write.py --write=benchmarks/results/store-write-cpu-2core.json

  store     rows in shuffled buckets: shards with checksums, ledger, moments,
            manifest; each file synced
  raw       the same bytes, a block at a time, into one file, synced at the end
  sequence  the store's rows, read chunk by chunk and checked

Rounds are interleaved; ratios are taken within a round, medians are given. Rows
are bfloat16 of --d values from an array in memory that is given again and again,
in an order of its own in each bucket.
"""

import dataclasses
import datetime
import json
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from saejax import checks, config, machine
from saejax.data import fill, rows
from saejax.data.store import create, reader
from saejax.data.store.columns import Column

BLOCK = 8192  # rows of the array in memory


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """What is written, and how often."""

  rows: int = 3_000_000  # rows of the store
  d: int = 768  # values per row
  rounds: int = 3  # interleaved rounds
  dir: str = (
    ""  # folder on the disk to measure; that of temporary files if empty
  )
  write: str = ""  # JSON file to write the results to

  def __post_init__(self):
    checks.at_least(self, 1, "rows", "d", "rounds")


class Repeated:
  """A row source that gives one block again and again; a `rows.RowSource`.

  Args:
    block: its rows.
    count: rows in all.
  """

  files: Mapping[str, bytes] = {}
  group = None

  def __init__(self, block: np.ndarray, count: int):
    self.block, self._count = block, count
    self.about = {"rows": count}
    d = block.shape[1]
    self.columns = {"x": Column(dtype="bfloat16", shape=(d,), axes=("d",))}

  def prepare(self, recorded: Any) -> None:
    """Nothing is measured."""

  def count(self, most: int) -> int:
    """The number of rows."""
    return min(self._count, most)

  def blocks(
    self, spans: Sequence[rows.Span], resume: rows.Resume | None = None
  ) -> Iterator[rows.Block]:
    """Yields the block, or a part of it, as often as spans have room."""
    for number, span in enumerate(spans):
      for start in range(span.start, span.stop, BLOCK):
        stop = min(start + BLOCK, span.stop)
        values = {"x": self.block[: stop - start]}
        yield rows.Block(number, values, rows.Resume({}, stop))


def to_store(source: Repeated, count: int, path: pathlib.Path) -> float:
  """Writes a store; returns the seconds."""
  meta = fill.describe(
    source,
    rows=count,
    split="train",
    shuffle_seed=0,
    bucket_rows=create.BUCKET_ROWS,
    shard_rows=create.SHARD_ROWS,
    chunk_rows=create.CHUNK_ROWS,
  )
  began = time.perf_counter()
  fill.fill_shares([fill.Job(source, path, meta)])
  return time.perf_counter() - began


def to_file(block: np.ndarray, count: int, path: pathlib.Path) -> float:
  """Writes one file; returns the seconds."""
  flat = block.view(np.uint8)
  began = time.perf_counter()
  with path.open("wb", buffering=0) as file:
    for start in range(0, count, BLOCK):
      file.write(flat[: min(BLOCK, count - start)].data)
    os.fsync(file.fileno())
  return time.perf_counter() - began


def main(chosen: Config) -> int:
  rng = np.random.default_rng(0)
  block = rng.standard_normal((BLOCK, chosen.d), np.float32)
  block = block.astype(ml_dtypes.bfloat16)
  source = Repeated(block, chosen.rows)
  size = chosen.rows * chosen.d * 2
  seconds: dict[str, list[float]] = {"store": [], "raw": [], "read": []}
  for _ in range(chosen.rounds):
    folder = pathlib.Path(tempfile.mkdtemp(dir=chosen.dir or None))
    try:
      seconds["raw"].append(to_file(block, chosen.rows, folder / "raw"))
      (folder / "raw").unlink()
      seconds["store"].append(to_store(source, chosen.rows, folder / "store"))
      store = reader.open(folder / "store")
      began = time.perf_counter()
      for chunk in store.chunks:
        store.read(*chunk)
      seconds["read"].append(time.perf_counter() - began)
    finally:
      shutil.rmtree(folder)
  ratio = np.array(seconds["raw"]) / np.array(seconds["store"])
  found = {
    "rows": chosen.rows,
    "d": chosen.d,
    "GB": round(size / 1e9, 2),
    **{
      f"{name} MB/s": round(size / 1e6 / float(np.median(own)))
      for name, own in seconds.items()
    },
    "store / raw": round(float(np.median(ratio)), 2),
    "of each round": ", ".join(f"{r:.2f}" for r in ratio),
  }
  print(json.dumps(found))
  if chosen.write:
    about = {
      "date": datetime.date.today().isoformat(),
      "environment": machine.environment(),
      "rounds": chosen.rounds,
      "results": [found],
    }
    pathlib.Path(chosen.write).write_text(json.dumps(about, indent=1) + "\n")
  return 0


if __name__ == "__main__":
  config.run(main, Config)
