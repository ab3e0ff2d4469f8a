"""Error for rows and error for seconds: ours and other libraries' TopK SAEs.

  python benchmarks/outcome.py --rows=train.npy --held_out=held.npy \
    --site="MiniLM layer 3" --peers_python=/path/to/python --write=FILE.json

The same rows, in the same order, through `saejax.fit` at its defaults and at
multiples of its default rate, and through dictionary_learning, SAELens and
sparsify at their defaults and at three rates and two batch sizes. Every run is
a process of its own, one at a time, and compiles anew; FVU is computed here from
each library's reconstructions of the held-out rows. Rows are centred and scaled
once, for all, so that the mean square of a coordinate is 1: the scale at which the
peers' clipping and rates are meant. Equal seconds: ours again with more passes over
the rows, and of these the best that took no longer than the peer's best run.

What has been run is kept in --write and not run again, so that the benchmark
can be cut and given again; settings beyond the first seed are the best ones.
"""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np
import step_contenders

from saejax import compile_cache, durable, machine
from saejax import config as flags
from saejax.errors import InputError
from saejax.training.config import TrainConfig

PEERS = ("dictionary_learning", "sae_lens", "sparsify")
OURS = "saejax"
RATES = (0.5, 1.0, 2.0)  # times a library's base rate
# At n = 1,024; scaled by n^-1/2 as each library scales its default. Adam's for
# two, the third's default optimizer moves by signs.
BASE = {"dictionary_learning": 4e-3, "sae_lens": 4e-3, "sparsify": 2e-2}
BATCHES = (2048, 512)
PASSES = (2, 4)  # of ours, beside one


@dataclasses.dataclass(frozen=True, kw_only=True)
class OutcomeConfig:
  """What is compared."""

  rows: str  # .npy with the training rows [rows, d], in the order of training
  held_out: str  # .npy with held-out rows
  site: str  # name of the rows, for the table
  write: str  # JSON of results, which is added to
  n: tuple[int, ...] = (1024, 4096)
  k: int = 16
  seeds: int = 3
  threads: int = 2  # of each library
  peers_python: str = ""  # Python that has the peers; empty: ours alone

  def __post_init__(self):
    for name in ("rows", "held_out"):
      if not pathlib.Path(getattr(self, name)).is_file():
        rule = "must be a file of rows"
        raise InputError(name, getattr(self, name), rule, "np.save them")


class Results:
  """Runs by their settings, in a file."""

  def __init__(self, path: str):
    self.path = pathlib.Path(path)
    text = self.path.read_text() if self.path.exists() else '{"runs": []}'
    self.runs: list[dict[str, Any]] = json.loads(text)["runs"]

  def find(self, setting: dict[str, Any]) -> dict[str, Any] | None:
    """The run of a setting, if it is there."""
    for run in self.runs:
      if setting.items() <= run.items():
        return run
    return None

  def add(self, run: dict[str, Any]) -> None:
    """Adds a run and writes the file."""
    self.runs.append(run)
    about = {
      "machine": machine.environment(),
      "malloc": step_contenders.MALLOC,
      "date": time.strftime("%Y-%m-%d"),
    }
    text = json.dumps({**about, "runs": self.runs}, indent=1) + "\n"
    durable.write_file(self.path, text.encode())


def settings(n: int, k: int, peers: tuple[str, ...]) -> list[dict[str, Any]]:
  """The runs of one seed: ours, then each peer's, its defaults first."""
  same = {"n": n, "k": k}
  ours = {"library": OURS, "batch_rows": None}
  base = TrainConfig().rate(n)
  made = [{**ours, "rate": None, "passes": p} for p in (1, *PASSES)]
  made += [{**ours, "rate": t * base, "passes": 1} for t in RATES if t != 1]
  for peer in peers:
    rate = BASE.get(peer, 4e-3) * (1024 / n) ** 0.5
    its = {"library": peer, "passes": 1}
    made.append({**its, "batch_rows": BATCHES[0], "rate": None})
    made += [
      {**its, "batch_rows": rows, "rate": t * rate}
      for rows in BATCHES
      for t in RATES
    ]
  return [{**same, **setting} for setting in made]


def trained(
  config: OutcomeConfig, setting: dict[str, Any], seed: int, folder: str
) -> dict[str, Any]:
  """Trains one SAE in a process of its own.

  Args:
    config: the comparison.
    setting: library, n, k, batch_rows, rate, passes.
    seed: of the weights.
    folder: with the rows in the common frame; for the reconstructions too.

  Returns:
    The setting with seed, seconds, dead and fvu; or with error.
  """
  ours = setting["library"] == OURS
  script = "outcome_ours.py" if ours else "outcome_peers.py"
  out = f"{folder}/out.npy"
  request = {
    **setting,
    "peer": setting["library"],
    "seed": seed,
    "threads": config.threads,
    "train": f"{folder}/train.npy",
    "held_out": f"{folder}/held_out.npy",
    "out": out,
  }
  result = subprocess.run(
    [
      sys.executable if ours else config.peers_python,
      str(pathlib.Path(__file__).parent / script),
    ],
    input=json.dumps(request) + "\n",
    capture_output=True,
    text=True,
    env=os.environ | step_contenders.MALLOC | {compile_cache.VARIABLE: "off"},
    check=False,
  )
  lines = result.stdout.splitlines()
  why = result.stderr.strip().splitlines()[-1:]
  answer = json.loads(lines[-1]) if lines else {"error": "".join(why)}
  found = {"site": config.site, **setting, "seed": seed, **answer}
  if "error" not in answer:
    x, y = np.load(f"{folder}/held_out.npy"), np.load(out)
    found["fvu"] = float(np.sum((x - y) ** 2) / np.sum((x - x.mean(0)) ** 2))
  return found


def prepare(config: OutcomeConfig, folder: str) -> None:
  """Writes rows centred and scaled so that a coordinate's mean square is 1."""
  x = np.load(config.rows).astype(np.float32)
  held = np.load(config.held_out).astype(np.float32)
  mean = x.mean(0)
  scale = np.sqrt(np.mean((x - mean) ** 2))
  np.save(f"{folder}/train.npy", (x - mean) / scale)
  np.save(f"{folder}/held_out.npy", (held - mean) / scale)


def best(runs: list[dict[str, Any]]) -> dict[str, Any] | None:
  """The run of least error."""
  finished = [run for run in runs if "fvu" in run]
  return min(finished, key=lambda run: run["fvu"], default=None)


def summary(runs: list[dict[str, Any]], site: str, n: int) -> dict[str, Any]:
  """Ours at its defaults against the best peer, by rows and by seconds.

  Args:
    runs: all results.
    site: of the rows.
    n: latents.

  Returns:
    Means over seeds: fvu, dead and seconds of ours and of the best peer, the
    ratio of errors for equal rows (`rows`) and for equal seconds (`seconds`).
  """
  here = [run for run in runs if (run["site"], run["n"]) == (site, n)]
  mean = lambda run, key: float(
    np.mean([r[key] for r in here if same(r, run) and key in r])
  )
  peer = best([r for r in here if r["library"] != OURS and r["seed"] == 0])
  ours = [r for r in here if r["library"] == OURS and r["seed"] == 0]
  default = [r for r in ours if r["rate"] is None]
  once = next((r for r in default if r["passes"] == 1), None)
  if peer is None or once is None:
    return {}
  keys = ("fvu", "dead", "seconds")
  found = {
    "ours": {key: mean(once, key) for key in keys},
    "peer": {"library": peer["library"], "rate": peer["rate"]}
    | {"batch_rows": peer["batch_rows"]}
    | {key: mean(peer, key) for key in keys},
  }
  in_time = [r for r in default if mean(r, "seconds") <= mean(peer, "seconds")]
  fvu = mean(peer, "fvu")
  found["rows"] = mean(once, "fvu") / fvu
  if in_time:
    found["seconds"] = min(mean(r, "fvu") for r in in_time) / fvu
  return found


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
  """Whether two runs differ in nothing but the seed."""
  keys = ("site", "library", "n", "k", "batch_rows", "rate", "passes")
  return all(one[key] == other[key] for key in keys)


def show(runs: list[dict[str, Any]], config: OutcomeConfig) -> None:
  """Prints all runs of the site, then ours against the best peer."""
  for run in runs:
    if run["site"] != config.site:
      continue
    rate = "default" if run["rate"] is None else f"{run['rate']:.2g}"
    start = (
      f"{run['library']:20} n {run['n']:5} seed {run['seed']} "
      f"{run['batch_rows'] or 'default':>7} rows, rate {rate:8} "
      f"passes {run['passes']}"
    )
    if "fvu" in run:
      end = f"FVU {run['fvu']:.4f}  dead {run['dead']:6.1%} "
      print(f"{start}  {end} {run['seconds']:6.1f} s")
    else:
      print(f"{start}  did not run: {run['error']}")
  for n in config.n:
    print(f"n {n}:", json.dumps(summary(runs, config.site, n)))


def main(config: OutcomeConfig) -> None:
  peers = PEERS if config.peers_python else ()
  results = Results(config.write)
  with tempfile.TemporaryDirectory() as folder:
    prepare(config, folder)
    for n in config.n:
      todo = settings(n, config.k, peers)
      for seed in range(config.seeds):
        for setting in todo:
          key = {"site": config.site, **setting, "seed": seed}
          if results.find(key) is None:
            results.add(trained(config, setting, seed, folder))
            show(results.runs[-1:], dataclasses.replace(config, n=()))
        if seed == 0:  # of each library, the defaults and the best
          todo = chosen(results.runs, todo, config.site)
  show(results.runs, config)


def chosen(
  runs: list[dict[str, Any]], todo: list[dict[str, Any]], site: str
) -> list[dict[str, Any]]:
  """Settings worth more seeds: ours, each peer's default and its best."""
  kept = []
  for library in dict.fromkeys(setting["library"] for setting in todo):
    its = [setting for setting in todo if setting["library"] == library]
    finished = [
      run
      for run in runs
      for setting in its
      if run["seed"] == 0 and {"site": site, **setting}.items() <= run.items()
    ]
    top = best(finished)
    for setting in its:
      is_best = top is not None and setting.items() <= top.items()
      if library == OURS or setting["rate"] is None or is_best:
        kept.append(setting)
  return kept


if __name__ == "__main__":
  flags.run(main, OutcomeConfig)
