"""Handles signals that stop a script: one line, exit code 128 + signal.

SIGINT, SIGTERM and SIGHUP end a script at once with one line: files on disk are
consistent at every moment, and repeating the command resumes. A section with
unsaved work defers them: `requested` gives the signal, and the section saves,
then raises `Stopped`. A second signal ends the script at once.

A thread reads the signals from a pipe, so that they are answered while the main
thread compiles or waits. Signals that were ignored when the script started, as
under nohup, stay ignored. Only scripts install this, never library calls.
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
PATIENCE_SECONDS = 2.0  # until a deferred signal is acknowledged


class Stopped(SystemExit):
  """A signal stopped the work after it was saved.

  Attributes:
    code: 128 + the signal.
  """

  def __init__(self, number: int):
    super().__init__(128 + number)


class _State:
  """State of the signal handlers; one instance per process."""

  def __init__(self):
    self.before: dict[int, Any] = {}  # handlers that were replaced
    self.requested: int | None = None
    self.deferring = 0
    self.pipe: tuple[int, int] | None = None
    self.forks = False  # whether forks are prepared
    self.mask: Any = None  # blocked signals before a fork under way


_state = _State()


def requested() -> int | None:
  """The signal received while deferred, if any."""
  return _state.requested


@contextlib.contextmanager
def deferred() -> Iterator[None]:
  """Defers signals inside the context; see `requested`.

  Raises:
    Stopped: on leaving, if a signal came and was not acted on.
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
  """Handles signals from now on; only in the main thread.

  A script calls it before it imports jax, so that a signal during the imports
  is one line too.

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
    _state.forks = True  # such calls cannot be taken back
    os.register_at_fork(
      before=_hold, after_in_parent=_release, after_in_child=_forget
    )
  atexit.register(_ignore)
  return True


def _ignore() -> None:
  """Ignores signals while Python exits, when nothing is left to stop.

  It restores default handlers then, and a signal would give a script that is
  done the exit code of an interrupted one.
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
  """Blocks signals during a fork, until the child has handlers of its own.

  A signal to the whole group could otherwise reach the child while it still
  writes to the pipe of its parent, which would take it for a second one.
  """
  _state.mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def _release() -> None:
  signal.pthread_sigmask(signal.SIG_SETMASK, _state.mask)


def _forget() -> None:
  """Restores default handlers in a forked child, which lacks the thread."""
  if _state.pipe:
    signal.set_wakeup_fd(-1)
    for number in _state.before:
      signal.signal(number, signal.SIG_DFL)
    _state.before.clear()
    _state.pipe = None
  _release()


def _watch(reader: int) -> None:
  """Answers signals: ends the process, or leaves the first to `deferred`."""
  first = None
  while True:
    wait = PATIENCE_SECONDS if first else None
    if not select.select([reader], [], [], wait)[0]:
      name = signal.Signals(first).name
      _line(f"{name}: saving, then stopping; a second signal stops at once")
      select.select([reader], [], [])
    content = os.read(reader, 1)
    if not content:
      os.close(reader)
      return
    number = content[0]
    if number not in _state.before:
      continue  # another signal, with a handler of somebody else
    name = signal.Signals(number).name
    if first:
      _line(f"{name}: stopped at once; repeat the command to resume")
      os._exit(128 + number)
    if not _state.deferring:
      _line(f"{name}: stopped; repeat the command to resume")
      os._exit(128 + number)
    first = number


def _line(text: str) -> None:
  """A line on standard error, below the status line of a terminal."""
  with contextlib.suppress(OSError, ValueError):
    start = "\r\x1b[K" if os.isatty(2) else ""
    os.write(2, f"{start}{text}\n".encode())
