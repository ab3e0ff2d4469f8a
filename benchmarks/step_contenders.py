"""The contenders of step.py: a process each, and the samples taken of them."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import IO, Any, cast

import numpy as np

from saejax import errors

HERE = pathlib.Path(__file__).parent
# Of glibc: large blocks are kept, and all in one arena; the others have no room
# for blocks beyond 64 MB, which are then mapped anew in every step.
MALLOC = {
  "MALLOC_ARENA_MAX": "1",
  "MALLOC_MMAP_THRESHOLD_": "1073741824",
  "MALLOC_TRIM_THRESHOLD_": "4294967296",
  "MALLOC_TOP_PAD_": "268435456",
}
TICK = 1 / os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 0.01


@dataclasses.dataclass(frozen=True)
class Sample:
  """Some steps in a row.

  Attributes:
    ms: milliseconds a step.
    processor_ms: processor time a step, over all threads.
    others: processor time that others used meanwhile, as a share of all cores.
    peak_bytes: most memory that the contender's process has held so far.
  """

  ms: float
  processor_ms: float
  others: float
  peak_bytes: int


class Contender:
  """A process that takes training steps on request, see `serving`.

  Args:
    name: of what it takes.
    script: `step_ours.py` or `peers.py`.
    python: the Python to run it with.
    tuned: whether under the allocator setting `MALLOC`.

  Raises:
    InputError: the Python does not run.
  """

  def __init__(self, name: str, script: str, python: str, *, tuned: bool):
    self.name = name
    environment = {k: v for k, v in os.environ.items() if k not in MALLOC}
    if tuned:
      environment |= MALLOC
    try:
      self._process = subprocess.Popen(
        [python, str(HERE / script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
      )
    except OSError as e:
      raise errors.InputError(
        "peers_python",
        python,
        f"must be a Python that runs ({e.strerror})",
        "name one, or none",
      ) from e
    self._asking = cast(IO[str], self._process.stdin)
    self._answers = cast(IO[str], self._process.stdout)
    self.steps = 1

  def build(self, seconds: float, **request: Any) -> dict[str, str]:
    """Prepares the step, and chooses how many make a sample by taking three.

    Args:
      seconds: least length of a sample; 0 for a sample of one step.
      **request: see `serving`.

    Returns:
      Versions in use.

    Raises:
      RuntimeError: it cannot be built or does not run.
    """
    name = self.name.removesuffix("+malloc")
    versions = self._ask(do="build", name=name, **request)["versions"]
    if seconds:
      ms = min(self._ask(do="run", steps=1)["ms"] for _ in range(3))
      self.steps = max(1, round(1e3 * seconds / ms))
    return versions

  def sample(self) -> Sample:
    """Takes some steps and notes what others used of the cores meanwhile."""
    start, before = time.perf_counter(), busy_seconds()
    answer = self._ask(do="run", steps=self.steps)
    used = busy_seconds() - before - answer["processor_ms"] / 1e3
    whole = (time.perf_counter() - start) * (os.cpu_count() or 1)
    # The system counts whole ticks on each core.
    others = max(0.0, used - TICK) / whole
    spent = answer["processor_ms"] / self.steps
    return Sample(answer["ms"], spent, others, answer["peak_bytes"])

  def close(self) -> None:
    self._process.kill()
    self._process.wait(timeout=60)
    self._asking.close()
    self._answers.close()

  def _ask(self, **request: Any) -> dict[str, Any]:
    try:
      self._asking.write(json.dumps(request) + "\n")
      self._asking.flush()
      line = self._answers.readline()
    except BrokenPipeError:
      line = ""
    answer = json.loads(line) if line else {"error": "its process ended"}
    if "error" in answer:
      raise RuntimeError(answer["error"])
    return answer


def interleaved(
  made: Mapping[str, Contender], rounds: int, busy: float, tries: int
) -> dict[str, np.ndarray]:
  """Samples contenders in turn, beginning with another one in each round.

  Args:
    made: contenders by name.
    rounds: number of rounds.
    busy, tries: as for `undisturbed`.

  Returns:
    Milliseconds a step of each round, by name; a ratio is taken within a round.
  """
  order = list(made)
  ms: dict[str, list[float]] = {each: [] for each in order}
  for _ in range(rounds):
    for each in order:
      ms[each].append(undisturbed(made[each], busy, tries).ms)
    order = order[1:] + order[:1]
  return {each: np.array(own) for each, own in ms.items()}


def busy_seconds() -> float:
  """Seconds that all cores were in use since the start, by any process.

  NaN where the system does not say: then no sample counts as busy.
  """
  try:
    line = pathlib.Path("/proc/stat").read_text().splitlines()[0]
  except OSError:
    return float("nan")
  ticks = np.array(line.split()[1:9], float)
  return (
    float(ticks.sum() - ticks[3] - ticks[4]) * TICK
  )  # idle, waiting for disk


def undisturbed(contender: Contender, most: float, tries: int) -> Sample:
  """The first sample in which others used little, or the least disturbed one.

  Args:
    contender: whose steps.
    most: largest share of the cores for others.
    tries: most samples to take.
  """
  taken = []
  for _ in range(tries):
    taken.append(contender.sample())
    if not taken[-1].others > most:
      return taken[-1]
  return min(taken, key=lambda sample: sample.others)


def peers() -> tuple[str, ...]:
  """Names of the libraries and formulations of PyTorch."""
  import peers as libraries
  import torch_sparse

  return (*libraries.BUILDERS, *torch_sparse.FORMS)


def starts(config) -> list[tuple[str, str, str, bool]]:
  """Name, script, Python and allocator setting of every contender."""
  import step_ours

  names = [*step_ours.FLOORS, *config.ours]
  found = [(name, "step_ours.py", sys.executable, True) for name in names]
  python = config.peers_python or os.environ.get("SAEJAX_PEERS_PYTHON")
  if python:
    for name in config.peers or peers():
      if config.peers_malloc != "default":
        found.append((name + "+malloc", "peers.py", python, True))
      if config.peers_malloc != "tuned":
        found.append((name, "peers.py", python, False))
  return found
