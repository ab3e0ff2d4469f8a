"""Stops four processes in training, and lets two others finish the run.

  python benchmarks/elastic.py --write=benchmarks/results/elastic-cpu-2core.json

Four processes of one CPU device each train on a mesh of 1, 2, 2 devices. After their
first checkpoint one of them is killed, or hangs (as does a host without network), or
all get SIGTERM by their launcher. The same command then finishes the run with two processes of two devices, and the
weights are compared with those of an undisturbed run in one process of four devices.

Seconds are from the signal until the last of the other processes has ended by itself,
which must be within twice the heartbeat timeout; the launcher says which processes it
had to kill, as it does the one that hangs. Exits with 1 where weights differ or the
time is over.
"""

import dataclasses
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np
from safetensors import numpy as safetensors

from saejax import checks, machine
from saejax import config as flags
from saejax.data.store import create

EXPERIMENTS = pathlib.Path(__file__).resolve().parents[1] / "experiments"
DEVICES = "--xla_force_host_platform_device_count"
# Signal, whether to all by the launcher, and the exit code.
CASES = {
  "one process is killed": (signal.SIGKILL, False, 75),
  "one process hangs": (signal.SIGSTOP, False, 75),
  "all get SIGTERM": (signal.SIGTERM, True, 143),
}
# What the launcher says of a process that it did not kill.
ENDED = re.compile(r"process (\d) (was lost: |was aborted|lost|ended|is done)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """What is trained, and what a lost process takes."""

  steps: int = 400  # steps of each run
  checkpoint_steps: int = 50  # steps between checkpoints
  heartbeat_timeout_seconds: int = 10  # of the processes
  write: str = ""  # file for the results; empty: they are printed

  def __post_init__(self):
    checks.at_least(self, 1, "checkpoint_steps", "heartbeat_timeout_seconds")
    checks.at_least(self, 4 * self.checkpoint_steps, "steps")


class Runs:
  """Starts training in folders beside two small stores."""

  def __init__(self, config: Config, folder: pathlib.Path):
    self.config, self.folder = config, folder
    draw = np.random.default_rng(0)
    sizes = {"bucket_rows": 512, "shard_rows": 256, "chunk_rows": 64}
    for name, rows in (("train", 1_500), ("held_out", 300)):
      x = draw.laplace(size=(rows, 8)).astype(np.float32)
      create.write_store(folder / name, {"x": x}, **sizes)

  def start(self, run: str, processes: int, devices: int) -> subprocess.Popen:
    """Starts a run; several processes by the launcher."""
    config, script = self.config, [str(EXPERIMENTS / "train.py")]
    if processes > 1:
      script = [
        str(EXPERIMENTS / "launch_local.py"),
        f"--processes={processes}",
        f"--devices={devices}",
        f"--heartbeat_timeout_seconds={config.heartbeat_timeout_seconds}",
        *("--", *script),
      ]
    return subprocess.Popen(
      [
        sys.executable,
        *script,
        f"--store={self.folder / 'train'}",
        f"--held_out={self.folder / 'held_out'}",
        f"--run_dir={self.folder / run}",
        *("--sae.n=16", "--sae.k=2", "--train.mesh=1,2,2"),
        *("--train.batch_rows=32", f"--train.steps={config.steps}"),
        f"--train.checkpoint_steps={config.checkpoint_steps}",
        f"--train.log_steps={config.checkpoint_steps}",
      ],
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
      env={
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{DEVICES}={devices}",
        "JAX_COMPILATION_CACHE_DIR": str(self.folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
      },
    )

  def finish(self, run: str, processes: int, devices: int) -> str:
    """Runs to the end; returns what was said."""
    with self.start(run, processes, devices) as started:
      said = started.communicate()[0]
    if started.returncode:
      raise RuntimeError(f"exit code {started.returncode}:\n{said}")
    return said

  def stop(self, run: str, number: int, to_all: bool) -> dict[str, Any]:
    """Stops four processes after their first checkpoint, by a signal."""
    saved = self.folder / run / "n16" / "checkpoints"
    with self.start(run, 4, 1) as started:
      assert started.stdout is not None
      line = started.stdout.readline()
      pids = [int(pid) for pid in re.findall(r"\d+", line)[1:]]
      while len(list(saved.glob("*/sums*.json"))) < 4:
        if started.poll() is not None:
          raise RuntimeError(started.stdout.read())
        time.sleep(0.02)
      os.kill(started.pid if to_all else pids[1], number)
      began, ended = time.monotonic(), {}
      said = ""
      for line in started.stdout:
        said += line
        if found := ENDED.match(line):
          ended[found[1]] = time.monotonic() - began
    if not to_all:
      ended.pop("1", None)
    limit = 2 * self.config.heartbeat_timeout_seconds
    return {
      "exit code": started.returncode,
      "ended by themselves": len(ended),
      "seconds": round(max(ended.values()), 2),
      "limit, s": None if to_all else limit,
      "said": re.findall(r"^process 1 was lost.*$", said, re.M),
    }

  def weights(self, run: str) -> dict[str, np.ndarray]:
    (path,) = (self.folder / run / "saes").glob("*/sae.safetensors")
    return safetensors.load_file(path)


def main(config: Config) -> int:
  with tempfile.TemporaryDirectory() as temporary:
    runs = Runs(config, pathlib.Path(temporary))
    runs.finish("alone", 1, 4)
    cases = [_case(runs, name) for name in CASES]
  found = {
    "environment": machine.environment(),
    "date": time.strftime("%Y-%m-%d"),
    "cases": cases,
  }
  print(json.dumps(cases, indent=1))
  if config.write:
    pathlib.Path(config.write).write_text(json.dumps(found, indent=1) + "\n")
  return int(not all(map(_is_right, cases)))


def _case(runs: Runs, name: str) -> dict[str, Any]:
  run = name.replace(" ", "-")
  stopped = runs.stop(run, *CASES[name][:2])
  said = runs.finish(run, 2, 2)
  (step,) = re.findall(r"resuming from step ([\d,]+)", said)
  wanted, found = runs.weights("alone"), runs.weights(run)
  return {
    "case": name,
    **stopped,
    "resumed from step": int(step.replace(",", "")),
    "of": runs.config.steps,
    "largest difference of weights": max(
      float(np.abs(found[key] - wanted[key]).max()) for key in wanted
    ),
    "equal bits": all(
      found[key].tobytes() == wanted[key].tobytes() for key in wanted
    ),
  }


def _is_right(case: dict[str, Any]) -> bool:
  in_time = case["limit, s"] is None or case["seconds"] < case["limit, s"]
  _, to_all, code = CASES[case["case"]]
  others = case["ended by themselves"] == (4 if to_all else 3)
  return others and in_time and case["equal bits"] and case["exit code"] == code


if __name__ == "__main__":
  flags.run(main, Config)
