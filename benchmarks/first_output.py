"""Seconds until a script says something, and until it has planned its run.

  python benchmarks/first_output.py \\
    --write=benchmarks/results/first-output-cpu-2core.json

Fresh processes of `saejax`, of which standard output and error are read together;
each is stopped at the line that is waited for. The first start of each is not
counted: it fills the disk's cache. Medians over rounds:

  help        saejax train --help, to its end
  scaling     saejax scaling --preset=quickstart, to its first line and to the
              preflight's (which has the plan of the run, before anything is
              computed), in a new folder
  wrong       the same with --sae.k=0, to the end of its error
"""

import dataclasses
import datetime
import json
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time

from saejax import config as flags
from saejax import durable, machine
from saejax.errors import InputError

COMMAND = "from saejax import command; command.main()"
# Arguments, and the pattern of the line that is waited for; "" is the end.
SCRIPTS = {
  "help": (("train", "--help"), ""),
  "scaling": (("scaling", "--preset=quickstart"), r"preflight: \d"),
  "wrong": (("scaling", "--preset=quickstart", "--sae.k=0"), ""),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class FirstOutputConfig:
  """How often the scripts are started."""

  rounds: int = 5  # starts of a script
  write: str = ""  # JSON file for the figures; empty: none

  def __post_init__(self):
    if self.rounds < 1:
      raise InputError("rounds", self.rounds, "must be at least 1", "give more")


def seconds(arguments: tuple[str, ...], until: str) -> tuple[float, float]:
  """Seconds to the first line, and to the one that is waited for.

  Args:
    arguments: of the command.
    until: pattern of the line after which it is stopped; empty: its end.

  Raises:
    RuntimeError: it ended without that line, or without any.
  """
  first, lines = None, []
  with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
    start = time.perf_counter()
    process = subprocess.Popen(
      [sys.executable, "-c", COMMAND, *arguments],
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
      cwd=folder,
    )
    assert process.stdout is not None
    try:
      for line in process.stdout:
        now = time.perf_counter() - start
        first = now if first is None else first
        lines.append(line)
        if until and re.match(until, line):
          return first, now
      process.wait()
    finally:
      process.kill()
      process.wait()
      process.stdout.close()
  if first is None or until:
    raise RuntimeError(f"{arguments}: no line {until!r} in {''.join(lines)}")
  return first, time.perf_counter() - start


def main(config: FirstOutputConfig) -> None:
  points = []
  for name, (arguments, until) in SCRIPTS.items():
    seconds(arguments, until)
    found = [seconds(arguments, until) for _ in range(config.rounds)]
    first, last = (
      round(statistics.median(each), 2) for each in zip(*found, strict=True)
    )
    row = {
      "script": name,
      "command": " ".join(("saejax", *arguments)),
      "first line, s": first,
      "until": "the preflight" if until else "its end",
      "until then, s": last,
    }
    points.append(row)
    print(json.dumps(row))
  if config.write:
    result = {
      "environment": machine.environment(),
      "date": datetime.date.today().isoformat(),
      "rounds": config.rounds,
      "points": points,
    }
    text = json.dumps(result, indent=1) + "\n"
    durable.write_file(pathlib.Path(config.write), text.encode(), field="write")


if __name__ == "__main__":
  flags.run(main, FirstOutputConfig)
