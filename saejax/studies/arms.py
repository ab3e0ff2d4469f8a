"""Studies: arms of small SAEs on the same rows in memory, kept arm by arm.

    run_dir/
      run.flags            every flag
      arms/<arm>/          metrics of an arm; its checkpoints until it is done
      arms/<arm>.json      the points of a finished arm
      results.json ...     of the whole study

An arm is a method at one size with its seeds, k and coefficients. A study that
is stopped resumes inside the arm that was under way and ends the same.
"""

import dataclasses
import functools
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

from saejax import durable, terminal
from saejax.data import harvest, spec
from saejax.data.store.reader import Store
from saejax.errors import InputError
from saejax.evals import reconstruction
from saejax.report import results
from saejax.runs import folder as run_folder
from saejax.runs import stores
from saejax.runs.inputs import arrays_hash
from saejax.sae import prep
from saejax.sae.context import Batch, as_batch
from saejax.sae.sae import SAE
from saejax.training import loop, sources
from saejax.training.config import TrainConfig
from saejax.training.members import Member
from saejax.training.recipe import Recipe
from saejax.training.step import TrainState


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
  def count(self) -> int:
    """Rows to train on."""
    return len(self.train.x)

  @functools.cached_property
  def content(self) -> str:
    """A hash of the rows to train on."""
    fields = vars(self.train).items()
    return arrays_hash({k: v for k, v in fields if v is not None})

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


def check(config: TrainConfig) -> None:
  """Refuses settings that do not apply to the rows of a study, in memory.

  Args:
    config: how arms are trained.

  Raises:
    InputError: window_chunks, lanes, eval_rows or eval_steps is set.
  """
  for name in ("window_chunks", "lanes", "eval_rows", "eval_steps"):
    value = getattr(config, name)
    if value != getattr(TrainConfig, name):
      rule = "applies to stores, and the rows of a study are in memory"
      raise InputError(f"train.{name}", value, rule, "leave it out")


def options(config: TrainConfig, rows: Rows) -> dict[str, Any]:
  """The settings that all recipes of a study share.

  Args:
    config: how arms are trained.
    rows: rows to train on, whose number gives the steps and whose prep is used.
  """
  steps = config.total_steps(rows.count)
  return {**config.options(steps), "prep": rows.prep}


def run(
  folder: pathlib.Path,
  arms: Sequence[Arm],
  rows: Rows,
  config: TrainConfig,
  *,
  seeds: int,
  measure: Measure | None = None,
) -> list[dict[str, Any]]:
  """Trains and measures every arm; those found in the folder are read.

  Args:
    folder: of the run.
    arms: with different names.
    rows: for arms without rows of their own.
    config: how they are trained.
    seeds: SAEs of each setting of an arm, paired across arms by seed.
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
        folder / run_folder.ARMS / slug(arm.name),
        lambda own, a=arm: _train_arm(
          own, a, a.rows or rows, config, seeds, measure
        ),
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
  folder: pathlib.Path,
  make: Callable[[pathlib.Path], list[dict[str, Any]]],
) -> list[dict[str, Any]]:
  """The points beside a folder, which are made first if they are not there.

  Args:
    folder: for training; checkpoints are removed when points are written.
    make: from the folder to the points.
  """
  path = folder.with_name(folder.name + ".json")
  if not path.exists():
    points = results.plain(make(folder))
    durable.write_sealed(path, {"points": points}, field="run_dir")
  loop.remove_checkpoints(folder)
  return durable.read_sealed(
    path, field="run_dir", remedy="remove it and repeat the same command"
  )["points"]


def train(
  folder: pathlib.Path,
  make_recipe: Callable[..., Recipe],
  members: Sequence[Member],
  rows: Rows,
  config: TrainConfig,
  *,
  stacked: bool = False,
) -> list[loop.Trained]:
  """Trains members on the rows of a study, resuming what is in a folder.

  Args:
    folder: for checkpoints and metrics.
    make_recipe: from a member's arguments, by name, to the recipe.
    members: SAEs of one arm.
    rows: to train on.
    config: how.
    stacked: whether members are stacked where the settings leave it open.

  Raises:
    InputError: another arm is in the folder, or it is damaged.
    SystemExit: rows are not finite.
  """
  check(config)
  if stacked and config.members == "auto":
    config = dataclasses.replace(config, members="stacked")
  steps = config.total_steps(rows.count)
  try:
    return loop.train(
      make_recipe,
      members,
      source(rows.train, config),
      config=config,
      total_steps=steps,
      folder=folder,
      fingerprint={"rows": rows.content, "train": config.decisive()},
      sample=sample(rows.train),
      all_frozen=True,
    )
  except loop.NonFiniteError as error:
    raise SystemExit(f"error: {folder.name}: {error}") from error


def _train_arm(
  folder: pathlib.Path,
  arm: Arm,
  rows: Rows,
  config: TrainConfig,
  seeds: int,
  measure: Measure | None,
) -> list[dict[str, Any]]:
  """The points of one arm."""
  members = [
    Member(
      arguments=(("k", k),),
      seed=arm.seed + seed,
      learning_rate=config.rate(arm.n) * arm.rate,
      coefficient=coefficient,
    )
    for k in arm.k
    for coefficient in arm.coefficients
    for seed in range(seeds)
  ]
  make = lambda k: arm.make(k)
  made = train(folder, make, members, rows, config, stacked=arm.stacked)
  saes = [own.sae for own in made]
  found = reconstruction.evaluate_many(
    saes,
    chunks(rows.held_out),
    means=[rows.mean] * len(saes),
    frame="raw",
  )
  states = [own.state for own in made]
  trained = Trained(arm=arm, saes=saes, states=states, found=found, rows=rows)
  extra = measure(trained) if measure else [{}] * len(saes)
  points = []
  for own, metrics, more in zip(made, found, extra, strict=True):
    points.append(
      {
        "arm": arm.name,
        "n": arm.n,
        "k": own.member.k,
        "coefficient": own.member.coefficient,
        "seed": own.member.seed,
        "status": own.status,
        "seconds": round(own.seconds, 3),
        **metrics.record(),
        **arm.facts,
        **more,
      }
    )
  return points


def source(train: Batch, config: TrainConfig) -> sources.Source:
  """Passes over the rows, each in another order."""
  fields = {k: np.asarray(v) for k, v in vars(train).items() if v is not None}
  steps = config.total_steps(len(train.x))
  return sources.of_arrays(
    fields,
    steps,
    config.mesh,
    batch_rows=config.batch_rows,
    seed=config.seed,
    epochs=-(-steps * config.batch_rows // len(train.x)),
    sample_batches=True,
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
