"""Handles signals that stop a script: one line, exit code 128 + signal.

SIGINT, SIGTERM and SIGHUP end a script immediately with one line, since files on
disk are always consistent and repeating the command resumes the run. A section
with unsaved work defers signals: it reads `requested`, saves and raises
`Stopped`. A second signal ends the script immediately.

A thread reads the signals from a pipe, so that they are handled while the main
thread compiles or waits. Signals that are ignored when the script starts, as with
nohup, remain ignored. Only scripts install these handlers, never library calls.
"""

import atexit
import contextlib
import os
import select
import signal
import threading
from collections.abc import Iterator
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PATIENCE_SECONDS = 2.0  # time until a deferred signal is acknowledged


class Stopped(SystemExit):
  """Raised by a section that has saved its work after a signal.

  Args:
    number: the signal.

  Attributes:
    code: 128 + the signal, the exit code.
  """

  def __init__(self, number: int):
    super().__init__(128 + number)


class _State:
  """State of the signal handlers; one instance per process."""

  def __init__(self):
    self.before: dict[int, Any] = {}  # previous handlers
    self.requested: int | None = None
    self.deferring = 0
    self.pipe: tuple[int, int] | None = None
    self.forks = False  # whether fork handlers are registered
    self.mask: Any = None  # signal mask before the current fork


_state = _State()


def requested() -> int | None:
  """Returns the signal received while signals are deferred, or None."""
  return _state.requested


def taken() -> int | None:
  """Returns the signal received while signals are deferred, and forgets it.

  For a caller that passes it on, such as to other processes.
  """
  number, _state.requested = _state.requested, None
  return number


@contextlib.contextmanager
def deferred() -> Iterator[None]:
  """Defers signals inside the context; see `requested`.

  Raises:
    Stopped: on exit, if a signal was received and not acted on.
  """
  _state.deferring += 1
  try:
    yield
  finally:
    _state.deferring -= 1
  if _state.requested is not None:
    raise Stopped(_state.requested)


@contextlib.contextmanager
def installed() -> Iterator[None]:
  """Handles signals inside the context, unless already installed."""
  if _state.pipe or not install():
    yield
    return
  try:
    yield
  finally:
    uninstall()


def install() -> bool:
  """Installs the handlers, if called in the main thread.

  A script calls it before it imports jax, so that a signal during the imports
  gives one line too.

  Returns:
    Whether this call installed the handlers.
  """
  main = threading.current_thread() is threading.main_thread()
  if _state.pipe or not main:
    return False
  reader, writer = os.pipe()
  os.set_blocking(writer, False)
  _state.pipe = reader, writer
  _state.requested = None
  signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
  for number in SIGNALS:
    if signal.getsignal(number) != signal.SIG_IGN:
      _state.before[number] = signal.signal(number, _note)
  threading.Thread(
    target=_watch, args=(reader,), name="signals", daemon=True
  ).start()
  if not _state.forks:
    _state.forks = True  # fork handlers cannot be removed
    os.register_at_fork(
      before=_hold, after_in_parent=_release, after_in_child=_forget
    )
  atexit.register(_ignore)
  return True


def _ignore() -> None:
  """Ignores signals while Python exits, when all work is finished.

  Python restores the default handlers on exit, and a signal would then give a
  finished script the exit code of an interrupted one.
  """
  for number in _state.before:
    signal.signal(number, signal.SIG_IGN)


def uninstall() -> None:
  """Restores the previous signal handlers."""
  atexit.unregister(_ignore)
  for number, handler in _state.before.items():
    signal.signal(number, handler)
  _state.before.clear()
  signal.set_wakeup_fd(-1)
  if _state.pipe:
    os.close(_state.pipe[1])  # ends the thread
  _state.pipe = _state.requested = None


def _note(number: int, _: Any) -> None:
  """Runs in the main thread, between two of its instructions."""
  _state.requested = _state.requested or number


def _hold() -> None:
  """Blocks signals during a fork, until the child has its own handlers.

  Otherwise a signal to the process group could reach the child while it writes to
  the pipe of its parent, which would count it as a second signal.
  """
  _state.mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def _release() -> None:
  signal.pthread_sigmask(signal.SIG_SETMASK, _state.mask)


def _forget() -> None:
  """Restores default handlers in a forked child, which has no thread."""
  if _state.pipe:
    signal.set_wakeup_fd(-1)
    for number in _state.before:
      signal.signal(number, signal.SIG_DFL)
    _state.before.clear()
    _state.pipe = None
  _release()


def _watch(reader: int) -> None:
  """Handles signals: ends the process, or leaves the first to `deferred`."""
  first = None
  while True:
    wait = PATIENCE_SECONDS if first else None
    if not select.select([reader], [], [], wait)[0]:
      name = signal.Signals(first).name
      _line(f"{name}: saving, then stopping; a second signal stops immediately")
      select.select([reader], [], [])
    content = os.read(reader, 1)
    if not content:
      os.close(reader)
      return
    number = content[0]
    if number not in _state.before:
      continue  # a signal with another handler
    name = signal.Signals(number).name
    if first:
      _line(f"{name}: stopped immediately; repeat the command to resume")
      os._exit(128 + number)
    if not _state.deferring:
      _line(f"{name}: stopped; repeat the command to resume")
      os._exit(128 + number)
    first = number


def _line(text: str) -> None:
  """Prints a line on standard error, in place of a terminal's status line."""
  with contextlib.suppress(OSError, ValueError):
    start = "\r\x1b[K" if os.isatty(2) else ""
    os.write(2, f"{start}{text}\n".encode())
