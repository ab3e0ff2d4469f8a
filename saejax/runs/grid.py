"""The grid of SAEs that a run trains, one group of equal n after the other.

A group whose points.json is there is finished; the same command resumes the
others.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from saejax import durable, terminal
from saejax.data import loader
from saejax.data.batches import StoreBatches, spread
from saejax.data.store.reader import Store
from saejax.evals import reading, reconstruction
from saejax.recipes import arguments, catalogue
from saejax.runs import stores
from saejax.runs.config import SAEConfig
from saejax.sae import files
from saejax.sae import prep as preps
from saejax.training import log, loop
from saejax.training.members import Member
from saejax.training.parts import rules, schedules
from saejax.training.recipe import Recipe

TRANSIENT = ("seconds", "group_seconds", "density")  # not kept with an SAE


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid:
  """A grid of SAEs and the rows they are trained and evaluated on.

  Attributes:
    path: the run folder.
    store: rows to train on.
    held_out: rows to evaluate on.
    sae: which SAEs.
    train: how they are trained.
  """

  path: pathlib.Path
  store: Store
  held_out: Store
  sae: SAEConfig
  train: loop.TrainConfig

  def __post_init__(self):
    stores.check_held_out(self.store, self.held_out)

  @property
  def reading(self) -> dict[str, Any]:
    """Arguments that fix the order in which the loader gives rows."""
    return {
      "batch_rows": self.train.batch_rows,
      "seed": self.train.seed,
      "epochs": self.train.epochs,
      "window_chunks": self.train.window_chunks,
    }

  @property
  def prep(self) -> preps.Prep:
    """The prep that the flags select, with the store's statistics."""
    return preps.from_stats(self.sae.prep, self.store.stats)

  @property
  def mean(self) -> np.ndarray | None:
    """Mean of the training rows, in the frame of the prep."""
    return reconstruction.frame_mean(self.prep, self.store)


def train(grid: Grid) -> list[dict[str, Any]]:
  """Trains and evaluates every SAE of the grid, a group of equal n at a time.

  Returns:
    One point per SAE: n, k, seed, learning_rate, status, tokens, seconds,
    group_seconds, the metrics of `evals.reconstruction` in the inference form,
    L0 and FVU in the training form at the training batch size, and `density`,
    the histogram.
  """
  points: list[dict[str, Any]] = []
  for n in grid.sae.n:
    done = grid.path / f"n{n}" / "points.json"
    if not (done.exists() and _is_saved(grid, n)):
      total_steps = loader.count_batches(grid.store, **grid.reading)
      trained = _train_group(grid, n, total_steps)
      found = _points(grid, n, total_steps, trained)
      _save(grid, n, trained, found)
      durable.write_sealed(done, {"points": found}, field="run_dir")
    points += durable.read_sealed(
      done, field="run_dir", remedy="remove it and repeat the same command"
    )["points"]
  return points


def _train_group(grid: Grid, n: int, total_steps: int) -> list[loop.Trained]:
  """Trains the members with n latents."""
  rated, mean = spread(grid.held_out, grid.train.eval_rows), grid.mean
  with StoreBatches(grid.store, **grid.reading) as batches:
    try:
      return loop.train(
        partial(
          recipe,
          n,
          d=grid.store.d,
          prep=grid.prep,
          sae=grid.sae,
          train=grid.train,
          total_steps=total_steps,
        ),
        members(n, grid.sae, grid.train),
        batches,
        config=grid.train,
        folder=grid.path / f"n{n}",
        total_steps=total_steps,
        fingerprint=_fingerprint(grid, n),
        metric=lambda forms: float(
          np.mean([r.fvu for r in _as_trained(grid, forms, [rated], mean)])
        ),
        provenance=grid.store.provenance,
      )
    except loop.NonFiniteError as error:
      raise SystemExit(f"error: n={n}: {error}") from error


def _points(
  grid: Grid, n: int, total_steps: int, trained: Sequence[loop.Trained]
) -> list[dict[str, Any]]:
  """The settings and the held-out metrics of each member, in both forms."""
  held_out = lambda: (x for _, x in reading.batches(grid.held_out))
  mean, forms = grid.mean, [(t.trained, t.stats) for t in trained]
  found = reconstruction.evaluate_many(
    [t.sae for t in trained], held_out(), means=[mean] * len(trained)
  )
  before = _as_trained(grid, forms, held_out(), mean)
  points = [
    {
      "n": n,
      "k": t.member.k,
      "coefficient": t.member.coefficient,
      "seed": t.member.seed,
      "learning_rate": t.member.learning_rate,
      "status": _status(t, metrics),
      "tokens": total_steps * grid.train.batch_rows,
      "seconds": round(t.seconds, 3),
      "group_seconds": round(float(sum(t.seconds for t in trained)), 3),
      **{k: _finite(v) for k, v in metrics.record().items()},
      "training_l0": _finite(training.l0),
      "training_fvu": _finite(training.fvu),
      "density": metrics.histogram(),
    }
    for t, metrics, training in zip(trained, found, before, strict=True)
  ]
  for t, point in zip(trained, points, strict=True):
    if warning := reconstruction.form_warning(point):
      terminal.say(f"n{n}-{t.member.name}: {warning}")
  return points


def _save(
  grid: Grid,
  n: int,
  trained: Sequence[loop.Trained],
  points: Sequence[dict[str, Any]],
) -> None:
  """Saves the SAEs with what is known about them."""
  for t, point in zip(trained, points, strict=True):
    files.save(
      t.sae,
      grid.path / "saes" / f"n{n}-{t.member.name}",
      about={
        **{k: v for k, v in point.items() if k not in TRANSIENT},
        **stores.describe(grid.store, grid.held_out),
      },
    )


def _is_saved(grid: Grid, n: int) -> bool:
  """Whether every SAE of a group is there with its weights."""
  return all(
    (grid.path / "saes" / f"n{n}-{member.name}" / file).is_file()
    for member in members(n, grid.sae, grid.train)
    for file in (files.STRUCTURE, files.ARRAYS)
  )


def _status(t: loop.Trained, metrics: reconstruction.Reconstruction) -> str:
  """The loop's status, or diverged where the mean would reconstruct better."""
  if t.status != "ok" or metrics.fvu <= 1:
    return t.status
  return "diverged"


def members(n: int, sae: SAEConfig, train: loop.TrainConfig) -> list[Member]:
  """The members with n latents: every k with every coefficient and seed."""
  rate = schedules.learning_rate_for(
    n,
    base=train.learning_rate,
    base_n=train.learning_rate_n,
    exponent=train.learning_rate_exponent,
  )
  rate *= catalogue.METHODS[sae.recipe].rate
  ks = sae.k if sae.sweeps == "k" else (0,)
  return [
    Member(k=k, seed=seed, learning_rate=rate, coefficient=coefficient)
    for k in ks
    for coefficient in sae.coefficients or (1.0,)
    for seed in range(sae.seeds)
  ]


def recipe(
  n: int,
  k: int,
  *,
  d: int,
  prep: preps.Prep,
  sae: SAEConfig,
  train: loop.TrainConfig,
  total_steps: int,
) -> Recipe:
  """The recipe that the flags select, for rows of width d."""
  tokens = total_steps * train.batch_rows
  options = {
    "dead_after_tokens": train.dead_after_tokens or rules.dead_after(tokens),
    "steps": total_steps,
    "batch_rows": train.batch_rows,
    "prep": prep,
    "schedule": schedules.warmup_decay(
      total_steps,
      warmup_steps=train.warmup_steps,
      decay_fraction=train.decay_fraction,
    ),
    "clip_norm": train.clip_norm,
    "ema_decay": train.ema_decay,
    "dtype": train.dtype,
  }
  given = {"k": k, "k_aux": sae.k_aux or None, "aux_weight": sae.aux_weight}
  known = {leaf.name for leaf in arguments.of(sae.recipe)}
  return arguments.make(
    sae.recipe,
    d=d,
    n=n,
    arguments={name: v for name, v in given.items() if name in known},
    **options,
  )


def _as_trained(
  grid: Grid, forms, batches, mean
) -> list[reconstruction.Reconstruction]:
  """Metrics of the training forms, in batches as large as in training."""
  return reconstruction.evaluate_many(
    [sae for sae, _ in forms],
    batches,
    means=[mean] * len(forms),
    stats=[stats for _, stats in forms],
    batch_rows=grid.train.batch_rows,
  )


def _fingerprint(grid: Grid, n: int) -> dict[str, Any]:
  """Settings that a resumed group must share."""
  same = dataclasses.asdict(grid.train)
  for cadence in ("log_steps", "checkpoint_steps", "mesh"):
    del same[cadence]
  sae = dataclasses.asdict(grid.sae)
  del sae["n"]
  return {
    "n": n,
    "store": grid.store.content,
    "sae": sae,
    "train": same,
  }


def _finite(value: Any) -> Any:
  """None for numbers that JSON cannot hold."""
  if isinstance(value, float) and not np.isfinite(value):
    return None
  return value


def metrics(grid: Grid) -> dict[int, list[dict]]:
  """The metric records of each group, by n."""
  return {n: log.read(grid.path / f"n{n}") for n in grid.sae.n}
