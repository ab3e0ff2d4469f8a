"""Kills a run at random moments and asks whether anyone could tell.

  python benchmarks/kill_resume.py
  python benchmarks/kill_resume.py --kills=4 --args='--sae.n=256 --sae.k=8'

Runs a small scaling experiment once undisturbed. Then again in another folder,
killed with SIGKILL at random moments, half of them while it harvests and half
while it trains, each kill followed by the same command; where a run ends before
all kills are spent, another begins in a fresh folder. At each end it compares
with the undisturbed run:

  stores     every file, bit for bit; JSON without times, hosts and versions
  SAEs       every file under RUN/saes, weights bit for bit; JSON likewise
  metrics    every record of metrics.jsonl but its timing, each step once

Prints what differs, and last the number of kills; exits with 1 on any
difference. With --folder, everything stays there to be looked at.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from saejax import config as flags
from saejax import errors

VOLATILE = {"time", "times", "timing", "host", "versions", "seconds"}
VOLATILE |= {"sum", "after"}  # of what is compared and of times
VOLATILE |= {"group_seconds", "environment", "run_dir", "dir"}
IGNORED = {".lock"}
WATCH_SECONDS = 0.05

SMALL = (
  "--harvest.rows=32768 --harvest.held_out_rows=8192 --harvest.bucket_rows=4096"
  " --harvest.shard_rows=2048 --harvest.chunk_rows=512"
  " --harvest.document_tokens=504 --sae.n=128,256,512 --sae.k=4,8,16"
  " --train.batch_rows=512 --train.checkpoint_steps=8 --train.log_steps=1"
  " --resamples=10"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class KillConfig:
  """What is killed, and how often."""

  command: str = (
    "python experiments/scaling.py"
    " --flagfile=experiments/flags/quickstart.flags"
  )  # the script; its python is this one
  args: str = SMALL  # added to the command: a small run with several buckets
  run_flag: str = "--run_dir"  # flag that names the run folder
  stores_flag: str = "--harvest.dir"  # flag that names the folder of stores
  kills: int = 10  # over harvest and training
  seed: int = 0  # of the moments
  folder: str = ""  # keeps the runs there; empty: a temporary folder
  timeout_seconds: int = 1800  # for one run from start to end

  def __post_init__(self):
    if self.kills < 1:
      raise errors.InputError(
        "kills", self.kills, "must be at least 1", "give more"
      )


class Trial:
  """One pair of run folder and store folder, started as often as needed."""

  def __init__(self, config: KillConfig, base: pathlib.Path):
    self.config = config
    self.base = base
    self.run = base / "run"
    self.stores = base / "stores"
    self.log = base / "output.txt"
    base.mkdir(parents=True)

  def start(self) -> subprocess.Popen[bytes]:
    config = self.config
    words = shlex.split(config.command)
    if words[0] in ("python", "python3"):
      words[0] = sys.executable
    words += shlex.split(config.args)
    words += [f"{config.run_flag}={self.run}"]
    words += [f"{config.stores_flag}={self.stores}"]
    with self.log.open("ab") as log:
      return subprocess.Popen(
        words,
        stdout=log,
        stderr=log,
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # its children die with it
      )

  def finish(self) -> None:
    """Runs the command to its end.

    Raises:
      RuntimeError: it failed, with the end of what it printed.
    """
    process = self.start()
    try:
      code = process.wait(timeout=self.config.timeout_seconds)
    except BaseException:
      kill(process)
      raise
    self.check(code)

  def check(self, code: int) -> None:
    if code:
      tail = self.log.read_text(errors="replace")[-2000:]
      raise RuntimeError(f"the command ended with {code}:\n{tail}")

  def phase(self, before: dict[str, Any]) -> str:
    """What the process does, by what has changed since it was started."""
    if snapshot(self.run, training=True) != before["run"]:
      return "training"
    if snapshot(self.stores) != before["stores"]:
      return "harvest"
    return "start"

  def snapshots(self) -> dict[str, Any]:
    return {
      "run": snapshot(self.run, training=True),
      "stores": snapshot(self.stores),
    }


def main(config: KillConfig) -> int:
  if config.folder:
    base = pathlib.Path(config.folder).absolute()
    if base.exists() and any(base.iterdir()):
      raise errors.InputError(
        "folder", base, "must be empty", "remove it or name another"
      )
    return _all(config, base)
  with tempfile.TemporaryDirectory() as temporary:
    return _all(config, pathlib.Path(temporary))


def _all(config: KillConfig, base: pathlib.Path) -> int:
  rng = random.Random(config.seed)
  straight = Trial(config, base / "straight")
  spent = _times(straight)
  print(
    f"undisturbed: {spent['start']:.1f} s to start, {spent['harvest']:.1f} s"
    f" harvest, {spent['training']:.1f} s training and report",
    flush=True,
  )
  wanted = ["harvest"] * ((config.kills + 1) // 2)
  wanted += ["training"] * (config.kills // 2)
  done: list[str] = []
  differences: list[str] = []
  passes = missed = 0
  while len(done) < config.kills:
    trial = Trial(config, base / f"killed-{passes}")
    passes += 1
    begun = len(done)
    ended = False
    while not ended and len(done) < config.kills:
      target = wanted[len(done)]
      share = spent[target] / max(1, wanted.count(target))
      if target == "training":
        share *= 2  # steps since the last checkpoint are lost each time
      # Later runs may be faster than the undisturbed one: aim earlier then.
      phase = _kill_once(trial, target, rng.uniform(0, share / 2**missed))
      ended = phase == "ended"
      missed += ended
      if not ended:
        done.append(phase)
        print(f"kill {len(done)}: in {phase}", flush=True)
    if not ended:
      trial.finish()
    found = compare(straight, trial)
    differences += found
    print(
      f"run {passes}: {len(done) - begun} kills, {len(found)} differences",
      flush=True,
    )
    if not config.folder and not found:
      shutil.rmtree(trial.run.parent)
    if passes > 3 * config.kills:
      raise RuntimeError("the runs end before they can be killed")
  for line in differences:
    print(f"differs: {line}")
  where = {phase: done.count(phase) for phase in dict.fromkeys(done)}
  said = ", ".join(f"{count} in {phase}" for phase, count in where.items())
  print(f"{len(differences)} differences after {len(done)} kills ({said})")
  return 1 if differences else 0


def _times(trial: Trial) -> dict[str, float]:
  """Runs undisturbed; seconds until the first store, in harvest, after it."""
  began = {"start": time.monotonic()}
  before = trial.snapshots()
  process = trial.start()
  try:
    while process.poll() is None:
      began.setdefault(trial.phase(before), time.monotonic())
      if time.monotonic() - began["start"] > trial.config.timeout_seconds:
        raise RuntimeError("the undisturbed run takes too long")
      time.sleep(WATCH_SECONDS)
  finally:
    kill(process)
  trial.check(process.returncode)
  end = time.monotonic()
  training = began.get("training", end)
  harvest = min(began.get("harvest", training), training)
  return {
    "start": harvest - began["start"],
    "harvest": training - harvest,
    "training": end - training,
  }


def _kill_once(trial: Trial, target: str, delay: float) -> str:
  """Starts the run, kills it `delay` seconds into the target phase.

  Returns:
    The phase that the kill met, or "ended" where the run was faster.
  """
  before = trial.snapshots()
  process = trial.start()
  phase, due = "start", None
  started = time.monotonic()
  try:
    while process.poll() is None:
      phase = trial.phase(before)
      if due is None and phase in (target, "training"):
        due = time.monotonic() + delay
      if due is not None and time.monotonic() >= due:
        break
      if time.monotonic() - started > trial.config.timeout_seconds:
        raise RuntimeError("the run takes too long")
      time.sleep(min(WATCH_SECONDS, max(delay, 0.001)))
    else:
      trial.check(process.returncode)
      return "ended"
    return trial.phase(before)
  finally:
    kill(process)


def kill(process: subprocess.Popen[bytes]) -> None:
  """SIGKILL to the process and its children, if it still runs."""
  if process.poll() is None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def snapshot(folder: pathlib.Path, *, training: bool = False) -> set[Any]:
  """Names, sizes and times of the files that tell that work goes on."""
  found = set()
  for path in files(folder):
    if training and not (
      path.name == "metrics.jsonl" or "checkpoints" in path.parts
    ):
      continue
    try:
      stat = path.stat()
    except FileNotFoundError:
      continue
    found.add((str(path), stat.st_size, stat.st_mtime_ns))
  return found


def files(folder: pathlib.Path) -> Iterator[pathlib.Path]:
  for where, _, names in os.walk(folder):
    for name in names:
      if name not in IGNORED:
        yield pathlib.Path(where) / name


def compare(one: Trial, other: Trial) -> list[str]:
  """Lines for everything in which two finished trials differ."""
  lines = []
  for what, where in (
    ("store", lambda trial: trial.stores),
    ("SAE", lambda trial: trial.run / "saes"),
    ("metrics", lambda trial: trial.run),
  ):
    theirs, ours = (
      {
        str(path.relative_to(where(trial))): content(path, trial.base)
        for path in files(where(trial))
        if what != "metrics" or path.name == "metrics.jsonl"
      }
      for trial in (one, other)
    )
    if not theirs:
      lines.append(f"{what}: the undisturbed run has none")
    lines += compare_files(what, theirs, ours)
    if what == "metrics":
      for name, records in ours.items():
        keys = [(record.get("kind"), record["step"]) for record in records]
        if len(set(keys)) < len(keys):
          lines.append(f"metrics {name}: a step is there twice")
  return lines


def compare_files(
  what: str, theirs: dict[str, Any], ours: dict[str, Any]
) -> list[str]:
  """Lines for files that are missing, extra or different."""
  lines = []
  for name in sorted(theirs.keys() | ours.keys()):
    if name not in ours:
      lines.append(f"{what} {name}: missing")
    elif name not in theirs:
      lines.append(f"{what} {name}: extra")
    elif theirs[name] != ours[name]:
      lines.append(f"{what} {name}: other content")
  return lines


def content(path: pathlib.Path, base: pathlib.Path) -> Any:
  """A digest, or for JSON what it says without times, hosts and `base`."""
  data = path.read_bytes()
  if path.suffix not in (".json", ".jsonl"):
    return hashlib.sha256(data).hexdigest()
  data = data.replace(str(base).encode(), b".")
  lines = [data] if path.suffix == ".json" else data.splitlines()
  return [stable(json.loads(line)) for line in lines]


def stable(value: Any) -> Any:
  if isinstance(value, dict):
    return {k: stable(v) for k, v in value.items() if k not in VOLATILE}
  if isinstance(value, list):
    return [stable(v) for v in value]
  return value


if __name__ == "__main__":
  flags.run(main, KillConfig)
