"""Terminal output: lines, a status line and formatted numbers."""

import contextlib
import math
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import TextIO


def say(text: str) -> None:
  """Prints a line on standard error.

  Args:
    text: the line.
  """
  print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def busy(
  text: str, say: Callable[[str], None] = say, *, after_seconds: float = 1.0
) -> Iterator[None]:
  """Says what is under way, if the time inside becomes noticeable.

  Args:
    text: what is done inside, such as "compiling the step".
    say: called with the text, in another thread.
    after_seconds: time after which it is.
  """
  timer = threading.Timer(after_seconds, say, [text])
  timer.daemon = True  # a stopped script does not wait for it
  timer.start()
  try:
    yield
  finally:
    timer.cancel()


class Screen:
  """A stream with a status line, which is redrawn in place on a terminal.

  Output is dropped after the first error of the stream.

  Args:
    stream: the stream.

  Attributes:
    is_terminal: whether the stream is a terminal.
  """

  def __init__(self, stream: TextIO):
    self._stream: TextIO | None = stream
    self._status: str | None = None  # last line of the terminal
    try:
      self.is_terminal = stream.isatty()
    except (OSError, ValueError):
      self.is_terminal = False

  def status(self, fields: list[str]) -> None:
    """Shows the status; on a terminal it replaces the previous one.

    Args:
      fields: parts of the line; the last ones are left out if they do not fit.
    """
    if not self.is_terminal:
      self._write("  ".join(fields) + "\n")
      return
    self._status = _fit(fields, self._width() - 1)
    self._write(f"\r{self._status}\x1b[K")

  def line(self, text: str) -> None:
    """Prints a line above the status.

    Args:
      text: the line.
    """
    if self.is_terminal and self._status is not None:
      self._write(f"\r\x1b[K{text}\n{_fit([self._status], self._width() - 1)}")
    else:
      self._write(text + "\n")

  def end(self) -> None:
    """Ends the status line."""
    if self.is_terminal and self._status is not None:
      self._write("\n")
    self._status = None

  def _width(self) -> int:
    if self._stream is not None:
      with contextlib.suppress(OSError, ValueError):
        return os.get_terminal_size(self._stream.fileno()).columns or 80
    return 80

  def _write(self, text: str) -> None:
    if self._stream is None:
      return
    try:
      self._stream.write(text)
      self._stream.flush()
    except (OSError, ValueError):
      _silence(self._stream)
      self._stream = None


def _fit(fields: list[str], width: int) -> str:
  """Joins as many fields as fit the width, from the first."""
  text = fields[0]
  for field in fields[1:]:
    if len(text) + 2 + len(field) > width:
      break
    text += "  " + field
  return text[: max(width, 0)]


def _silence(stream: TextIO) -> None:
  """Redirects a broken stream to the null device, so that Python can exit."""
  with contextlib.suppress(OSError, ValueError):
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def preflight(
  *,
  rows: int,
  disk_bytes: int,
  parameters: int,
  seconds: float,
  memory_bytes: int,
  programs: int,
) -> str:
  """Formats the line before a run with its size and estimated cost.

  Args:
    rows: number of training and held-out rows.
    disk_bytes: bytes on disk.
    parameters: number of parameters of all SAEs.
    seconds: estimated time, without compiling.
    memory_bytes: bytes of memory.
    programs: most training steps to compile.

  >>> preflight(rows=300_000, disk_bytes=230_400_000, parameters=23_600_000,
  ...           seconds=400, memory_bytes=2_500_000_000, programs=3)
  'preflight: 300,000 rows, 230 MB on disk, 23.6M parameters, about 6m40s \
and compiling up to 3 programs, 2.50 GB of memory'
  """
  return (
    f"preflight: {rows:,} rows, {size(disk_bytes)} on disk,"
    f" {count(parameters)} parameters, about {duration(seconds)}"
    f" and compiling up to {programs} program{'s' * (programs != 1)},"
    f" {size(memory_bytes)} of memory"
  )


def count(n: float) -> str:
  """Formats a count with three digits: 950, 1.23k, 45.6M.

  Args:
    n: the count.

  >>> [count(n) for n in (0, 12, 999.6, 45_600, 2_000_000)]
  ['0', '12', '1.00k', '45.6k', '2.00M']
  """
  return _scaled(n, "", ["", "k", "M", "G", "T", "P"])


def size(n: float) -> str:
  """Formats bytes in powers of 1000: 512 B, 230 MB.

  Args:
    n: number of bytes.

  >>> [size(n) for n in (512, 230_400_000, 2.5e9)]
  ['512 B', '230 MB', '2.50 GB']
  """
  return _scaled(n, " ", ["B", "kB", "MB", "GB", "TB", "PB"])


def duration(seconds: float) -> str:
  """Formats seconds in the two largest units: 45s, 6m40s, 3h05m, 2d04h.

  Args:
    seconds: the time.

  >>> [duration(s) for s in (0.4, 45, 400, 11_100, 187_300)]
  ['0s', '45s', '6m40s', '3h05m', '2d04h']
  """
  if not math.isfinite(seconds):
    return "unknown"
  whole = max(round(seconds), 0)
  if whole < 60:
    return f"{whole}s"
  minutes, s = divmod(whole, 60)
  if minutes < 60:
    return f"{minutes}m{s:02}s"
  hours, m = divmod(minutes, 60)
  if hours < 24:
    return f"{hours}h{m:02}m"
  days, h = divmod(hours, 24)
  return f"{days}d{h:02}h"


def _scaled(n: float, gap: str, units: list[str]) -> str:
  if not math.isfinite(n):
    return "unknown"
  at = 0
  while abs(n) >= 999.5 and at + 1 < len(units):
    n /= 1000
    at += 1
  if at == 0:
    digits = 0
  else:
    digits = 2 if abs(n) < 9.995 else 1 if abs(n) < 99.95 else 0
  return f"{n:.{digits}f}{gap}{units[at]}"


def spent(seconds: Mapping[str, float]) -> str:
  """Formats what the time of a run was spent on, the shares in percent.

  Args:
    seconds: seconds by phase, in order.

  >>> spent({"set-up": 5.0, "train": 15.0})
  '20 s: set-up 5.0 s (25 %), train 15.0 s (75 %)'
  """
  total = sum(seconds.values())
  parts = [
    f"{name} {value:.1f} s ({100 * value / max(total, 1e-9):.0f} %)"
    for name, value in seconds.items()
  ]
  return f"{total:.0f} s: {', '.join(parts)}"
