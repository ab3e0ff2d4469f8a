"""Processor seconds of small fits in fresh processes, with and without a cache.

  python benchmarks/small_fits.py --write=benchmarks/results/small-fits-cpu-2core.json

Each round starts a process for each program and case, beginning with another one
each time. Ratios are to the first case of the program within a round; medians
over rounds are given. A case whose weights differ from those of the first stops
the benchmark.

  two fits   saejax.fit of an array twice (2,000 rows, d 64, n 256, 200 steps of
             256 rows), two seeds
  one fit    saejax.fit of an array (40,000 rows, d 384, n 1,024, 156 steps of
             2,048 rows)
    off      without a compilation cache
    empty    a cache that has nothing
    full     a cache that has the programs
  stream     batches read on the host (d 64, n 256, 1,000 steps of 256 rows)
    single   one step in a call of the program
    default  as many as `steps_per_dispatch` chooses
"""

import dataclasses
import datetime
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

import numpy as np

from saejax import compile_cache, durable, machine
from saejax import config as flags
from saejax.errors import InputError

FIT = """
import hashlib, jax, numpy, saejax
x = numpy.random.default_rng(0).normal(size=({rows}, {d})).astype("float32")
total = hashlib.sha256()
for seed in range({fits}):
  sae, _ = saejax.fit(x, n={n}, k=8, steps={steps}, batch_rows={batch_rows},
                      seed=seed, progress=False)
  for leaf in jax.tree.leaves(sae):
    total.update(numpy.asarray(leaf).tobytes())
print(total.hexdigest())
"""
STREAM = """
import hashlib, io, jax, numpy
from saejax import compile_cache
from saejax.data import streams
from saejax.recipes import arguments
from saejax.training import config, fit, loop
x = numpy.random.default_rng(0).normal(size=(20000, 64)).astype("float32")
train = config.TrainConfig(steps=1000, batch_rows=256, steps_per_dispatch={at_once})
make = lambda: arguments.make("topk", d=64, n=256, arguments={{"k": 8}},
                              **train.options(1000))
rows = streams.array_batches({{"x": x}}, batch_rows=256, seed=0, epochs=13)
with compile_cache.enabled():
  (found,) = loop.train(make, [fit.member(0)], rows, config=train,
                        total_steps=1000, stream=io.StringIO())
total = hashlib.sha256()
for leaf in jax.tree.leaves(found.sae):
  total.update(numpy.asarray(leaf).tobytes())
print(total.hexdigest())
"""
TWO = {"rows": 2000, "d": 64, "n": 256, "fits": 2, "steps": 200}
ONE = {"rows": 40000, "d": 384, "n": 1024, "fits": 1, "steps": 156}
FITS = {
  "two fits": FIT.format(**TWO, batch_rows=256),
  "one fit": FIT.format(**ONE, batch_rows=2048),
}
CASES = ("off", "empty", "full")
STREAMS = {"single": 1, "default": None}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SmallFitsConfig:
  """How often programs are started."""

  rounds: int = 5  # processes per program and case
  write: str = ""  # JSON file for the figures; empty: none

  def __post_init__(self):
    if self.rounds < 1:
      raise InputError("rounds", self.rounds, "must be at least 1", "give more")


@dataclasses.dataclass(frozen=True)
class Spent:
  """What a process took.

  Attributes:
    processor: seconds of all its threads.
    wall: seconds from its start to its end.
    printed: its output.
  """

  processor: float
  wall: float
  printed: str


def spent(program: str, cache: str) -> Spent:
  """Runs a program in a fresh process.

  Args:
    program: Python source.
    cache: value of `compile_cache.VARIABLE`.
  """
  environment = {**os.environ, compile_cache.VARIABLE: cache}
  environment.pop("JAX_COMPILATION_CACHE_DIR", None)
  before, start = os.times(), time.perf_counter()
  done = subprocess.run(
    [sys.executable, "-c", program],
    env=environment,
    stdout=subprocess.PIPE,
    text=True,
    check=True,
  )
  wall, after = time.perf_counter() - start, os.times()
  processor = (
    after.children_user
    - before.children_user
    + after.children_system
    - before.children_system
  )
  return Spent(processor, wall, done.stdout)


def case(name: str, which: str, folder: pathlib.Path) -> Spent:
  """Runs a program as a case says.

  Args:
    name: name of the program.
    which: name of the case.
    folder: a folder whose part `full` is the cache that has the programs.
  """
  full = str(folder / "full")
  if name == "stream":
    return spent(STREAM.format(at_once=STREAMS[which]), full)
  if which != "empty":
    return spent(FITS[name], full if which == "full" else compile_cache.OFF)
  empty = folder / "empty"
  shutil.rmtree(empty, ignore_errors=True)
  return spent(FITS[name], str(empty))


def main(config: SmallFitsConfig) -> int:
  both = [(name, c) for name in FITS for c in CASES]
  both += [("stream", c) for c in STREAMS]
  times: dict[tuple[str, str], list[Spent]] = {pair: [] for pair in both}
  with tempfile.TemporaryDirectory() as scratch:
    folder = pathlib.Path(scratch)
    for name, c in both:
      if c not in CASES[:2]:  # fills the cache, and the cache of the disk
        case(name, c, folder)
    for i in range(config.rounds):
      for j in np.roll(np.arange(len(both)), i):
        times[both[j]].append(case(*both[j], folder))
  rows: list[dict[str, str | float]] = []
  for (name, c), each in times.items():
    first = times[next(pair for pair in both if pair[0] == name)]
    if {one.printed for one in each} != {first[0].printed}:
      print(f"{name}, {c}: other weights")
      return 1
    ratios = [
      a.processor / b.processor for a, b in zip(each, first, strict=True)
    ]
    figures = {
      "processor seconds": np.median([one.processor for one in each]),
      "wall seconds": np.median([one.wall for one in each]),
      "processor ratio": np.median(ratios),
    }
    rounded = {key: round(float(value), 2) for key, value in figures.items()}
    rows.append({"program": name, "case": c, **rounded})
    print(f"{name:9} {c:8}", *(f"{k} {v:6.2f}" for k, v in rounded.items()))
  if config.write:
    result = {
      "machine": machine.environment(),
      "date": str(datetime.date.today()),
      "rounds": config.rounds,
      "rows": rows,
    }
    text = json.dumps(result, indent=1) + "\n"
    durable.write_file(pathlib.Path(config.write), text.encode(), field="write")
  return 0


if __name__ == "__main__":
  flags.run(main, SmallFitsConfig)
