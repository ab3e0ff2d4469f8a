"""Seconds of a run by what they were spent on: set-up, compiling, training, ..."""

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax

from saejax import machine, terminal

SETUP, COMPILE = "set-up", "compile"


class Shares:
  """Measures a process: each second counts once.

    with Shares() as shares:
      with shares.during("train"):
        ...
      print(shares.line())

  The time of the process before and outside of every phase is set-up. A phase
  inside another is not part of it, nor is tracing, lowering and compiling, or
  reading compiled programs from a cache, as JAX reports them.
  """

  def __init__(self):
    self._seconds: dict[str, float] = {SETUP: machine.process_seconds()}
    self._phases = [SETUP]
    self._since = time.monotonic()
    self._compiled: list[tuple[float, float]] = []  # disjoint intervals
    self._hearing = threading.Lock()  # several threads may compile

  def __enter__(self) -> "Shares":
    jax.monitoring.register_event_duration_secs_listener(self._heard)
    return self

  def __exit__(self, *exception: object) -> None:
    jax.monitoring.unregister_event_duration_listener(self._heard)

  @contextlib.contextmanager
  def during(self, phase: str) -> Iterator[None]:
    """Counts the time inside as that of a phase.

    Args:
      phase: its name; a name that was used before is continued.
    """
    self._count()
    self._seconds.setdefault(phase, 0.0)
    self._phases.append(phase)
    try:
      yield
    finally:
      self._count()
      self._phases.pop()

  def _count(self) -> None:
    """Adds the time since the last call to the phase of that time."""
    now = time.monotonic()
    self._seconds[self._phases[-1]] += now - self._since
    self._since = now

  def _heard(self, event: str, seconds: float, **_: Any) -> None:
    """Moves the time of an event of the compiler out of its phase."""
    if not event.startswith("/jax/core/compile/"):
      return
    with self._hearing:
      end = time.monotonic()
      start, before = end - seconds, 0.0
      # Tracing a function includes that of the functions inside; programs that
      # compile at the same time share it.
      while self._compiled and self._compiled[-1][1] > start:
        first, last = self._compiled.pop()
        before += last - first
        start = min(start, first)
      self._compiled.append((start, end))
      more = end - start - before
      self._seconds[COMPILE] = self._seconds.get(COMPILE, 0.0) + more
      self._seconds[self._phases[-1]] -= more

  def seconds(self) -> dict[str, float]:
    """Seconds by phase so far; their sum is the age of the process."""
    self._count()
    found = {name: max(0.0, value) for name, value in self._seconds.items()}
    return {name: round(value, 2) for name, value in found.items()}

  def line(self) -> str:
    """The shares of the time so far, as one line."""
    return terminal.spent(self.seconds())
