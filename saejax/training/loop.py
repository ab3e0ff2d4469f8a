"""The one training loop: rows in, trained SAEs out, exactly resumable.

A run killed at any moment and started again with the same settings ends with
bit-identical weights on the same hardware: one atomic checkpoint holds states
and data position, and the cadence of checkpoints decides no result. Without a
folder nothing is written, and what writes is not imported.
"""

import contextlib
import dataclasses
import os
import pathlib
import shutil
import signal
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Array

from saejax import interrupt, machine, processes
from saejax.data.batches import Batches
from saejax.kernels import dispatch, native
from saejax.sae.context import Batch, as_batch
from saejax.sae.sae import SAE
from saejax.terminal import Screen, busy
from saejax.training import checkpoint_folder, groups, sharding, wandb_run
from saejax.training.config import TrainConfig as TrainConfig
from saejax.training.log import RunLog
from saejax.training.member import status
from saejax.training.members import Member
from saejax.training.recipe import Recipe, Stats
from saejax.training.sources import Source, source_of
from saejax.training.step import TrainState
from saejax.training.watch import HeldOut, Observe, Provenance, Watch
from saejax.training.watch import NonFiniteError as NonFiniteError

if TYPE_CHECKING:
  from saejax.training.run_folder import RunFolder

Steps = Generator[int, None, "list[Trained]"]
SAMPLE_ROWS = 4096  # for the initial weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
  """One member after training.

  Attributes:
    member: which.
    sae: its inference form; of the last good weights where it was frozen.
    trained: its training form: the weights before `Recipe.finish`.
    state: after the last step, without the optimizer's arrays.
    seconds: of computing, summed over resumes.
    status: "ok", or "diverged at step s" where its loss was not finite.
  """

  member: Member
  sae: SAE
  trained: SAE
  state: TrainState
  seconds: float
  status: str

  @property
  def stats(self) -> Stats:
    """Statistics that the training form's selection reads."""
    return self.state.stats


def train(
  make_recipe: Callable[..., Recipe],
  members: Sequence[Member],
  rows: Source | Batches,
  **settings: Any,
) -> list[Trained]:
  """Trains all members on one reading of the rows.

  Args:
    make_recipe, members, rows, **settings: as for `steps`.

  Returns:
    The members in order.

  Raises:
    InputError, NonFiniteError, Stopped: see `steps`.
  """
  return together([steps(make_recipe, members, rows, **settings)])[0]


def together(runs: Sequence[Steps]) -> list[list[Trained]]:
  """Trains several runs in turn, always the one that is behind.

  Args:
    runs: made by `steps`.

  Returns:
    The members of each run.

  Raises:
    InputError, NonFiniteError: see `steps`; those of the first run that fails.
    Stopped: a signal asked to stop; all runs have saved a checkpoint.
  """
  done: dict[int, list[Trained]] = {}
  at = dict.fromkeys(range(len(runs)), -1)
  try:
    while at:
      number = min(at, key=lambda n: at[n])
      try:
        at[number] = next(runs[number])
      except StopIteration as end:
        done[number] = end.value
        del at[number]
  except interrupt.Stopped as stopped:
    for number in at:
      with contextlib.suppress(interrupt.Stopped):
        runs[number].throw(stopped)
    raise
  finally:
    for run in runs:
      run.close()
  return [done[number] for number in range(len(runs))]


def steps(
  make_recipe: Callable[..., Recipe],
  members: Sequence[Member],
  rows: Source | Batches,
  *,
  config: TrainConfig,
  total_steps: int,
  folder: str | os.PathLike[str] | None = None,
  fingerprint: Mapping[str, Any] | None = None,
  sample: Array | Batch | None = None,
  metric: Callable[[Sequence[tuple[SAE, Stats]]], float] | None = None,
  provenance: Provenance | None = None,
  observe: Observe | None = None,
  held_out: HeldOut | None = None,
  all_frozen: bool = False,
  stream: Any = None,
  label: str = "",
) -> Steps:
  """Trains all members on one reading of the rows, for `together`.

  A generator: it yields the number of completed steps, first before its first
  step, where the position of the rows has been restored, and returns the members.

  Args:
    make_recipe: from a member's arguments, by name, to the recipe.
    members: SAEs that read the same batches.
    rows: a stream of batches or a source, at its start; its position is saved
      and restored. Its sample serves `Recipe.finish`.
    config: how.
    total_steps: batches to consume.
    folder: for checkpoints, metrics and event files; a run that is there is
      resumed. None writes nothing. A run with fewer steps than
      config.checkpoint_steps writes a checkpoint only where a signal stops it.
    fingerprint: JSON-able settings that must be equal on resume.
    sample: raw rows for the initial weights; by default of the source.
    metric: rates a checkpoint from all members' training forms, each with its
      statistics; lower is better.
    provenance: where rows come from, for the report on non-finite ones.
    observe: called a little after each step, from 0, with its metrics by name.
    held_out: scalars of each member, as `metric`; recorded by config.eval_steps.
    all_frozen: whether to go on where no member's loss is finite.
    stream: where progress goes; standard error by default.
    label: name of the run in its progress.

  Yields:
    The number of completed steps.

  Returns:
    The members in order.

  Raises:
    InputError: another run is in the folder, the mesh does not divide the
      sizes, the rows end early, the disk is full, or C++ kernels cannot be had.
    NonFiniteError: rows, or every member's loss, were not finite under the
      policy "stop". The last good checkpoint is kept and `nonfinite.json` in
      the folder names the step and the rows.
    Stopped: a signal asked to stop; a complete checkpoint was saved. Only
      scripts handle signals: see `saejax.interrupt`.
  """
  if config.native:
    native.load()  # refused before anything is made
  wandb_run.check(config.wandb)
  source = source_of(rows)
  group = groups.build(make_recipe, members, source, config)
  with busy("drawing the initial weights", Screen(stream or sys.stderr).line):
    states = group.init(
      source.sample(SAMPLE_ROWS) if sample is None else as_batch(sample)
    )
  step, seconds = 0, np.zeros(len(members), np.float32)
  ours = _fingerprint(fingerprint or {}, group, total_steps, config)
  processes.agree(ours, remedy="give all processes the same rows and settings")
  with contextlib.ExitStack() as stack:
    kept = None
    if folder is not None:
      kept = stack.enter_context(_opened(folder, ours, group))
      step, states, seconds = kept.restore(states, source, len(members))
    path = kept and kept.path
    shown: dict[str, Any] = {
      "total_steps": total_steps,
      "stream": stream,
      "label": label,
      "tracker": lambda: wandb_run.opened(path, config.wandb, ours),
    }
    path = path if processes.is_first() else None
    log = stack.enter_context(RunLog(path, step=step, **shown))
    if kept and step:
      log.line(f"{kept.path.name}: resuming from step {step:,}")
    if kept:  # otherwise there is nothing to save before a stop
      stack.enter_context(interrupt.deferred())
    watch = Watch(
      group=group,
      log=log,
      config=config,
      total_steps=total_steps,
      all_frozen=all_frozen,
      folder=path,
      provenance=provenance,
      observe=observe,
      held_out=held_out,
    )
    watch.resume(states)
    run = _Run(group, source, watch, kept, metric, step, states, seconds)
    while run.step < total_steps:
      try:
        yield run.step
      except interrupt.Stopped:  # by a signal that another run saw
        run.save()
        raise
      run.dispatch()
    return run.finished()


@dataclasses.dataclass
class _Run:
  """A run under way.

  Attributes:
    group, source, watch: members, rows and metrics.
    kept: where it is saved; None for nowhere.
    metric: rates a checkpoint, see `steps`.
    step: number of completed steps.
    states: of the members.
    seconds: of each member.
  """

  group: Any
  source: Source
  watch: Watch
  kept: "RunFolder | None"
  metric: Callable[..., float] | None
  step: int
  states: Any
  seconds: np.ndarray

  def __post_init__(self):
    self.config, self.total_steps = self.watch.config, self.watch.total_steps
    self.begun = self.step
    self.at_once = groups.steps_at_once(
      self.group, self.total_steps, self.config
    )

  def dispatch(self) -> None:
    """Takes the steps of one call of the program, and saves where it is due."""
    log, first, count = self.watch.log, self.step, self._due(self.step)
    with log.waiting():
      feed = self.source.take(first, count, most=self.at_once)
    compiles = busy("compiling the training step", log.line)
    told = compiles if first == self.begun else contextlib.nullcontext()
    with self._kernels(), told:
      self.states, metrics, spent = feed.run(self.group, self.states)
    self.seconds += spent
    with log.waiting():  # while the step runs
      self.source.ahead(self._due(first + count), self.group)
    self.watch.add(first, feed, metrics)
    self.step += count
    log.progress(self.step, self.step * self.config.batch_rows)
    with self._kernels():
      self.watch.evaluate(self.step, count, self.states)
    if self._is_due(count):
      self.save()
    if self.kept and (number := processes.stop_signal()):
      self.save()
      raise _stopped(self.kept, number, self.step, log)

  def save(self) -> None:
    """Saves a checkpoint, if there is a place for it."""
    if self.kept is None:
      return
    self.watch.check_all()
    rating = None
    if self.metric:
      with self._kernels():
        rating = self.metric(self.group.trained(sharding.whole(self.states)))
    self.kept.save(self.step, self.states, self.seconds, self.source, rating)
    self.watch.log.saved()

  def finished(self) -> list[Trained]:
    """The members after the last step."""
    self.watch.finish()
    tokens = self.step * self.config.batch_rows
    self.watch.log.progress(self.step, tokens, force=True)
    with self._kernels():
      return _trained(self.group, self.states, self.source, self.seconds)

  def _kernels(self):
    """The form of kernels; runs take turns, so that each sets it anew."""
    return dispatch.kernels(self.config.kernels, native=self.config.native)

  def _due(self, step: int) -> int:
    return groups.dispatch_steps(
      step, self.total_steps, self.at_once, self.config
    )

  def _is_due(self, count: int) -> bool:
    """Whether a checkpoint is saved after the last `count` steps.

    A run shorter than the cadence is repeated instead of being resumed.
    """
    cadence = self.config.checkpoint_steps
    done = self.step == self.total_steps and self.total_steps >= cadence
    return self.step % cadence < count or done


def remove_checkpoints(folder: str | os.PathLike[str]) -> None:
  """Removes the checkpoints of a run whose results are kept elsewhere.

  Args:
    folder: folder of the run; one without checkpoints is left as it is.
  """
  path = pathlib.Path(folder) / checkpoint_folder.FOLDER
  trash = path.with_name(path.name + ".removed")
  shutil.rmtree(trash, ignore_errors=True)
  if path.exists():
    # Renamed first: what is half removed must not be taken for damaged.
    path.rename(trash)
    shutil.rmtree(trash, ignore_errors=True)


def _trained(group, states, source: Source, seconds) -> list[Trained]:
  """The members after training, in order."""
  states = sharding.whole(states)
  forms = group.trained(states)
  saes = group.finished(forms, source)
  found = []
  for i, state in enumerate(group.member_states(states)):
    found.append(
      Trained(
        member=group.members[i],
        sae=saes[i],
        trained=forms[i][0],
        state=state.replace(opt_state=()),
        seconds=float(seconds[i]),
        status=status(int(state.failed_step)),
      )
    )
  return found


def _opened(
  folder: str | os.PathLike[str], fingerprint: Mapping[str, Any], group
) -> "RunFolder":
  """The folder of the run; Orbax is imported only where there is one."""
  from saejax.training.run_folder import RunFolder

  return RunFolder(pathlib.Path(folder), fingerprint, group)


def _fingerprint(
  given: Mapping[str, Any], group, total_steps: int, config: TrainConfig
) -> dict[str, Any]:
  """The settings that a resumed run must share, and its hardware."""
  return {
    **given,
    **({"native": True} if config.native else {}),
    "members": groups.settings(group.members),
    "total_steps": total_steps,
    "environment": machine.decisive(list(group.mesh.shape.values())),
  }


def _stopped(
  kept: "RunFolder", number: int, step: int, log: RunLog
) -> interrupt.Stopped:
  """Waits for the checkpoint of a stopped run, and says so."""
  kept.wait()
  name = signal.Signals(number).name
  log.line(f"{kept.path.name}: stopped by {name}, saved at step {step:,}")
  return interrupt.Stopped(number)
