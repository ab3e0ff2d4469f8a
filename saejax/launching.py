"""Starts the processes of a command on this machine, and watches them.

    python experiments/launch_local.py --processes=4 -- \\
      experiments/train.py --store=runs/stores/store-... ... --train.mesh=1,4,1

Each line that a process says has its number in front. Where a process is lost,
it is named, the others are stopped within twice the heartbeat timeout, and the exit
code is 75: repeat the command to resume. A signal stops all processes after the same step,
which is saved; a second one kills them.
"""

import contextlib
import dataclasses
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence

from saejax import checks, config, interrupt, terminal
from saejax.errors import InputError

LOST = 75  # exit code (EX_TEMPFAIL): a process was lost, start all again
STOPPED = 128 + signal.SIGTERM  # of processes that saved and stopped
_WAIT_SECONDS = 0.05
_DEVICES = "--xla_force_host_platform_device_count"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Settings of the launcher; the command follows after --."""

  processes: int = 2  # processes to start
  # CPU devices of each process; 0: those that JAX finds
  devices: int = 1
  # seconds of silence after which a process counts as lost
  heartbeat_timeout_seconds: int = 10

  def __post_init__(self):
    checks.at_least(self, 1, "processes", "heartbeat_timeout_seconds")
    checks.at_least(self, 0, "devices")


def main(argv: Sequence[str] | None = None) -> None:
  """The entry point: flags, --, and a script or program with its flags.

  Args:
    argv: the command line, with the program first; by default `sys.argv`.
  """
  own, command = list(sys.argv if argv is None else argv), []
  if "--" in own:
    at = own.index("--")
    own, command = own[:at], own[at + 1 :]

  def launched(settings: Config) -> int:
    if not command:
      raise InputError(
        "command", "", "must follow after --", "such as -- train.py --store=..."
      )
    return launch(command, settings)

  config.run(launched, Config, own)


def launch(command: Sequence[str], settings: Config) -> int:
  """Runs a command in several processes.

  Args:
    command: a Python script or a program, and its flags, which have
      `--distributed.*`.
    settings: how many processes.

  Returns:
    0, or the exit code of what failed first: 75 where a process was lost, 143
    where a signal stopped all.
  """
  children: list[subprocess.Popen] = []
  try:
    with _signals(children):
      port = _free_port()
      for number in range(settings.processes):
        children.append(_started(command, settings, number, port))
      pids = ", ".join(str(child.pid) for child in children)
      terminal.say(f"started {len(children)} processes: pids {pids}")
      lost: set[int] = set()
      readers = [
        threading.Thread(target=_prefixed, args=(i, child, lost), daemon=True)
        for i, child in enumerate(children)
      ]
      for reader in readers:
        reader.start()
      killed = _watched(children, 2 * settings.heartbeat_timeout_seconds)
      for reader in readers:
        reader.join(timeout=1)
      for number in sorted(lost):
        terminal.say(f"process {number} was lost, by JAX's runtime")
  finally:
    _send(children, signal.SIGKILL)
  codes = [c.returncode for i, c in enumerate(children) if i not in killed]
  return _exit_code(codes)


def _exit_code(codes: Sequence[int]) -> int:
  """The exit code of all, from those of processes that were not killed here."""
  found = {code for code in codes if code}
  if any(code < 0 for code in found):
    return LOST
  # A process that fails makes others lose it.
  others = found - {LOST, STOPPED}
  return min(others) if others else max(found, default=0)


def _free_port() -> int:
  with socket.socket() as probe:
    probe.bind(("localhost", 0))
    return probe.getsockname()[1]


def _started(
  command: Sequence[str], settings: Config, number: int, port: int
) -> subprocess.Popen:
  """One process, in a session of its own: a terminal's signals reach us only."""
  environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
  if settings.devices:
    environment["JAX_PLATFORMS"] = "cpu"
    before = environment.get("XLA_FLAGS", "").split()
    kept = [flag for flag in before if not flag.startswith(_DEVICES)]
    forced = f"{_DEVICES}={settings.devices}"
    environment["XLA_FLAGS"] = " ".join([*kept, forced])
  python = [sys.executable] if command[0].endswith(".py") else []
  try:
    return subprocess.Popen(
      [
        *python,
        *command,
        f"--distributed.coordinator=localhost:{port}",
        f"--distributed.processes={settings.processes}",
        f"--distributed.process={number}",
        "--distributed.heartbeat_timeout_seconds="
        f"{settings.heartbeat_timeout_seconds}",
      ],
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      env=environment,
      start_new_session=True,
    )
  except OSError as error:
    raise InputError(
      "command",
      command[0],
      f"cannot be started ({error.strerror})",
      "give a script, or a program on the path",
    ) from error


def _prefixed(number: int, child: subprocess.Popen, lost: set[int]) -> None:
  """Says the lines of a process with its number.

  Args:
    number, child: the process.
    lost: the numbers that JAX's runtime names before it aborts a process are
      added, each on a line of its own; the leader is process 0.
  """
  assert child.stdout is not None
  named = False
  with child.stdout as lines:
    for line in lines:
      text = line.decode(errors="replace").rstrip()
      terminal.say(f"[{number}] {text}")
      if named and text.isdecimal():
        lost.add(int(text))
      else:
        named = "tasks are unhealthy" in text
      if "Either the leader task" in text:
        lost.add(0)


@contextlib.contextmanager
def _signals(children: Sequence[subprocess.Popen]) -> Iterator[None]:
  """Passes a signal on to the processes as SIGTERM; a second one kills them."""
  interrupt.uninstall()  # it would end this process and leave the others
  seen = []

  def handle(number: int, _) -> None:
    name = signal.Signals(number).name
    if not seen:
      text = "stopping all processes; a second signal kills them"
      terminal.say(f"{name}: {text}")
    seen.append(number)
    _send(children, signal.SIGTERM if len(seen) == 1 else signal.SIGKILL)

  before = {n: signal.signal(n, handle) for n in interrupt.SIGNALS}
  try:
    yield
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


def _send(children: Sequence[subprocess.Popen], number: int) -> None:
  for child in children:
    if child.poll() is None:
      child.send_signal(number)


def _watched(children: Sequence[subprocess.Popen], grace: float) -> set[int]:
  """Waits for all processes; returns those it killed.

  Those that are left when one has failed have some seconds to notice.

  Args:
    children: the processes.
    grace: these seconds.
  """
  ended: dict[int, int] = {}
  killed: set[int] = set()
  due = float("inf")
  while len(ended) < len(children):
    for number, child in enumerate(children):
      code = child.poll()
      if number in ended or code is None:
        continue
      ended[number] = code
      if number in killed:
        continue
      terminal.say(f"process {number} {_said(code)}")
      # One that saved and stopped is followed by the others in their own time.
      if code not in (0, STOPPED):
        due = min(due, time.monotonic() + grace)
    if time.monotonic() > due:
      killed |= set(range(len(children))) - set(ended)
      for number in killed - set(ended):
        terminal.say(f"process {number} is stopped, since another one failed")
      _send(children, signal.SIGKILL)
      due = float("inf")
    time.sleep(_WAIT_SECONDS)
  return killed


def _said(code: int) -> str:
  """How a process ended."""
  if code == -signal.SIGABRT:  # 134 in a shell
    return "was aborted, by JAX's runtime where another process is lost"
  if code < 0:
    return f"was lost: {signal.Signals(-code).name}"
  if code == LOST:
    return f"lost another process: exit code {code}"
  return "is done" if code == 0 else f"ended with exit code {code}"
