"""A run folder: one process, one set of flags, a grid of SAEs trained in it.

    run_dir/
      run.flags           every flag; --flagfile=run_dir/run.flags repeats it
      n512/               one group of members of equal shape, on one stream
        checkpoints/ metrics.jsonl events/ points.json
      saes/n512-k8-seed0/ a trained SAE, for saejax.load

A group whose points.json is there is finished; the same command goes on with
the others where they stopped.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import sys
import time
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from saejax import config as configs
from saejax import durable, terminal
from saejax.data import harvest, loader
from saejax.data.store.reader import Store
from saejax.data.text import subject
from saejax.errors import InputError
from saejax.evals import reading, reconstruction
from saejax.recipes import catalogue
from saejax.sae import files, prep
from saejax.terminal import say as say
from saejax.training import lock, log, loop
from saejax.training.members import Member
from saejax.training.parts import rules, schedules
from saejax.training.recipe import Recipe

SAMPLE_ROWS = 4096  # for the initial bias
FLAGS = "run.flags"
TRANSIENT = ("seconds", "group_seconds", "density")  # not kept with an SAE


@dataclasses.dataclass(frozen=True, kw_only=True)
class SAEConfig:
  """Which SAEs to train: every n with every k, coefficient and seed."""

  recipe: str = "topk"  # training method, a name of recipes.catalogue
  n: tuple[int, ...] = (1024,)  # latents; each n is a group of its own
  k: tuple[int, ...] = (16,)  # latents kept in a row, where a method has a k
  coefficients: tuple[float, ...] = ()  # factors of its penalty, if it has one
  seeds: int = 1  # SAEs of each of these, from seeds 0, 1, ...
  prep: Literal[
    "none", "centre_scale", "scale", "scale_sqrt_d", "row_layer_norm"
  ] = "centre_scale"  # of x
  k_aux: int = 0  # dead latents kept in a row by AuxK; 0: d/2, at most n/16
  aux_weight: float = 1 / 32  # of the AuxK term

  def __post_init__(self):
    if self.recipe not in catalogue.METHODS:
      raise InputError(
        "recipe",
        self.recipe,
        f"must be one of {', '.join(catalogue.METHODS)}",
        "such as topk",
      )
    for field in ("n", "k"):
      values = getattr(self, field)
      if not values or min(values) < 1 or len(set(values)) < len(values):
        raise InputError(
          field,
          ",".join(map(str, values)),
          "must be different numbers of at least 1",
          "such as 512,1024",
        )
    if self.sweeps == catalogue.K and max(self.k) > min(self.n):
      raise InputError(
        "k",
        max(self.k),
        f"must be in [1, n={min(self.n)}]",
        "lower k or raise the smallest n",
      )
    if self.coefficients and self.sweeps != catalogue.COEFFICIENT:
      raise InputError(
        "coefficients",
        self.coefficients,
        f"{self.recipe} has no penalty to sweep",
        "leave them out",
      )
    for field, least in (("seeds", 1), ("k_aux", 0), ("aux_weight", 0.0)):
      if getattr(self, field) < least:
        raise InputError(
          field, getattr(self, field), f"must be at least {least}", "raise it"
        )

  @property
  def sweeps(self) -> str:
    """What moves L0 of the method."""
    return catalogue.METHODS[self.recipe].sweeps


@contextlib.contextmanager
def folder(run_dir: str, config: Any) -> Iterator[pathlib.Path]:
  """The run folder, locked, its flags written, or refused.

  Raises:
    InputError: another process uses it, or a run with other flags is in it.
  """
  path = pathlib.Path(run_dir)
  with lock.RunLock(path):
    flags = path / FLAGS
    draft = path / f".{FLAGS}.draft"
    configs.write(draft, config)
    if flags.exists() and flags.read_text() != draft.read_text():
      theirs, ours = (set(f.read_text().splitlines()) for f in (flags, draft))
      draft.unlink()
      differing = sorted(theirs - ours) or sorted(ours - theirs)
      raise InputError(
        "run_dir",
        run_dir,
        f"holds a run with other flags ({', '.join(differing)[:120]})",
        f"name another run_dir, or repeat that run with --flagfile={flags}",
      )
    os.replace(draft, flags)
    yield path


def train_grid(
  path: pathlib.Path,
  store: Store,
  held_out: Store,
  sae: SAEConfig,
  train: loop.TrainConfig,
) -> list[dict[str, Any]]:
  """Trains and evaluates every SAE of the grid, a group of equal n at a time.

  Args:
    path: the run folder.
    store: rows to train on.
    held_out: rows to evaluate on.
    sae: the grid.
    train: how.

  Returns:
    One point an SAE: n, k, seed, learning_rate, status, tokens, seconds,
    group_seconds, the metrics of `evals.reconstruction`, and `density`, its
    histogram.
  """
  if store.d != held_out.d:
    raise InputError(
      "held_out",
      held_out.path,
      f"must have rows of d={store.d} as the training store, has {held_out.d}",
      "name the held-out store of the same harvest",
    )
  points: list[dict[str, Any]] = []
  for n in sae.n:
    done = path / f"n{n}" / "points.json"
    if not done.exists():
      found = _train_group(path, n, store, held_out, sae, train)
      text = json.dumps(found) + "\n"
      durable.write_file(done, text.encode(), field="run_dir")
    points += json.loads(done.read_text())
  return points


def _train_group(path, n, store, held_out, sae, train) -> list[dict[str, Any]]:
  """Trains the members with n latents, saves and evaluates them."""
  folder = path / f"n{n}"
  total_steps = loader.count_batches(
    store,
    batch_rows=train.batch_rows,
    seed=train.seed,
    epochs=train.epochs,
    window_chunks=train.window_chunks,
  )
  batches = iter(
    loader.batches(
      store,
      batch_rows=train.batch_rows,
      seed=train.seed,
      epochs=train.epochs,
      window_chunks=train.window_chunks,
    )
  )
  sample = np.asarray(spread_rows(store, SAMPLE_ROWS), np.float32)
  # Bad rows are the step's to report; the initial bias must not be one.
  sample = sample[np.isfinite(sample).all(axis=-1)]
  rated = spread_rows(held_out, train.eval_rows)
  framed = prep.from_stats(sae.prep, store.stats)
  mean = reconstruction.frame_mean(framed, store)
  try:
    trained = loop.train(
      partial(recipe, n, store, sae, train, total_steps),
      grid_members(n, sae, train),
      batches,
      config=train,
      folder=folder,
      total_steps=total_steps,
      sample=sample,
      fingerprint=_fingerprint(n, store, sae, train),
      metric=lambda saes: float(
        np.mean([r.nmse for r in evaluate(saes, [rated], mean)])
      ),
      provenance=store.provenance,
    )
  except loop.NonFiniteError as error:
    raise SystemExit(f"error: n={n}: {error}") from error
  finally:
    close = getattr(batches, "close", None)
    if close:
      close()
  found = evaluate(
    [t.sae for t in trained],
    (x for _, x in reading.batches(held_out)),
    mean,
  )
  points = []
  for t, metrics in zip(trained, found, strict=True):
    point = {
      "n": n,
      "k": t.member.k,
      "coefficient": t.member.coefficient,
      "seed": t.member.seed,
      "learning_rate": t.member.learning_rate,
      "status": t.status,
      "tokens": total_steps * train.batch_rows,
      "seconds": round(t.seconds, 3),
      "group_seconds": round(float(sum(t.seconds for t in trained)), 3),
      **{k: finite(v) for k, v in metrics.record().items()},
      "density": metrics.histogram(),
    }
    points.append(point)
    files.save(
      t.sae,
      path / "saes" / f"n{n}-{t.member.name}",
      about={
        **{k: v for k, v in point.items() if k not in TRANSIENT},
        "model": store.meta.get("model"),
        "site": store.meta.get("site"),
        "held_out": str(held_out.path),
      },
    )
  return points


def grid_members(
  n: int, sae: SAEConfig, train: loop.TrainConfig
) -> list[Member]:
  """The members with n latents: every k with every seed."""
  rate = schedules.learning_rate_for(
    n,
    base=train.learning_rate,
    base_n=train.learning_rate_n,
    exponent=train.learning_rate_exponent,
  )
  rate *= catalogue.METHODS[sae.recipe].rate
  ks = sae.k if sae.sweeps == catalogue.K else (0,)
  return [
    Member(k=k, seed=seed, learning_rate=rate, coefficient=coefficient)
    for k in ks
    for coefficient in sae.coefficients or (1.0,)
    for seed in range(sae.seeds)
  ]


def recipe(
  n: int,
  store: Store,
  sae: SAEConfig,
  train: loop.TrainConfig,
  total_steps: int,
  k: int,
) -> Recipe:
  """The recipe that the flags say, for rows of a store."""
  tokens = total_steps * train.batch_rows
  setting = catalogue.Setting(
    d=store.d,
    n=n,
    steps=total_steps,
    options={
      "dead_after_tokens": train.dead_after_tokens or rules.dead_after(tokens),
      "prep": prep.from_stats(sae.prep, store.stats),
      "schedule": schedules.warmup_decay(
        total_steps,
        warmup_steps=train.warmup_steps,
        decay_fraction=train.decay_fraction,
      ),
      "clip_norm": train.clip_norm,
      "ema_decay": train.ema_decay,
      "dtype": train.dtype,
      "k_aux": sae.k_aux or None,
      "aux_weight": sae.aux_weight,
    },
    batch_rows=train.batch_rows,
  )
  return catalogue.recipe(sae.recipe, setting, k)


def evaluate(saes, batches, mean) -> list[reconstruction.Reconstruction]:
  """Metrics of SAEs that share a prep, on one reading of the rows."""
  return reconstruction.evaluate_many(saes, batches, means=[mean] * len(saes))


def spread_rows(store: Store, rows: int, blocks: int = 16) -> np.ndarray:
  """About `rows` rows of a store, in blocks spread evenly over it."""
  if store.rows <= rows:
    return np.concatenate([store.read(a, b) for a, b in store.intervals])
  chunks = store.chunks
  picks = sorted({round(i) for i in np.linspace(0, len(chunks) - 1, blocks)})
  each = -(-rows // len(picks))
  parts = []
  for i in picks:
    first, last = chunks[i]
    parts.append((first, min(first + each, last)))
  return np.concatenate(store.read_many(parts))[:rows]


def harvest_stores(
  config: harvest.HarvestConfig, source: subject.Subject | None = None
) -> tuple[Store, Store]:
  """The training and the held-out store, with progress on standard error."""
  screen = terminal.Screen(sys.stderr)
  shown = 0.0

  def progress(state: Mapping[str, Any]) -> None:
    nonlocal shown
    now = time.monotonic()
    pause = 0.2 if screen.is_terminal else 10.0
    if not state["complete"] and now - shown < pause:
      return
    shown = now
    rows, wanted = state["rows"], state["rows_wanted"]
    rate = state["rows_per_second"]
    left = (wanted - rows) / rate if rate else float("inf")
    screen.status(
      [
        f"harvest {state['phase']}: {rows:,}/{wanted:,} rows",
        f"{terminal.count(rate)} rows/s",
        "complete" if state["complete"] else f"ETA {terminal.duration(left)}",
        f"dropped {sum(state['dropped'].values()):,} tokens",
      ]
    )

  try:
    return harvest.harvest(config, source=source, progress=progress)
  finally:
    screen.end()


def preflight(
  rows: int,
  d: int,
  sae: SAEConfig,
  train: loop.TrainConfig,
  *,
  harvest_layers: int = 0,
) -> str:
  """The line that says what a run will take, its rate timed on a matmul here.

  Args:
    rows: training rows.
    d: their width.
    sae: the grid.
    train: how it is trained.
    harvest_layers: transformer layers that each row is still to go through,
      taken as 12 d^2 parameters each; 0 where the rows are there.
  """
  count = len(grid_members(sae.n[0], sae, train))
  pairs = sum(2 * n * d for n in sae.n)
  # A sparse step costs about twice its encoder's matmul.
  flops = rows * (
    2 * 12 * d**2 * harvest_layers + train.epochs * 2 * count * pairs
  )
  largest = count * 2 * max(sae.n) * d
  return terminal.preflight(
    rows=rows,
    disk_bytes=rows * (2 * d + 16),
    parameters=count * sum(2 * n * d + n + d for n in sae.n),
    seconds=flops / _matmul_flops(),
    # Weights, two moments, gradients and a checkpoint's copy of the first
    # three; pre-activations of a batch; JAX itself and windows of rows.
    memory_bytes=7 * 4 * largest + 4 * train.batch_rows * max(sae.n) + 10**9,
  )


def _matmul_flops(size: int = 1024) -> float:
  """Operations a second of a float32 matmul on the default device."""
  a = jnp.ones((size, size))
  multiply = jax.jit(lambda a: a @ a)
  multiply(a).block_until_ready()
  best = float("inf")
  for _ in range(3):
    start = time.perf_counter()
    multiply(a).block_until_ready()
    best = min(best, time.perf_counter() - start)
  return 2 * size**3 / best


def _fingerprint(n, store, sae, train) -> dict[str, Any]:
  """Settings that a resumed group must share."""
  same = dataclasses.asdict(train)
  for cadence in ("log_steps", "mesh"):
    del same[cadence]
  grid = dataclasses.asdict(sae)
  del grid["n"]
  return {"n": n, "store": store.path.name, "sae": grid, "train": same}


def finite(value: Any) -> Any:
  """None for numbers that JSON cannot hold."""
  if isinstance(value, float) and not np.isfinite(value):
    return None
  return value


def describe(store: Store, held_out: Store) -> dict[str, Any]:
  """Facts about the rows of a run, for its results."""
  return {
    "model": store.meta.get("model"),
    "site": store.meta.get("site"),
    "corpus": store.meta.get("corpus"),
    "train": {"store": str(store.path), "rows": store.rows},
    "held_out": {"store": str(held_out.path), "rows": held_out.rows},
  }


def metrics(path: pathlib.Path, sae: SAEConfig) -> dict[int, list[dict]]:
  """The metric records of each group, by n."""
  return {n: log.read(path / f"n{n}") for n in sae.n}
