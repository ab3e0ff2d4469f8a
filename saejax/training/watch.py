"""Reads the metrics of a run: records them, and stops on what is not finite."""

import collections
import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from saejax import durable
from saejax.data import mixing
from saejax.errors import InputError
from saejax.training import sharding
from saejax.training.config import TrainConfig
from saejax.training.log import RunLog
from saejax.training.member import status
from saejax.training.sources import Feed
from saejax.training.state import failed_steps

AHEAD = 2  # dispatches under way before the host waits for the oldest
ROWS = "rows"  # kind of the records about rows
HELD_OUT = "held_out"  # kind of the records on held-out rows
EVALUATIONS = 8  # of a run, where their cadence is not given
REDONE_SHARE = 0.1  # of the steps, above which it is said

Observe = Callable[[int, Mapping[str, np.ndarray]], None]
HeldOut = Callable[[Sequence[Any]], Sequence[Mapping[str, float]]]
Provenance = Callable[[np.ndarray], Mapping[str, np.ndarray]]


class NonFiniteError(RuntimeError):
  """Training stopped because of numbers that are not finite.

  Attributes:
    step: of the batch.
    rows_ok: whether the rows of that batch were finite, and only losses not.
  """

  def __init__(self, text: str, *, step: int, rows_ok: bool):
    super().__init__(text)
    self.step, self.rows_ok = step, rows_ok


@dataclasses.dataclass
class Watch:
  """Reads metrics a little behind the device: records them, stops on NaN.

  Waiting for the oldest of a few dispatches bounds how far the host runs ahead
  and keeps every batch's row numbers until its rows are known to be finite.

  Attributes:
    group: the members.
    log: for records and lines.
    config: of the run: its cadence of records, to which the last step is added,
      and its policy on rows that are not finite.
    total_steps: of the run.
    all_frozen: whether the run goes on where no member's loss is finite.
    folder: for the report on rows that are not finite; None for none.
    provenance: where rows come from, by their numbers.
    observe: called with each step from 0 and its metrics [members] by name.
    held_out: scalars of each member on held-out rows, from all training forms.
  """

  group: Any
  log: RunLog
  config: TrainConfig
  total_steps: int
  all_frozen: bool = False
  folder: pathlib.Path | None = None
  provenance: Provenance | None = None
  observe: Observe | None = None
  held_out: HeldOut | None = None

  def __post_init__(self):
    self._pending: collections.deque[Any] = collections.deque()
    self._diverged: dict[str, int] = {}  # step, by the member's name
    # Metrics that `finish` sums up, [steps, members] of each dispatch.
    self._clipped: list[np.ndarray] = []
    self._redone: list[np.ndarray] = []
    # Entropy of documents in batches and in uniform draws; None after a warning.
    self._mixed: list[tuple[float, float]] | None = []

  def resume(self, states: Any) -> None:
    """Takes over which members had diverged before a run is resumed.

    Args:
      states: of the members, as they were saved.
    """
    for member, step in zip(
      self.group.members, failed_steps(states), strict=True
    ):
      if step >= 0:
        self._diverged[member.name] = step
        self.log.line(f"{member.name}: {status(step)}, stays frozen")

  def add(self, step: int, feed: Feed, metrics: Any) -> None:
    """Takes the metrics of a dispatch that began at a step.

    Args:
      step: first step of the dispatch, from 0.
      feed: its batches, for their row numbers.
      metrics: its metrics, as from `Group.run`.

    Raises:
      NonFiniteError: an earlier dispatch is refused, see `loop.train`.
    """
    self._pending.append((step, feed, metrics))
    while len(self._pending) > AHEAD:
      self._check(*self._pending.popleft())

  def evaluate(self, step: int, count: int, states: Any) -> None:
    """Records the members on held-out rows, where that is due.

    Args:
      step: number of completed steps.
      count: steps of the last dispatch.
      states: of the members.
    """
    every = self.config.eval_steps
    if every is None:
      every = max(1, self.total_steps // EVALUATIONS)
    if self.held_out is None or not every:
      return
    if step % every < count or step == self.total_steps:
      self.check_all()  # records are in the order of steps
      names = [member.name for member in self.group.members]
      forms = self.group.trained(sharding.whole(states))
      scalars = dict(zip(names, self.held_out(forms), strict=True))
      tokens = step * self.config.batch_rows
      self.log.record(step, tokens, scalars, kind=HELD_OUT)

  def check_all(self) -> None:
    """Reads all metrics so far.

    Raises:
      NonFiniteError: see `loop.train`.
    """
    while self._pending:
      self._check(*self._pending.popleft())

  def finish(self) -> None:
    """Reads all metrics; says which limits decided nothing, and what was redone.

    Raises:
      NonFiniteError: see `loop.train`.
    """
    self.check_all()
    self._check_mixing(least=1)
    if self._redone:
      redone = np.concatenate(self._redone)[:, 0]
      if (share := redone.mean()) > REDONE_SHARE:
        self.log.line(
          f"{share:.0%} of {len(redone):,} steps were done over by the dense "
          "engine: rows kept more latents than the sparse one holds "
          "(--train.engine=dense)"
        )
    if not self._clipped:
      return
    clipped = np.concatenate(self._clipped)
    for member, acted in zip(self.group.members, clipped.T, strict=True):
      if np.isin(acted, (0, 1)).all() and (acted == acted[0]).all():
        what = "acted in all" if acted[0] else "never acted in"
        self.log.line(
          f"{member.name}: the limit on the norm of gradients {what} "
          f"{len(acted):,} steps (metric grad_norm; --train.clip_norm)"
        )

  def _check(self, first: int, feed: Feed, metrics: Any) -> None:
    values = self.group.by_member(metrics)
    if self.observe:
      for i in range(len(values["loss"])):
        own = {name: value[i] for name, value in values.items()}
        self.observe(first + i, own)
    if "clipped" in values:
      self._clipped.append(values["clipped"])
    if "redone" in values:
      self._redone.append(values["redone"])
    rows_ok, alive = values.pop("rows_ok"), values.pop("alive")
    names = [member.name for member in self.group.members]
    for i in range(len(rows_ok)):
      step = first + i
      if not rows_ok[i].all():
        if self.config.nonfinite == "stop":
          why = "rows of the batch are not finite"
          self._stop(step, feed.rows(i), why, rows_ok=False)
        self.log.line(f"step {step}: skipped, rows are not finite")
      for name, ok in zip(names, alive[i], strict=True):
        if not ok and name not in self._diverged:
          self._diverged[name] = step
          self.log.line(
            f"{name}: diverged at step {step}: its loss or gradient was not "
            "finite; it is frozen with its last good weights"
          )
      if not alive[i].any() and not self.all_frozen:
        self._stop(step, feed.rows(i), "no member's loss is finite")
      done = step + 1
      if measured := feed.measured(i):
        self._record_rows(done, measured)
      if done % self.config.log_steps == 0 or done == self.total_steps:
        scalars = {
          name: {key: value[i, m] for key, value in values.items()}
          for m, name in enumerate(names)
        }
        for name, failed in self._diverged.items():
          scalars[name]["diverged_step"] = failed
        self.log.record(done, done * self.config.batch_rows, scalars)

  def _record_rows(self, done: int, measured: Mapping[str, float]) -> None:
    """Records facts about the rows of a batch."""
    tokens = done * self.config.batch_rows
    self.log.record(done, tokens, {ROWS: measured}, kind=ROWS)
    if self._mixed is not None and "doc_entropy_uniform" in measured:
      pair = measured["doc_entropy"], measured["doc_entropy_uniform"]
      self._mixed.append(pair)
      self._check_mixing(least=3)

  def _check_mixing(self, least: int) -> None:
    """Warns once where batches have fewer documents than uniform draws."""
    if self._mixed is None or len(self._mixed) < least:
      return
    found, uniform = np.mean(self._mixed, axis=0)
    if found < mixing.LEAST * uniform:
      self._mixed = None
      self.log.line(
        f"warning: the entropy of documents in a batch is {found:.3f}, "
        f"{found / uniform:.1%} of that of uniformly drawn rows "
        f"({uniform:.3f}): raise --train.window_chunks, or harvest with "
        "smaller chunks or larger buckets"
      )

  def _stop(
    self, step: int, rows: np.ndarray | None, why: str, rows_ok: bool = True
  ) -> None:
    text = f"step {step}: {why}"
    if self.folder is not None:
      text += (
        f"; {self._report(self.folder, step, rows, why)}; the "
        "last good checkpoint is kept (--train.nonfinite=skip goes on without "
        "such batches)"
      )
    raise NonFiniteError(text, step=step, rows_ok=rows_ok)

  def _report(
    self, folder: pathlib.Path, step: int, rows: np.ndarray | None, why: str
  ) -> str:
    """Writes which rows it was; returns where that is."""
    report: dict[str, Any] = {"step": step, "why": why}
    if rows is not None:
      report["rows"] = rows.tolist()
      if self.provenance:
        report["provenance"] = {
          k: np.asarray(v).tolist() for k, v in self.provenance(rows).items()
        }
    path = folder / "nonfinite.json"
    try:
      durable.write_file(path, json.dumps(report).encode() + b"\n")
    except InputError as error:  # it must not hide the diagnosis
      return f"rows could not be written to {path} ({error.rule})"
    return f"rows and where they come from are in {path}"
