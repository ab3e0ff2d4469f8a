"""The one training loop: batches in, trained SAEs out, exactly resumable.

A run killed at any moment and started again with the same settings ends with
bit-identical weights on the same hardware: one atomic checkpoint holds states
and data position, and dispatches begin at the same steps whether or not there
was a stop between them.
"""

import collections
import contextlib
import dataclasses
import json
import os
import pathlib
import signal
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from saejax import checks, durable, interrupt
from saejax.data.batches import Batches
from saejax.errors import InputError
from saejax.sae.sae import SAE
from saejax.training import sharding
from saejax.training.checkpoint import Checkpoints
from saejax.training.log import RunLog
from saejax.training.members import Group, Member, own_programs
from saejax.training.recipe import Recipe, Stats
from saejax.training.rows import Stream

SAMPLE_ROWS = 4096  # for the initial weights
AHEAD = 2  # dispatches under way before the host waits for the oldest


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
  """How a run trains; what it trains is the recipe's business."""

  batch_rows: int = 2048  # rows per step, over all devices
  epochs: int = 1  # passes over the store
  learning_rate: float = 2e-3  # peak, of an SAE with learning_rate_n latents
  learning_rate_n: int = 1024  # latents at which learning_rate holds
  learning_rate_exponent: float = 0.0  # rate ~ n^exponent; -0.5: Gao et al.
  warmup_steps: int = 10  # linear rise of the rate
  decay_fraction: float = 0.2  # part of the run over which the rate falls to 0
  clip_norm: float | None = 1.0  # largest global norm of gradients; none: off
  ema_decay: float | None = None  # of the average of weights kept; none: off
  dead_after_tokens: int = 0  # 0: 10 million or a tenth of the run, if less
  engine: Literal["auto", "dense", "sparse"] = "auto"  # auto: sparse if it can
  dtype: Literal["float32", "bfloat16"] = "float32"  # of matmul operands
  # how members are stepped; auto: chosen for the hardware
  members: Literal["auto", "in_turn", "stacked"] = "auto"
  mesh: tuple[int, ...] = (1, 1, 1)  # devices: ensemble, data, latent
  steps_per_dispatch: int = 1  # steps in one call of the compiled program
  window_chunks: int = 64  # chunks of the store that are mixed
  nonfinite: Literal["stop", "skip"] = "stop"  # policy on non-finite numbers
  checkpoint_steps: int = 500  # steps between checkpoints
  eval_rows: int = 4096  # held-out rows that rate a checkpoint
  log_steps: int = 10  # steps between records
  seed: int = 0  # of the order of rows

  def __post_init__(self):
    checks.at_least(
      self,
      1,
      "batch_rows",
      "epochs",
      "learning_rate_n",
      "steps_per_dispatch",
      "window_chunks",
      "checkpoint_steps",
      "eval_rows",
      "log_steps",
    )
    checks.at_least(self, 0, "warmup_steps", "dead_after_tokens", "seed")
    checks.at_most(self, 1_000_000, "epochs")
    checks.positive(self, "learning_rate", "clip_norm")
    checks.finite(self, "learning_rate_exponent")
    checks.fraction(self, "decay_fraction")
    if self.ema_decay is not None and not 0 < self.ema_decay < 1:
      raise InputError(
        "ema_decay", self.ema_decay, "must be in (0, 1)", "none turns it off"
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
  """One member after training.

  Attributes:
    member: which.
    sae: its inference form; of the last good weights where it was frozen.
    trained: its training form: the weights before `Recipe.finish`.
    stats: statistics that the training form's selection reads.
    seconds: of computing, summed over resumes.
    status: "ok", or "frozen at step s" where its loss was not finite.
  """

  member: Member
  sae: SAE
  trained: SAE
  stats: Stats
  seconds: float
  status: str


class NonFiniteError(RuntimeError):
  """Training stopped because of numbers that are not finite."""


def train(
  make_recipe: Callable[..., Recipe],
  members: Sequence[Member],
  batches: Batches,
  *,
  config: TrainConfig,
  folder: str | os.PathLike[str],
  total_steps: int,
  fingerprint: dict[str, Any],
  metric: Callable[[Sequence[tuple[SAE, Stats]]], float] | None = None,
  provenance: Callable[[np.ndarray], dict[str, np.ndarray]] | None = None,
  stream: Any = None,
) -> list[Trained]:
  """Trains all members on one reading of the batches.

  Args:
    make_recipe: from a member's arguments, by name, to the recipe.
    members: SAEs of equal shape.
    batches: the stream, at its start; its position is saved and restored. Its
      sample serves the initial weights and `Recipe.finish`.
    config: how.
    folder: for checkpoints, metrics and event files; a run that is there is
      resumed.
    total_steps: batches to consume.
    fingerprint: JSON-able settings that must be equal on resume.
    metric: rates a checkpoint from all members' training forms, each with its
      statistics; lower is better.
    provenance: where rows come from, for the report on non-finite ones.
    stream: where progress goes; standard error by default.

  Returns:
    The members in order.

  Raises:
    InputError: another run is in the folder, the mesh does not divide the
      sizes, or the disk is full.
    NonFiniteError: rows, or every member's loss, were not finite under the
      policy "stop". The last good checkpoint is kept and `nonfinite.json` in
      the folder names the step and the rows.
    Stopped: a signal asked to stop; a complete checkpoint was saved. Only
      scripts handle signals: see `saejax.interrupt`.
  """
  folder = pathlib.Path(folder)
  group = _group(make_recipe, members, batches.fields, config)
  rows = Stream(batches)
  states = group.init(rows.sample(SAMPLE_ROWS))
  seconds = np.zeros(len(members), np.float32)
  fingerprint = {**fingerprint, **_settings(group, total_steps)}
  with contextlib.ExitStack() as stack:
    checkpoints = stack.enter_context(
      Checkpoints(folder / "checkpoints", fingerprint=fingerprint)
    )
    step = 0
    template = {"members": states, "seconds": jnp.asarray(seconds)}
    if restored := checkpoints.restore(template, batches):
      step, saved = restored
      states, seconds = saved["members"], np.array(saved["seconds"])
    log = stack.enter_context(
      RunLog(folder, step=step, total_steps=total_steps, stream=stream)
    )
    if step:
      log.line(f"{folder.name}: resuming from step {step:,}")
    stack.enter_context(interrupt.deferred())

    def save(step, states):
      rating = metric(group.trained(states)) if metric else None
      state = {"members": states, "seconds": jnp.asarray(seconds)}
      checkpoints.save(step, state, batches, metric=rating)
      log.saved()

    watch = _Watch(group, log, config, total_steps, folder, provenance)
    while step < total_steps:
      count = _dispatch_steps(step, total_steps, config)
      with log.waiting():
        taken = [next(batches) for _ in range(count)]
      xs = [group.put(batch) for batch in taken]
      states, metrics, spent = group.run(states, xs)
      seconds += spent
      watch.add(step, [batch["row"] for batch in taken], metrics)
      step += count
      log.progress(step, step * config.batch_rows)
      due = step % config.checkpoint_steps < count
      if due or step == total_steps:
        watch.check_all()
        save(step, states)
      if number := _stop_signal(step):
        watch.check_all()
        save(step, states)
        checkpoints.wait()
        name = signal.Signals(number).name
        log.line(f"{folder.name}: stopped by {name}, saved at step {step:,}")
        raise interrupt.Stopped(number)
    log.progress(step, step * config.batch_rows, force=True)
    return _trained(group, states, rows, seconds)


def _trained(group: Group, states, rows: Stream, seconds) -> list[Trained]:
  """The members after training, in order."""
  failed = [int(s.failed_step) for s in group.member_states(states)]
  return [
    Trained(
      member=member,
      sae=sae,
      trained=trained,
      stats=stats,
      seconds=float(spent),
      status="ok" if at < 0 else f"frozen at step {at}",
    )
    for member, sae, (trained, stats), spent, at in zip(
      group.members,
      group.saes(states, rows),
      group.trained(states),
      seconds,
      failed,
      strict=True,
    )
  ]


def _group(
  make_recipe: Callable[..., Recipe],
  members: Sequence[Member],
  fields: tuple[str, ...],
  config: TrainConfig,
) -> Group:
  """The members' programs, after refusing what cannot be trained."""
  mesh = sharding.make_mesh(config.mesh)
  apart = own_programs(make_recipe, members)
  stacked = config.members == "stacked" or (
    config.members == "auto"
    and not apart
    and (
      mesh.shape["ensemble"] > 1
      or jax.default_backend() != "cpu"
      or make_recipe(**dict(members[0].arguments)).coupling is not None
    )
  )
  if mesh.shape["ensemble"] > 1 and not stacked:
    raise InputError(
      "train.members",
      config.members,
      "an ensemble axis of several devices needs stacked members"
      + (f", of one {apart}" if apart else ""),
      "use --train.members=auto, or a mesh without an ensemble axis",
    )
  group = Group(
    make_recipe,
    members,
    mesh=mesh,
    stacked=stacked,
    engine=config.engine,
    skip_nonfinite=config.nonfinite == "skip",
  )
  group.check(fields)
  sharding.check(
    mesh, n=group.n, batch_rows=config.batch_rows, members=len(members)
  )
  return group


def _settings(group: Group, total_steps: int) -> dict[str, Any]:
  """The part of a run's fingerprint that the loop knows."""
  return {
    "members": [
      {**vars(member), "arguments": dict(member.arguments)}
      for member in group.members
    ],
    "total_steps": total_steps,
    "environment": environment(group.mesh),
  }


def _dispatch_steps(step: int, total_steps: int, config: TrainConfig) -> int:
  """Steps of the next dispatch: up to a multiple of steps_per_dispatch.

  How often checkpoints are saved must not decide which program runs a step.
  """
  at_once = config.steps_per_dispatch
  return min(at_once - step % at_once, total_steps - step)


def environment(mesh: jax.sharding.Mesh) -> dict[str, Any]:
  """What bit-identical results depend on beside the settings."""
  device = jax.devices()[0]
  cores = (
    len(os.sched_getaffinity(0))
    if hasattr(os, "sched_getaffinity")
    else os.cpu_count()
  )
  return {
    "device": device.device_kind,
    "platform": device.platform,
    "mesh": list(mesh.shape.values()),
    "cores": cores,
    "jax": jax.__version__,
  }


class _Watch:
  """Reads metrics a little behind the device: records them, stops on NaN.

  Waiting for the oldest of a few dispatches bounds how far the host runs ahead
  and keeps every batch's row numbers until its rows are known to be finite.
  """

  def __init__(self, group, log, config, total_steps, folder, provenance):
    self._group = group
    self._log = log
    self._config = config
    self._total_steps = total_steps
    self._folder = folder
    self._provenance = provenance
    self._pending: collections.deque[Any] = collections.deque()
    self._frozen: set[str] = set()

  def add(self, step: int, rows: list[np.ndarray], metrics: Any) -> None:
    self._pending.append((step, rows, metrics))
    while len(self._pending) > AHEAD:
      self._check(*self._pending.popleft())

  def check_all(self) -> None:
    while self._pending:
      self._check(*self._pending.popleft())

  def _check(self, first: int, rows: list[np.ndarray], metrics: Any) -> None:
    values = self._group.by_member(metrics)
    rows_ok, alive = values.pop("rows_ok"), values.pop("alive")
    names = [member.name for member in self._group.members]
    for i, batch_rows in enumerate(rows):
      step = first + i
      if not rows_ok[i].all():
        if self._config.nonfinite == "stop":
          self._stop(step, batch_rows, "rows of the batch are not finite")
        self._log.line(f"step {step}: skipped, rows are not finite")
      for name, ok in zip(names, alive[i], strict=True):
        if not ok and name not in self._frozen:
          self._frozen.add(name)
          self._log.line(f"{name}: not finite at step {step}, frozen there")
      if not alive[i].any():
        self._stop(step, batch_rows, "no member's loss is finite")
      done = step + 1
      if done % self._config.log_steps == 0 or done == self._total_steps:
        scalars = {
          name: {key: value[i, m] for key, value in values.items()}
          for m, name in enumerate(names)
        }
        self._log.record(done, done * self._config.batch_rows, scalars)

  def _stop(self, step: int, rows: np.ndarray, why: str) -> None:
    report: dict[str, Any] = {"step": step, "why": why, "rows": rows.tolist()}
    if self._provenance:
      found = self._provenance(rows)
      report["provenance"] = {
        k: np.asarray(v).tolist() for k, v in found.items()
      }
    path = self._folder / "nonfinite.json"
    where = f"rows and where they come from are in {path}"
    try:
      durable.write_file(path, json.dumps(report).encode() + b"\n")
    except InputError as error:  # it must not hide the diagnosis
      where = f"rows could not be written to {path} ({error.rule})"
    raise NonFiniteError(
      f"step {step}: {why}; {where}; the "
      "last good checkpoint is kept (--train.nonfinite=skip goes on without "
      "such batches)"
    )


def _stop_signal(step: int) -> int | None:
  """The signal after which to save and stop, the same on all processes."""
  if jax.process_count() == 1:
    return interrupt.requested()
  # jax.distributed takes SIGTERM, and agrees on a step.
  reached = multihost_utils.reached_preemption_sync_point(step)
  return signal.SIGTERM if reached else None
