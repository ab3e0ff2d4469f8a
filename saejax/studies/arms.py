"""Studies: arms of small SAEs on the same rows in memory, kept arm by arm.

    run_dir/
      run.flags            every flag
      arms/<arm>.json      the points of a finished arm
      results.json ...     of the whole study

An arm is a method at one size with its seeds, k and coefficients. A study that
is stopped resumes with the missing arms; an arm that was under way
starts again from the same seeds and ends the same.
"""

import dataclasses
import pathlib
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from saejax import checks, durable, terminal
from saejax.data import harvest, spec, streams
from saejax.data.store.reader import Store
from saejax.evals import reconstruction
from saejax.report import results
from saejax.runs import stores
from saejax.sae import prep
from saejax.sae.context import Batch, as_batch
from saejax.sae.sae import SAE
from saejax.training import fit
from saejax.training.members import Member
from saejax.training.parts import rules, schedules
from saejax.training.recipe import Recipe
from saejax.training.step import TrainState


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyConfig:
  """How every arm of a study is trained."""

  steps: int = 1000  # batches
  batch_rows: int = 512  # rows per batch
  learning_rate: float = 3e-3  # peak
  warmup_steps: int = 10  # linear rise of the rate
  decay_fraction: float = 0.2  # part of the run over which the rate falls
  clip_norm: float | None = 1.0  # largest global norm of gradients; none: off
  seeds: int = 5  # SAEs of each arm, paired across arms by seed
  order_seed: int = 0  # of the order of rows

  def __post_init__(self):
    checks.at_least(self, 1, "steps", "batch_rows", "seeds")
    checks.at_least(self, 0, "warmup_steps", "order_seed")
    checks.at_most(self, self.steps, "warmup_steps")
    checks.positive(self, "learning_rate", "clip_norm")
    checks.fraction(self, "decay_fraction")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rows:
  """Rows of a study, in memory.

  Attributes:
    train: what arms are trained on; every field [rows, ...].
    held_out: what they are measured on.
    prep: that brings x to mean 0 and mean square norm 1.
    about: facts for results.json.
  """

  train: Batch
  held_out: Batch
  prep: prep.Prep
  about: Mapping[str, Any]

  @property
  def d(self) -> int:
    """Width of x."""
    return self.train.x.shape[-1]

  @property
  def mean(self) -> Float[Array, "d"]:
    """Mean of what is reconstructed, in the units of the model."""
    y = self.train.x if self.train.target is None else self.train.target
    return jnp.mean(y.reshape(-1, y.shape[-1]), axis=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arm:
  """A method at one size.

  Attributes:
    name: of the arm, unique in its study.
    make: from k to the recipe.
    n: latents.
    k: active latents per row; one SAE for each with each seed.
    coefficients: of swept terms; likewise.
    seed: of the first SAE; others follow.
    rate: peak learning rate over the study's.
    stacked: vmapped members, for coupled or tiny ones.
    rows: rows of its own instead of the study's.
    facts: to be written with each point.
  """

  name: str
  make: Callable[[int], Recipe]
  n: int
  k: tuple[int, ...] = (0,)
  coefficients: tuple[float, ...] = (1.0,)
  seed: int = 0
  rate: float = 1.0
  stacked: bool = False
  rows: Rows | None = None
  facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
  """What an arm has when it is measured; one entry of each list an SAE.

  Attributes:
    arm: which.
    saes: the inference forms.
    states: after the last step.
    found: how well they reconstruct the held-out rows.
    rows: of the arm.
  """

  arm: Arm
  saes: Sequence[SAE]
  states: Sequence[TrainState]
  found: Sequence[reconstruction.Reconstruction]
  rows: Rows


Measure = Callable[[Trained], Sequence[Mapping[str, Any]]]


def harvested(config: harvest.HarvestConfig) -> Rows:
  """The rows of a harvest, which is made or resumed."""
  source = spec.subject_of(config)
  store, held_out = stores.harvested(config, source)
  about = {
    "model": store.meta.get("model"),
    "site": store.meta.get("site"),
    "corpus": store.meta.get("corpus"),
    "train_rows": store.rows,
    "held_out_rows": held_out.rows,
  }
  return Rows(
    train=Batch(x=_all(store)),
    held_out=Batch(x=_all(held_out)),
    prep=prep.from_stats("centre_scale", store.stats),
    about=about,
  )


def planted(
  train: Mapping[str, Array], held_out: Mapping[str, Array], about: Any
) -> Rows:
  """Rows made by `data.synthetic`, without a prep."""
  return Rows(
    train=as_batch(train),
    held_out=as_batch(held_out),
    prep=prep.Identity(),
    about=about,
  )


def options(config: StudyConfig, rows: Rows) -> dict[str, Any]:
  """The settings that all recipes of a study share."""
  return {
    "dead_after_tokens": rules.dead_after(config.steps * config.batch_rows),
    "steps": config.steps,
    "batch_rows": config.batch_rows,
    "prep": rows.prep,
    "schedule": schedules.warmup_decay(
      config.steps,
      warmup_steps=config.warmup_steps,
      decay_fraction=config.decay_fraction,
    ),
    "clip_norm": config.clip_norm,
  }


def run(
  folder: pathlib.Path,
  arms: Sequence[Arm],
  rows: Rows,
  config: StudyConfig,
  *,
  measure: Measure | None = None,
) -> list[dict[str, Any]]:
  """Trains and measures every arm; those found in the folder are read.

  Args:
    folder: of the run.
    arms: with different names.
    rows: for arms without rows of their own.
    config: how they are trained.
    measure: further numbers of each SAE of an arm.

  Returns:
    One point an SAE: arm, n, k, coefficient, seed, status, seconds, the
    metrics of `evals.reconstruction` in the units of the model, the arm's
    facts, and what `measure` found.
  """
  screen = terminal.Screen(sys.stderr)
  began, points = time.monotonic(), []
  try:
    for i, arm in enumerate(arms):
      points += kept(
        folder / "arms" / f"{slug(arm.name)}.json",
        lambda a=arm: train_arm(a, a.rows or rows, config, measure),
      )
      spent = time.monotonic() - began
      left = spent / (i + 1) * (len(arms) - i - 1)
      screen.status(
        [
          f"arm {i + 1}/{len(arms)}: {arm.name}",
          f"ETA {terminal.duration(left)}",
        ]
      )
  finally:
    screen.end()
  return points


def kept(
  path: pathlib.Path, make: Callable[[], list[dict[str, Any]]]
) -> list[dict[str, Any]]:
  """The points in a file, which is written first if it is not there."""
  if not path.exists():
    points = results.plain(make())
    durable.write_sealed(path, {"points": points}, field="run_dir")
  return durable.read_sealed(
    path, field="run_dir", remedy="remove it and repeat the same command"
  )["points"]


def train_arm(
  arm: Arm, rows: Rows, config: StudyConfig, measure: Measure | None
) -> list[dict[str, Any]]:
  """The points of one arm."""
  members = [
    Member(
      arguments=(("k", k),),
      seed=arm.seed + seed,
      learning_rate=config.learning_rate * arm.rate,
      coefficient=coefficient,
    )
    for k in arm.k
    for coefficient in arm.coefficients
    for seed in range(config.seeds)
  ]
  began = time.monotonic()
  saes, states, logged = fit.fit(
    lambda k: arm.make(k),
    stream(rows.train, config),
    steps=config.steps,
    members=members,
    stacked=arm.stacked,
    sample=sample(rows.train),
  )
  seconds = (time.monotonic() - began) / len(members)
  found = reconstruction.evaluate_many(
    saes,
    chunks(rows.held_out),
    means=[rows.mean] * len(saes),
    frame="raw",
  )
  trained = Trained(arm=arm, saes=saes, states=states, found=found, rows=rows)
  extra = measure(trained) if measure else [{}] * len(saes)
  points = []
  for i, (member, metrics) in enumerate(zip(members, found, strict=True)):
    alive = bool(logged["alive"][-1][i])
    points.append(
      {
        "arm": arm.name,
        "n": arm.n,
        "k": member.k,
        "coefficient": member.coefficient,
        "seed": member.seed,
        "status": "ok" if alive else "frozen",
        "seconds": round(seconds, 3),
        **metrics.record(),
        **arm.facts,
        **extra[i],
      }
    )
  return points


def stream(train: Batch, config: StudyConfig) -> fit.Draw:
  """From a step to a batch: passes over the rows, each in another order."""
  fields = {k: v for k, v in vars(train).items() if v is not None}
  passes = -(-config.steps * config.batch_rows // len(train.x))
  return streams.array_draw(
    fields,
    batch_rows=config.batch_rows,
    seed=config.order_seed,
    epochs=passes,
  )


def sample(train: Batch, rows: int = 4096) -> Batch:
  """Rows spread evenly over all, for initial weights and thresholds."""
  count = jax.tree.leaves(train)[0].shape[0]
  which = np.linspace(0, count - 1, min(rows, count)).astype(int)
  return jax.tree.map(lambda a: jnp.asarray(a[which]), train)


def chunks(batch: Batch, rows: int = 4096):
  """A batch in parts of equal size."""
  count = jax.tree.leaves(batch)[0].shape[0]
  for start in range(0, count, rows):
    yield jax.tree.map(lambda a, i=start: a[i : i + rows], batch)


def slug(name: str) -> str:
  """A name as a file's."""
  return re.sub(r"[^\w.=+-]+", "_", name)


def _all(store: Store) -> np.ndarray:
  """Every finite row of a store in float32."""
  parts = [store.read(first, last) for first, last in store.intervals]
  x = np.concatenate(parts).astype(np.float32)
  return x[np.isfinite(x).all(axis=-1)]


def label(rows: Rows) -> str:
  """The model and layer of harvested rows."""
  name = rows.about["model"]["name"].removeprefix("package:")
  return f"{name.partition('/')[0]} layer {rows.about['site']['layer']}"
