"""Eight SAEs on one stream beside eight runs: seconds and memory, end to end.

  python benchmarks/sweep.py --write=benchmarks/results/sweep-cpu-2core.json

Both train the same SAEs on the same store; each process is fresh, and importing,
compiling, reading, training and the evaluation of every SAE count:

  sweep    one process: `saejax.fit_grid`
  alone    one process after the other: `saejax.fit` for each SAE

Members differ in their seeds, in k and seed, in the learning rate and seed, or in
the coefficient of a ReLU SAE and seed (`--kinds`). `--members=stacked` vmaps them
where `auto` would take them in turn, as on a CPU. Programs are compiled anew in
every process; with `--cache` the processes of a contender share a folder of
compiled programs that is empty at first, as runs of one user do.

"peak_mb" is the largest memory of a process, and on a GPU that of the device.
"difference" is the largest difference of an FVU between the two. The ratio is of
seconds, "processor" one of processor seconds; rounds are interleaved, ratios are
taken within a round, and medians are given.
"""

import dataclasses
import datetime
import itertools
import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np

from saejax import checks, compile_cache, config, durable, machine
from saejax.data.store import create
from saejax.errors import InputError

ROOT = pathlib.Path(__file__).resolve().parents[1]
KINDS: dict[str, dict[str, Any]] = {
  "seeds": {"recipe": "topk", "k": [16], "seeds": 8},
  "k": {"recipe": "topk", "k": [8, 16, 32, 64], "seeds": 2},
  "rates": {
    "recipe": "topk",
    "k": [16],
    "learning_rate": [5e-4, 1e-3, 2e-3, 4e-3],
    "seeds": 2,
  },
  "coefficients": {
    "recipe": "relu_l1",
    "coefficient": [0.01, 0.02, 0.05, 0.1],
    "seeds": 2,
  },
}
CHILD = """
import json, sys
import jax, saejax
job = json.loads(sys.argv[1])
train, held_out = (saejax.open_store(job.pop(n)) for n in ("train", "held_out"))
sweep, recipe = job.pop("sweep"), job.pop("recipe")
call = saejax.fit_grid if sweep else saejax.fit
made = call(train, recipe, held_out=held_out, progress=False, **job)
fvu = [one.metrics.fvu for one in made] if sweep else [made[1].fvu]
status = open("/proc/self/status").read()
device = jax.devices()[0].memory_stats() or {}
print(json.dumps({
  "fvu": fvu,
  "peak_mb": int(status.split("VmHWM:")[1].split()[0]) / 1024,
  "device_mb": device.get("peak_bytes_in_use", 0) / 2**20,
}))
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """What is measured, and how often."""

  kinds: tuple[str, ...] = tuple(KINDS)  # what members differ in
  rows: int = 262_144  # of the store
  d: int = 384  # width
  n: int = 2048  # latents
  batch_rows: int = 2048  # rows per step
  steps: int = 500  # of every SAE
  members: str = "auto"  # how the members of a sweep are stepped
  cache: bool = False  # processes of a contender share compiled programs
  rounds: int = 3  # interleaved rounds
  write: str = ""  # JSON file to write the results to

  def __post_init__(self):
    checks.at_least(self, 1, "rows", "d", "n", "batch_rows", "steps", "rounds")
    for kind in self.kinds:
      if kind not in KINDS:
        rule = f"must be among {', '.join(KINDS)}"
        raise InputError("kinds", kind, rule, "choose from these")


def stores(chosen: Config, folder: pathlib.Path) -> dict[str, str]:
  """Writes rows to train on and held-out rows: sparse sums and noise.

  Args:
    chosen: their number and width.
    folder: where to.
  """
  rng = np.random.default_rng(0)
  W = rng.normal(size=(4 * chosen.d, chosen.d)).astype(np.float32)
  W /= np.linalg.norm(W, axis=1, keepdims=True)

  def rows(count: int) -> np.ndarray:
    x = 0.1 * rng.standard_normal((count, chosen.d), np.float32)
    for _ in range(12):
      which = rng.integers(0, len(W), count)
      x += W[which] * rng.uniform(0.5, 1.5, (count, 1)).astype(np.float32)
    return x

  create.write_store(folder / "train", {"x": rows(chosen.rows)})
  held_out = {"x": rows(8192)}
  create.write_store(folder / "held_out", held_out, split="held_out")
  return {name: str(folder / name) for name in ("train", "held_out")}


def jobs(chosen: Config, kind: str, name: str) -> list[dict[str, Any]]:
  """The call of each process of a contender.

  Args:
    chosen: the settings.
    kind: one of `KINDS`.
    name: "sweep" or "alone".
  """
  given = dict(KINDS[kind])
  common = {
    "n": chosen.n,
    "steps": chosen.steps,
    "batch_rows": chosen.batch_rows,
  }
  if name == "sweep":
    return [{**common, **given, "members": chosen.members, "sweep": True}]
  seeds = given.pop("seeds")
  lists = {name: v for name, v in given.items() if isinstance(v, list)}
  return [
    {**common, **given, **dict(zip(lists, values, strict=True)), "seed": seed}
    | {"sweep": False}
    for values in itertools.product(*lists.values())
    for seed in range(seeds)
  ]


def sample(
  chosen: Config, kind: str, name: str, where: dict[str, str]
) -> dict[str, Any]:
  """Runs all processes of a contender.

  Args:
    chosen: the settings.
    kind: one of `KINDS`.
    name: "sweep" or "alone".
    where: the stores.

  Returns:
    seconds, processor_seconds, peak_mb, device_mb, and the FVU of every SAE.
  """
  with tempfile.TemporaryDirectory() as folder:
    cache = folder if chosen.cache else compile_cache.OFF
    environment = {
      **os.environ,
      "PYTHONPATH": str(ROOT),
      compile_cache.VARIABLE: cache,
    }
    found = []
    before, began = _processor_seconds(), time.monotonic()
    for job in jobs(chosen, kind, name):
      done = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps({**where, **job})],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
      )
      if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
      found.append(json.loads(done.stdout.splitlines()[-1]))
    seconds = time.monotonic() - began
  return {
    "seconds": seconds,
    "processor_seconds": _processor_seconds() - before,
    "peak_mb": max(one["peak_mb"] for one in found),
    "device_mb": max(one["device_mb"] for one in found),
    "fvu": [fvu for one in found for fvu in one["fvu"]],
  }


def _processor_seconds() -> float:
  """Of all processes that were waited for."""
  used = resource.getrusage(resource.RUSAGE_CHILDREN)
  return used.ru_utime + used.ru_stime


def summary(
  kind: str, rounds: list[dict[str, dict[str, Any]]]
) -> list[dict[str, Any]]:
  """A row for each contender, with medians over rounds.

  Args:
    kind: one of `KINDS`.
    rounds: samples by contender.
  """
  median = lambda of: float(np.median([of(one) for one in rounds]))
  ratio = lambda key: median(lambda r: r["alone"][key] / r["sweep"][key])
  last = rounds[-1]
  apart = np.abs(np.subtract(last["alone"]["fvu"], last["sweep"]["fvu"])).max()
  made = []
  for name in ("alone", "sweep"):
    row: dict[str, Any] = {"members": kind, "contender": name}
    for key in ("seconds", "processor_seconds", "peak_mb", "device_mb"):
      row[key] = median(lambda r, n=name, k=key: r[n][k])
    if not row["device_mb"]:
      row["device_mb"] = None
    if name == "sweep":
      row["ratio"], row["processor"] = (
        ratio("seconds"),
        ratio("processor_seconds"),
      )
      row["difference"] = float(apart)
    made.append(row)
  return made


def main(chosen: Config) -> None:
  result: dict[str, Any] = {
    "date": datetime.date.today().isoformat(),
    "environment": machine.environment(),
    "config": dataclasses.asdict(chosen),
    "contenders": [],
  }
  with tempfile.TemporaryDirectory() as folder:
    where = stores(chosen, pathlib.Path(folder))
    for kind in chosen.kinds:
      rounds = []
      for number in range(chosen.rounds):
        order = ("alone", "sweep") if number % 2 else ("sweep", "alone")
        rounds.append({n: sample(chosen, kind, n, where) for n in order})
        shown = {n: round(one["seconds"], 1) for n, one in rounds[-1].items()}
        print(kind, number, shown, flush=True)
      result["contenders"] += summary(kind, rounds)
      for row in result["contenders"][-2:]:
        print(row, flush=True)
      if chosen.write:
        content = json.dumps(result, indent=1) + "\n"
        durable.write_file(chosen.write, content.encode(), field="write")


if __name__ == "__main__":
  config.run(main, Config)
