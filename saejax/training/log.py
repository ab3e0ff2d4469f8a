"""Logging of a run: metric files for programs, a progress line for people.

`metrics.jsonl` has one record per line, in strict JSON:

  {"kind": "train", "step": 100, "total_steps": 1000, "tokens": 204800,
   "timing": {"time": 1.7e9, "seconds": 12.5, "tokens_per_second": 81920.0,
              "wait_share": 0.01},
   "members": {"n512-k8": {"loss": 0.21, "l0": 8.0, "dead": 0.0}},
   "after": "...", "sum": "..."}  # see `metrics_file`

`time` is in seconds since 1970, `seconds` is the run's time summed over its
resumes, `wait_share` the share of recent time spent waiting for data. Values
that JSON cannot express are the text "NaN", "Infinity" or "-Infinity"; `read`
converts them back. Everything but `timing` and the checksums is independent of
how often the run was interrupted.

The scalars of training are in `metrics.csv` too, see `metrics_csv`. All scalars
go to TensorBoard event files in `events/`, tagged `member/name` and, but for
training, `member/kind/name`.
"""

import collections
import contextlib
import errno
import math
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, TextIO

from saejax import errors, terminal
from saejax.terminal import Screen, count, duration
from saejax.training import metrics_file
from saejax.training.metrics_csv import TABLE, CsvFile
from saejax.training.metrics_file import METRICS

EVENTS = "events"

_WINDOW_SECONDS = 60.0  # over which rates are averaged
_REDRAW_SECONDS = 0.2  # between updates of a terminal's progress line
_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class Tracker(Protocol):
  """A service that scalars go to as well; any call of it may fail."""

  def scalars(
    self, step: int, now: float, tags: Mapping[str, float]
  ) -> None: ...

  def close(self) -> None: ...


class RunLog:
  """Metric files and progress of one run.

    with RunLog(folder, step=resumed_step, total_steps=1000) as log:
      for step in ...:
        with log.waiting():
          batch = next(batches)
        ...
        log.record(step, tokens, {"n512-k8": {"loss": loss, "l0": l0}})
        log.progress(step, tokens)

  `record` returns after the record is written to the system: record a step
  before its checkpoint, and no record is missing after a kill.

  Args:
    folder: the run folder; None for the progress line alone.
    step: the step that the run resumes from; records of later steps are
      removed, because the run will write them again.
    total_steps: for the percentage and the remaining time; None if unknown.
    stream: output of progress; None for standard error. If it breaks, as when
      a terminal is closed, the run continues without it.
    interval_seconds: time between progress lines if the stream is no terminal.
    label: name of the run in the progress line, where there are several.
    tracker: opens a service that scalars go to as well, or returns None. Where
      opening or using it fails, a line says so and the run continues without.

  Raises:
    InputError: the folder cannot be written to or the disk is full.
  """

  def __init__(
    self,
    folder: str | os.PathLike[str] | None,
    *,
    step: int = 0,
    total_steps: int | None = None,
    stream: TextIO | None = None,
    interval_seconds: float = 10.0,
    label: str = "",
    tracker: Callable[[], Tracker | None] = lambda: None,
  ):
    self.folder = None if folder is None else pathlib.Path(folder)
    self.total_steps = total_steps
    self._screen = Screen(stream or sys.stderr)
    self._interval, self._label = interval_seconds, label
    self._shown: dict[str, float] = {}
    self._drawn_at = -math.inf
    self._waited = 0.0
    self._saved_at: float | None = None
    self._start = time.monotonic()
    # (time, tokens, seconds waited) of the window that rates are taken over.
    self._samples: collections.deque[tuple[float, int, float]]
    self._samples = collections.deque()
    self._first: tuple[float, int] | None = None  # (time, step) of this process
    self._tracker: Tracker | None = None
    if self.folder is not None:
      self._open(self.folder, step)
    with self._optional():
      self._tracker = tracker()

  def _open(self, folder: pathlib.Path, step: int) -> None:
    from saejax.training.events import EventFile  # only where one is written

    with self._disk():
      folder.mkdir(parents=True, exist_ok=True)
      path = folder / METRICS
      kept = metrics_file.cut(path, step)
      if kept.faults:
        self.line(metrics_file.said(path, kept.faults))
      last = kept.records[-1] if kept.records else {"timing": {"seconds": 0.0}}
      self._seconds_before = last["timing"]["seconds"]
      self._after = kept.last
      self._metrics = open(path, "ab", buffering=0)  # noqa: SIM115
      self._table = CsvFile(folder / TABLE, map(_floats, kept.records))
      self._events = EventFile(folder / EVENTS, purge_step=step + 1)

  def __enter__(self) -> "RunLog":
    return self

  def __exit__(self, *exception: object) -> None:
    self.close()

  @contextlib.contextmanager
  def waiting(self) -> Iterator[None]:
    """Counts the time inside as time spent waiting for data."""
    start = time.monotonic()
    try:
      yield
    finally:
      self._waited += time.monotonic() - start

  def saved(self) -> None:
    """Records that a checkpoint was just saved."""
    self._saved_at = time.monotonic()

  def record(
    self,
    step: int,
    tokens: int,
    members: Mapping[str, Mapping[str, Any]],
    *,
    kind: str = "train",
  ) -> None:
    """Writes one record to all files.

    Args:
      step: number of completed steps; record each pair of kind and step once.
      tokens: tokens (rows) seen so far.
      members: scalars by name for each member; anything `float` takes.
      kind: the data measured on, such as "train" or "held_out".
    """
    values = {
      member: {name: float(v) for name, v in scalars.items()}
      for member, scalars in members.items()
    }
    if self.folder is not None:
      self._write(int(step), int(tokens), values, kind)
    if kind == "train":
      for name in ("loss", "l0", "dead"):
        found = [s[name] for s in values.values() if name in s]
        found = [v for v in found if math.isfinite(v)]
        if found:
          self._shown[name] = sum(found) / len(found)

  def _write(
    self,
    step: int,
    tokens: int,
    values: Mapping[str, Mapping[str, float]],
    kind: str,
  ) -> None:
    """Appends a record to all files."""
    rate, wait = self._rates()
    now = time.time()
    line = {
      "kind": kind,
      "step": step,
      "total_steps": self.total_steps,
      "tokens": tokens,
      "timing": {
        "time": round(now, 3),
        "seconds": round(self._seconds(), 3),
        "tokens_per_second": round(rate, 1),
        "wait_share": round(wait, 4),
      },
      "members": {
        member: {name: _strict(v) for name, v in scalars.items()}
        for member, scalars in values.items()
      },
    }
    middle = "" if kind == "train" else f"{kind}/"
    tags = {
      f"{member}/{middle}{name}": v
      for member, scalars in values.items()
      for name, v in scalars.items()
    }
    with self._disk():
      text, self._after = metrics_file.line(line, self._after)
      _write_all(self._metrics, text)
      self._table.add({**line, "members": values})
      self._events.scalars(step, now, tags)
    with self._optional():
      if self._tracker is not None:
        self._tracker.scalars(step, now, tags)

  def progress(self, step: int, tokens: int, *, force: bool = False) -> None:
    """Shows the run's progress, at most once per interval; cheap to call.

    Loss, L0 and dead fraction are those last recorded, averaged over members.

    Args:
      step: steps so far.
      tokens: tokens so far.
      force: whether to show it regardless of the interval.
    """
    now = time.monotonic()
    if self._first is None:
      self._first = (now, step)
    self._samples.append((now, tokens, self._waited))
    while now - self._samples[0][0] > _WINDOW_SECONDS:
      self._samples.popleft()
    pause = _REDRAW_SECONDS if self._screen.is_terminal else self._interval
    if force or now - self._drawn_at >= pause:
      self._drawn_at = now
      self._screen.status(self._fields(step, now))

  def line(self, text: str) -> None:
    """Prints a separate line, above the progress line of a terminal.

    Args:
      text: the line.
    """
    self._screen.line(f"{self._label}: {text}" if self._label else text)

  def close(self) -> None:
    """Closes the files and ends the progress line."""
    self._screen.end()
    if self.folder is not None:
      self._metrics.close()
      self._table.close()
      self._events.close()
    with self._optional():
      if self._tracker is not None:
        self._tracker.close()

  def _fields(self, step: int, now: float) -> list[str]:
    """The parts of the progress line, the most important first."""
    rate, wait = self._rates()
    total = self.total_steps
    label = f"{self._label}: " * bool(self._label)
    fields = [f"{label}step {step:,}" + (f"/{total:,}" if total else "")]
    if total:
      fields[0] += f" ({step / total:.0%})"
    fields.append(f"{count(rate)} tokens/s")
    if total and self._first and step > self._first[1]:
      pace = (now - self._first[0]) / (step - self._first[1])
      fields.append(f"ETA {duration(pace * (total - step))}")
    shown = self._shown
    if "loss" in shown:
      fields.append(f"loss {shown['loss']:.4g}")
    if "l0" in shown:
      fields.append(f"L0 {shown['l0']:.4g}")
    if "dead" in shown:
      fields.append(f"dead {shown['dead']:.1%}")
    fields.append(f"data wait {wait:.0%}")
    if self.folder is None:
      return fields
    if self._saved_at is None:
      fields.append("no checkpoint yet")
    else:
      fields.append(f"checkpoint {duration(now - self._saved_at)} ago")
    return fields

  def _rates(self) -> tuple[float, float]:
    """Tokens per second and the share of time waiting, over the window."""
    if len(self._samples) < 2:
      return 0.0, 0.0
    start, tokens, waited = self._samples[0]
    end, tokens_end, waited_end = self._samples[-1]
    seconds = max(end - start, 1e-9)
    share = (waited_end - waited) / seconds
    return (tokens_end - tokens) / seconds, min(max(share, 0.0), 1.0)

  def _seconds(self) -> float:
    return self._seconds_before + time.monotonic() - self._start

  @contextlib.contextmanager
  def _optional(self) -> Iterator[None]:
    """Drops the tracker where it fails; an invalid setting is still refused."""
    try:
      yield
    except errors.InputError:
      raise
    except Exception as error:
      self._tracker = None
      shown = " ".join(f"{type(error).__name__}: {error}".split())
      self.line(f"warning: metrics are no longer tracked ({shown[:200]})")

  @contextlib.contextmanager
  def _disk(self) -> Iterator[None]:
    try:
      yield
    except OSError as e:
      full = e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
      rule = "the disk must have room for metrics"
      raise errors.InputError(
        "run_dir",
        self.folder,
        rule if full else f"the run folder must be writable ({e.strerror})",
        "free space and repeat the same command, or choose another run_dir"
        if full
        else "choose another run_dir or change its permissions",
      ) from e


def read(
  folder: str | os.PathLike[str],
  *,
  say: Callable[[str], None] = terminal.say,
) -> list[dict[str, Any]]:
  """Reads the records of a run in order, with non-finite values as floats.

  Args:
    folder: the run folder.
    say: called with a line that names damaged or missing records; prints it on
      standard error by default.

  Raises:
    InputError: the file exists and cannot be read.
  """
  path = pathlib.Path(folder) / METRICS
  try:
    parsed = metrics_file.parse(path)
  except OSError as error:
    raise errors.InputError(
      "run_dir",
      path,
      f"must be readable ({error.strerror})",
      "make the file readable",
    ) from error
  if parsed.faults:
    say(metrics_file.said(path, parsed.faults))
  return [_floats(record) for record in parsed.records]


def _floats(record: Mapping[str, Any]) -> dict[str, Any]:
  """A record of the file with non-finite values as floats."""
  members = {
    member: {name: _NON_FINITE.get(v, v) for name, v in scalars.items()}
    for member, scalars in record["members"].items()
  }
  return {**record, "members": members}


def _strict(value: float) -> float | str:
  if math.isnan(value):
    return "NaN"
  if math.isinf(value):
    return "Infinity" if value > 0 else "-Infinity"
  return value


def _write_all(file: Any, data: bytes) -> None:
  """Writes all bytes; one unbuffered write may take only a part of them."""
  while data:
    data = data[file.write(data) :]
