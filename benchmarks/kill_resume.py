"""Kills a run at random moments and asks whether anyone could tell.

  python benchmarks/kill_resume.py --kills=40
  python benchmarks/kill_resume.py --command='python experiments/ensembling.py' \\
    --args='--train.steps=50 --n=64 --sizes=1,2 --harvest.rows=8192'

Runs a small experiment once undisturbed. Then again in another folder, stopped
at random moments of each phase by each signal in turn, each time followed by
the same command; where a run ends before all kills are spent, another begins in
a fresh folder. Phases: harvest, training, removal (just after a checkpoint is
complete, when older ones are removed), report. A signal other than SIGKILL must
end the run with exit code 128 + signal and without a traceback. At each end it
compares with the undisturbed run:

  stores     every file, bit for bit; JSON without times, hosts and versions
  SAEs       every file under RUN/saes, weights bit for bit; JSON likewise
  points     points.json, arms and results.json, without times
  metrics    every record of metrics.jsonl but its timing, each step once

Prints what differs and the number of kills; exits with 1 on any difference. With
--folder, everything stays there.
"""

import contextlib
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

from saejax import checks, errors
from saejax import config as flags

VOLATILE = {"time", "times", "timing", "host", "versions", "seconds"}
VOLATILE |= {"group_seconds", "environment", "run_dir", "dir", "sum", "after"}
IGNORED, POINTS = {".lock", "made"}, ("points.json", "results.json")
WATCH_SECONDS = 0.05
SIGNALS = ("SIGKILL", "SIGINT", "SIGHUP", "SIGTERM")
PHASES = ("harvest", "training", "removal", "report")

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
  signals: tuple[str, ...] = SIGNALS  # sent in turn
  phases: tuple[str, ...] = PHASES  # in which they are sent
  seed: int = 0  # of the moments
  folder: str = ""  # keeps the runs there; empty: a temporary folder
  timeout_seconds: int = 1800  # for one run from start to end

  def __post_init__(self):
    checks.at_least(self, 1, "kills")
    for field, known in (("signals", SIGNALS), ("phases", PHASES)):
      given, rule = getattr(self, field), f"must be among {', '.join(known)}"
      if not given or not set(given) <= set(known):
        raise errors.InputError(field, given, rule, "give one or more")


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
    # A shell or nohup may have started this one with signals ignored.
    words = ["env", "--default-signal", *words, *shlex.split(config.args)]
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
    if snapshot(self.run, "report") != before["report"]:
      return "report"
    if snapshot(self.run, "training") != before["run"]:
      return "training"
    if snapshot(self.stores) != before["stores"]:
      return "harvest"
    return "start"

  def snapshots(self) -> dict[str, Any]:
    return {
      "run": snapshot(self.run, "training"),
      "report": snapshot(self.run, "report"),
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
  shown = ", ".join(f"{n:.1f} s {phase}" for phase, n in spent.items())
  print(f"undisturbed: {shown}", flush=True)
  phases = config.phases
  wanted = [phases[i % len(phases)] for i in range(config.kills)]
  wanted.sort(key=PHASES.index)
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
      share = spent.get(target, 0.02) / max(1, wanted.count(target))
      if target == "training":
        share *= 2  # steps since the last checkpoint are lost each time
      # Later runs may be faster than the undisturbed one: aim earlier then.
      name = config.signals[len(done) % len(config.signals)]
      delay = rng.uniform(0, share / 2**missed)
      phase = _kill_once(trial, target, delay, signal.Signals[name])
      ended = phase == "ended"
      missed += ended
      if not ended:
        done.append(phase)
        print(f"kill {len(done)}: {name} in {phase}", flush=True)
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
  report = began.get("report", end)
  training = min(began.get("training", report), report)
  harvest = min(began.get("harvest", training), training)
  return {
    "start": harvest - began["start"],
    "harvest": training - harvest,
    "training": report - training,
    "report": end - report,
  }


def _kill_once(
  trial: Trial, target: str, delay: float, number: signal.Signals
) -> str:
  """Starts the run, sends a signal `delay` seconds into the target phase.

  Returns:
    The phase that the signal met, or "ended" where the run was faster.
  """
  before, checkpoints = trial.snapshots(), completed(trial.run)
  process = trial.start()
  phase, due = "start", None
  started = time.monotonic()
  late = PHASES[PHASES.index(target) :]
  pause = (
    0.001 if target == "removal" else min(WATCH_SECONDS, max(delay, 0.001))
  )
  try:
    while process.poll() is None:
      if target == "removal":
        met = completed(trial.run) - checkpoints
      else:
        phase = trial.phase(before)
        met = phase in late
      if due is None and met:
        due = time.monotonic() + delay
      if due is not None and time.monotonic() >= due:
        break
      if time.monotonic() - started > trial.config.timeout_seconds:
        raise RuntimeError("the run takes too long")
      time.sleep(pause)
    else:
      trial.check(process.returncode)
      return "ended"
    phase = target if target == "removal" else trial.phase(before)
    return phase if stop(trial, process, number) else "ended"
  finally:
    kill(process)


def stop(
  trial: Trial, process: subprocess.Popen[bytes], number: signal.Signals
) -> bool:
  """Sends a signal and waits for the end; whether the signal stopped the run.

  A run that was done exits with 0 and is compared as it is. Any other exit code
  than 128 + signal, or a traceback, is an error.
  """
  if number == signal.SIGKILL:
    return True
  process.send_signal(number)
  code = process.wait(timeout=trial.config.timeout_seconds)
  text = trial.log.read_text(errors="replace")
  if code not in (0, 128 + number) or "Traceback" in text:
    raise RuntimeError(f"{number.name} gave {code}:\n{text[-2000:]}")
  return code != 0


def kill(process: subprocess.Popen[bytes]) -> None:
  """SIGKILL to the process and its children, if it runs."""
  if process.poll() is None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def snapshot(folder: pathlib.Path, phase: str = "") -> set[Any]:
  """Names, sizes and times of the files that tell that a phase goes on."""
  found = set()
  for path in files(folder):
    trained = "checkpoints" in path.parts or path.parent.name == "arms"
    trained = trained or path.name in ("metrics.jsonl", "points.json")
    if phase == "training" and not trained:
      continue
    if phase == "report" and path.stem not in ("results", "report"):
      continue
    with contextlib.suppress(FileNotFoundError):
      found.add((str(path), path.stat().st_size, path.stat().st_mtime_ns))
  return found


def completed(run: pathlib.Path) -> set[str]:
  """The complete checkpoints of a run."""
  sums = (path for path in files(run) if path.name == "sums.json")
  return {str(path) for path in sums if not path.parent.suffix}


def files(folder: pathlib.Path) -> Iterator[pathlib.Path]:
  for where, _, names in os.walk(folder):
    for name in names:
      if not IGNORED & {name, pathlib.Path(where).name}:
        yield pathlib.Path(where) / name


def compare(one: Trial, other: Trial) -> list[str]:
  """Lines for everything in which two finished trials differ."""
  lines = []
  seen = set()
  for what, where in (
    ("store", lambda trial: trial.stores),
    ("SAE", lambda trial: trial.run / "saes"),
    ("arm", lambda trial: trial.run / "arms"),
    ("points", lambda trial: trial.run),
    ("metrics", lambda trial: trial.run),
  ):
    named = {"metrics": ("metrics.jsonl",), "points": POINTS}.get(what)
    theirs, ours = (
      {
        str(path.relative_to(where(trial))): content(path, trial.base)
        for path in files(where(trial))
        if (not named or path.name in named)
        and (what != "arm" or path.parent.name == "arms")
      }
      for trial in (one, other)
    )
    seen |= {what} if theirs else set()
    lines += compare_files(what, theirs, ours)
    if what == "metrics":
      for name, records in ours.items():
        keys = [(record.get("kind"), record["step"]) for record in records]
        if len(set(keys)) < len(keys):
          lines.append(f"metrics {name}: a step is there twice")
  if "store" not in seen or not seen & {"SAE", "arm"}:
    lines.append("the undisturbed run has no store, or no SAE and no arm")
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
