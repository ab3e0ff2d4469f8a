"""Rows per second, memory and mixing of the loader of shuffled batches.

  python benchmarks/loader.py --folder=/large/disk \\
    --peers_python=/path/to/python --write=benchmarks/results/loader.json

Stores of bfloat16 rows with documents of 128 rows are written below the folder
and are left there. Rounds are interleaved: in each, every contender reads all
rows of a store, a million at least (peers take 24 batches), starting with
another one each time. Ratios are taken within a round; medians are given.

  chunks    the store's chunks, read in order one after the other
  windows   the store's chunks in order, 64 requested at once
  loader    shuffled batches
  sae_lens, dictionary_learning
            see loader_peers.py, of 100,000 rows of float32

Memory is the growth of the largest resident size in a process that takes every
batch; the entropy of documents is relative to that of uniformly drawn rows.
"""

import dataclasses
import datetime
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import ml_dtypes
import numpy as np

from saejax import checks, durable, machine
from saejax import config as flags
from saejax.data import loader, mixing
from saejax.data.store import create, reader

HERE = pathlib.Path(__file__).parent
DOCUMENT = 128  # rows per document
LEAST_ROWS = 1_000_000  # of a sample
WINDOW = 64  # chunks that are requested at once
PEERS = ("sae_lens", "dictionary_learning")
PEAK = """
import sys
from saejax.data import loader
from saejax.data.store import reader
store = reader.open(sys.argv[1])
list(store.read_each(store.chunks[:2]))
peak = lambda: int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
before = peak()
for batch in loader.batches(store, batch_rows=int(sys.argv[2]), seed=0):
  pass
print((peak() - before) * 1024)
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoaderConfig:
  """What is measured."""

  folder: str  # where stores are written
  # numbers of rows and widths of the stores
  rows: tuple[int, ...] = (100_000, 1_000_000, 10_000_000, 100_000, 1_000_000)
  widths: tuple[int, ...] = (64, 64, 64, 768, 768)
  batch_rows: int = 4096  # rows per batch
  rounds: int = 5  # interleaved rounds
  threads: int = 2  # of peers
  peers_python: str = ""  # Python that has the peers; empty: none
  buffer_rows: int = 32_768  # of the peers' buffers
  write: str = ""  # file for the JSON

  def __post_init__(self):
    checks.at_least(self, 1, "batch_rows", "rounds", "threads", "buffer_rows")


def store(folder: pathlib.Path, rows: int, d: int) -> reader.Store:
  """Writes a store, or opens it.

  Args:
    folder: where it is.
    rows, d: its size.
  """
  block = np.random.default_rng(0).standard_normal((65_536, d), np.float32)
  block = block.astype(ml_dtypes.bfloat16)
  x = np.concatenate([block] * -(-rows // len(block)))[:rows]
  columns = {"x": x, "doc": np.arange(rows) // DOCUMENT}
  return create.write_store(folder / f"rows{rows}-d{d}", columns)


def contenders(
  found: reader.Store, batch_rows: int
) -> dict[str, Callable[[], int]]:
  """What reads a store and returns the number of rows, by name.

  A small store is read again until it is a million rows, as in training.

  Args:
    found: the store.
    batch_rows: rows per batch.
  """

  passes = max(1, LEAST_ROWS // found.rows)

  def chunks() -> int:
    return sum(len(found.read(a, b)) for a, b in found.chunks * passes)

  def windows() -> int:
    count, every = 0, found.chunks * passes
    for i in range(0, len(every), WINDOW):
      count += sum(map(len, found.read_each(every[i : i + WINDOW])))
    return count

  def batches() -> int:
    data = loader.batches(found, batch_rows=batch_rows, seed=0, epochs=passes)
    return sum(len(batch["x"]) for batch in data)

  return {"chunks": chunks, "windows": windows, "loader": batches}


class Peer:
  """A process of loader_peers.py.

  Args:
    name: of the peer.
    config: settings.
    d: width of the rows.
  """

  def __init__(self, name: str, config: LoaderConfig, d: int):
    command = [config.peers_python, str(HERE / "loader_peers.py")]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    self._process = subprocess.Popen(
      command,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      env=environment,
    )
    self._batch_rows = config.batch_rows
    sizes = {"rows": 100_000, "d": d, "buffer_rows": config.buffer_rows}
    sizes |= {"batch_rows": config.batch_rows, "threads": config.threads}
    self.versions = self._ask({"do": "build", "name": name, **sizes})[
      "versions"
    ]

  def rate(self, steps: int = 24) -> float:
    """Returns rows per second over some batches.

    Args:
      steps: number of batches.
    """
    taken = self._ask({"do": "run", "steps": steps})["ms"] / 1000
    return self._batch_rows / taken

  def close(self) -> None:
    """Ends the process."""
    self._send({"do": "quit"})
    self._process.wait(60)

  def _ask(self, request):
    self._send(request)
    assert self._process.stdout is not None
    answer = json.loads(self._process.stdout.readline())
    if "error" in answer:
      raise RuntimeError(answer["error"])
    return answer

  def _send(self, request) -> None:
    assert self._process.stdin is not None
    self._process.stdin.write(json.dumps(request) + "\n")
    self._process.stdin.flush()


def rated(read: Callable[[], int]) -> float:
  """Returns rows per second of one reading.

  Args:
    read: reads rows and returns their number.
  """
  start = time.perf_counter()
  count = read()
  return count / (time.perf_counter() - start)


def rates(
  every: dict[str, Callable[[], float]], rounds: int
) -> dict[str, list[float]]:
  """Returns rows per second by contender, one per round.

  Args:
    every: measures a contender once, by name.
    rounds: number of rounds.
  """
  found: dict[str, list[float]] = {name: [] for name in every}
  names = list(every)
  for i in range(rounds):
    for name in names[i % len(names) :] + names[: i % len(names)]:
      found[name].append(every[name]())
  return found


def entropy(found: reader.Store, batch_rows: int) -> float:
  """Entropy of documents in batches, over that of uniformly drawn rows.

  Args:
    found: the store.
    batch_rows: rows per batch.
  """
  measure = mixing.Mixing(found, batch_rows)
  data = loader.batches(found, batch_rows=batch_rows, seed=0, columns=("x",))
  every = max(1, found.rows // batch_rows // 8)
  own = [
    measure.entropy(batch["row"])
    for i, batch in enumerate(data)
    if i % every == 0
  ]
  return statistics.mean(own) / measure.uniform


def measured(config: LoaderConfig, rows: int, d: int, peers) -> dict:
  """Measures a store.

  Args:
    config: settings.
    rows, d: size of the store.
    peers: peers of this width, by name.
  """
  found = store(pathlib.Path(config.folder), rows, d)
  own = contenders(found, config.batch_rows)
  own["loader"]()  # everything is in the page cache
  every = {name: lambda read=read: rated(read) for name, read in own.items()}
  every |= {name: peer.rate for name, peer in peers.items()}
  seen = rates(every, config.rounds)
  ratio = lambda name: statistics.median(
    ours / theirs
    for ours, theirs in zip(seen["loader"], seen[name], strict=True)
  )
  peak = subprocess.run(
    [sys.executable, "-c", PEAK, str(found.path), str(config.batch_rows)],
    check=True,
    capture_output=True,
    text=True,
  )
  row_bytes = found.columns["x"].row_bytes
  loaded = statistics.median(seen["loader"])
  result = {
    "rows": rows,
    "d": d,
    "rows per second": round(loaded),
    "MB per second": round(loaded * row_bytes / 1e6),
    **{
      f"over {name}": round(ratio(name), 2) for name in seen if name != "loader"
    },
    "memory, MB": round(int(peak.stdout) / 1e6),
    "entropy over uniform": round(entropy(found, config.batch_rows), 4),
  }
  print(json.dumps(result), flush=True)
  return result


def main(config: LoaderConfig) -> None:
  """Measures all stores and writes the results.

  Args:
    config: settings.
  """
  results, versions = [], {}
  for rows, d in zip(config.rows, config.widths, strict=True):
    # Peers hold 100,000 rows; they are compared on a store of as many.
    wanted = PEERS if config.peers_python and rows == 100_000 else ()
    peers = {name: Peer(name, config, d) for name in wanted}
    try:
      results.append(measured(config, rows, d, peers))
    finally:
      for peer in peers.values():
        versions |= peer.versions
        peer.close()
  record = {
    "machine": machine.environment(),
    "versions": versions,
    "date": datetime.date.today().isoformat(),
    "batch_rows": config.batch_rows,
    "rounds": config.rounds,
    "buffer_rows": config.buffer_rows,
    "stores": results,
  }
  if config.write:
    text = json.dumps(record, indent=1) + "\n"
    durable.write_file(pathlib.Path(config.write), text.encode())


if __name__ == "__main__":
  flags.run(main, LoaderConfig)
