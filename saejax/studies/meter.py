"""A line about the progress of a command."""

import time

from saejax import terminal


class Meter:
  """Shows what is done of a stage, about once a second.

  Args:
    screen: where.
    command: name of the command.
  """

  def __init__(self, screen: terminal.Screen, command: str):
    self._screen, self._command, self._next = screen, command, 0.0
    self._pause = 1.0 if screen.is_terminal else 10.0

  def __call__(self, stage: str, done: int, total: int) -> None:
    """Shows the status, where it is time to, or the stage is done.

    Args:
      stage: what is counted.
      done, total: number done, and of all.
    """
    now = time.monotonic()
    if now < self._next and done < total:
      return
    self._next = now + self._pause
    text = f"{self._command}: {stage} {done:,} of {total:,}"
    self._screen.status([text])
    if done >= total:
      self._screen.end()
