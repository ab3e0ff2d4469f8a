"""Seconds that the first lines of a user take in a fresh process.

  python benchmarks/startup.py --write=benchmarks/results/startup-cpu-2core.json

Each round starts a process for each program, beginning with another one each
time; the ratio to `import jax, flax` is taken within a round, and medians over
rounds are given.

  jax, flax  import jax, flax.struct, and one jitted addition
  import     import saejax
  encode     saejax.load of a saved SAE (d 384, n 3,072, k 32), one encode
  fit        saejax.fit of an array (2,000 rows, d 64, n 512), 100 steps
"""

import dataclasses
import json
import pathlib
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np

import saejax
from saejax import config as flags
from saejax import durable, machine
from saejax.errors import InputError
from saejax.sae import activations

BASE = "jax, flax"
PROGRAMS = {
  BASE: """
import jax, flax.struct
jax.jit(lambda x: x + 1)(1.0).block_until_ready()
""",
  "import": """
import saejax
""",
  "encode": """
import numpy, saejax
sae = saejax.load({folder!r})
numpy.asarray(sae.encode(numpy.ones((8, 384), numpy.float32)))
""",
  "fit": """
import numpy, saejax
x = numpy.random.default_rng(0).normal(size=(2000, 64)).astype("float32")
saejax.fit(x, n=512, k=8, steps=100, batch_rows=256, progress=False)
""",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class StartupConfig:
  """How often programs are started."""

  rounds: int = 7  # processes per program
  write: str = ""  # JSON file for the figures; empty: none

  def __post_init__(self):
    if self.rounds < 1:
      raise InputError("rounds", self.rounds, "must be at least 1", "give more")


def seconds(program: str) -> float:
  """Seconds of a fresh process that runs a program."""
  start = time.perf_counter()
  subprocess.run([sys.executable, "-c", program], check=True)
  return time.perf_counter() - start


def main(config: StartupConfig) -> None:
  times: dict[str, list[float]] = {name: [] for name in PROGRAMS}
  with tempfile.TemporaryDirectory() as folder:
    key = jax.random.key(0)
    sae = saejax.init(key, d=384, n=3072, activation=activations.TopK(32))
    saejax.save(sae, folder)
    programs = {n: p.format(folder=folder) for n, p in PROGRAMS.items()}
    for name in programs:  # files in the cache of the disk, bytecode written
      seconds(programs[name])
    for i in range(config.rounds):
      for name in np.roll([*programs], i):
        times[name].append(seconds(programs[name]))
  found = {
    name: {
      "seconds": round(float(np.median(each)), 2),
      "ratio": round(float(np.median(np.divide(each, times[BASE]))), 2),
    }
    for name, each in times.items()
  }
  for name, figures in found.items():
    print(f"{name:10} {figures['seconds']:6.2f} s  {figures['ratio']:5.2f}")
  if config.write:
    result = {
      "machine": machine.environment(),
      "rounds": config.rounds,
      **found,
    }
    text = json.dumps(result, indent=1) + "\n"
    durable.write_file(pathlib.Path(config.write), text.encode(), field="write")


if __name__ == "__main__":
  flags.run(main, StartupConfig)
