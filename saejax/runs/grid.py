"""The grid of SAEs that a run trains, one group of equal n after the other.

The SAEs of a group, one for each value of the arguments that are swept and each
seed, are trained in one pass over the rows. A store that has the column target
trains transcoders, and methods that read more of a row than x take it from the
columns of the store. A group whose points.json is there is finished; the same
command resumes the others.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from saejax import durable, terminal
from saejax.data import loader
from saejax.data import mix as mixes
from saejax.data.batches import StoreBatches
from saejax.data.mix import Mix
from saejax.data.store import quality
from saejax.data.store.reader import Store
from saejax.evals import reconstruction
from saejax.recipes import arguments, catalogue, common
from saejax.runs import held_out, reading, stores
from saejax.runs.config import SAEConfig
from saejax.runs.shares import Shares
from saejax.sae import activations, files
from saejax.sae import prep as preps
from saejax.sae.sae import SAE
from saejax.training import log, loop
from saejax.training.members import Member
from saejax.training.recipe import Recipe

TRANSIENT = ("seconds", "group_seconds", "density")  # not kept with an SAE


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid:
  """A grid of SAEs and the rows they are trained and evaluated on.

  Attributes:
    path: the run folder.
    store: rows to train on, of a store or a mix.
    held_out: rows to evaluate on.
    sae: which SAEs.
    train: how they are trained.
    shares: measures how long training and evaluation take.
  """

  path: pathlib.Path
  store: Store | Mix
  held_out: Store
  sae: SAEConfig
  train: loop.TrainConfig
  shares: Shares = dataclasses.field(default_factory=Shares)

  def __post_init__(self):
    for store, _ in mixes.parts(self.store):
      quality.check_rows(store)
      stores.check_held_out(store, self.held_out)
      if self.sae.residual_of:
        stores.check_stage(store, self.sae.residual_of)
    held_out.check(self.held_out, self.columns)

  @functools.cached_property
  def reading(self) -> dict[str, Any]:
    """Arguments that fix the order in which the loader gives rows."""
    return reading.order(self.train)

  @functools.cached_property
  def total_steps(self) -> int:
    """Batches of each group's run."""
    if self.train.steps is not None:
      return self.train.steps
    return loader.count_batches(self.store, **self.reading)

  @property
  def prep(self) -> preps.Prep:
    """The prep of x, with the store's statistics; a recipe may have its own."""
    return _prep(self.sae, self.store.stats)

  @functools.cached_property
  def mean(self) -> np.ndarray:
    """Mean of the training rows, in the frame of the prep."""
    return reading.mean(self.prep, self.store)

  @property
  def target(self) -> common.Target | None:
    """What is reconstructed instead of x, where the store has the column."""
    if "target" not in self.columns:
      return None
    moments = self.store.moments["target"]
    width = self.store.columns["target"].shape[-1]
    return common.Target(d=width, prep=_prep(self.sae, moments))

  @property
  def columns(self) -> tuple[str, ...]:
    """The columns of the store that training reads."""
    return loader.fields(self.store)


def train(grid: Grid) -> list[dict[str, Any]]:
  """Trains and evaluates every SAE of the grid, a group of equal n at a time.

  Args:
    grid: the SAEs, their rows and the run folder; finished groups are read.

  Returns:
    One point per SAE: n, k, seed, learning_rate, status, tokens, seconds,
    group_seconds, the metrics of `evals.reconstruction` in the inference form,
    L0 and FVU in the training form at the training batch size, and `density`,
    the histogram.
  """
  for store, _ in mixes.parts(grid.store):
    for doubt in quality.warnings(store):
      terminal.say(f"warning: {doubt}")
  points: list[dict[str, Any]] = []
  for n in grid.sae.n:
    done = grid.path / f"n{n}" / "points.json"
    if not (done.exists() and _is_saved(grid, n)):
      with grid.shares.during("train"):
        trained = _train_group(grid, n)
      with grid.shares.during("evaluate"):
        found = _points(grid, n, trained)
      _save(grid, n, trained, found)
      durable.write_sealed(done, {"points": found}, field="run_dir")
    points += durable.read_sealed(
      done, field="run_dir", remedy="remove it and repeat the same command"
    )["points"]
  return points


def _train_group(grid: Grid, n: int) -> list[loop.Trained]:
  """Trains the members with n latents."""
  rated = held_out.sample(grid.held_out, grid.columns, grid.train.eval_rows)
  part = reading.part(grid.train)
  with StoreBatches(grid.store, **grid.reading, **part) as batches:
    try:
      return loop.train(
        lambda **swept: recipe(
          n,
          swept,
          d=grid.store.d,
          prep=grid.prep,
          target=grid.target,
          sae=grid.sae,
          train=grid.train,
          total_steps=grid.total_steps,
        ),
        members(n, grid.sae, grid.train),
        batches,
        config=grid.train,
        folder=grid.path / f"n{n}",
        total_steps=grid.total_steps,
        fingerprint=_fingerprint(grid, n),
        metric=lambda forms: float(
          np.mean([r.fvu for r in _as_trained(grid, forms, [rated])])
        ),
        provenance=grid.store.provenance,
      )
    except loop.NonFiniteError as error:
      raise SystemExit(f"error: n={n}: {error}") from error


def _points(
  grid: Grid, n: int, trained: Sequence[loop.Trained]
) -> list[dict[str, Any]]:
  """The settings and the held-out metrics of each member, in both forms."""
  rows = lambda: held_out.batches(grid.held_out, grid.columns)
  frame = _frame(grid, trained[0].sae)
  found = reconstruction.evaluate_many(
    [t.sae for t in trained],
    rows(),
    means=[_mean(grid, frame)] * len(trained),
    frame=frame,
  )
  before = _before(grid, trained, found, rows)
  points = [
    {
      "n": n,
      "k": t.member.k,
      "seed": t.member.seed,
      "learning_rate": t.member.learning_rate,
      "arguments": {**grid.sae.fixed, **dict(t.member.arguments)},
      "status": _status(t, metrics),
      "tokens": grid.total_steps * grid.train.batch_rows,
      "seconds": round(t.seconds, 3),
      "group_seconds": round(float(sum(t.seconds for t in trained)), 3),
      **{k: _finite(v) for k, v in metrics.record().items()},
      "training_l0": _finite(training.l0),
      "training_fvu": _finite(training.fvu),
      "density": metrics.histogram(),
      **_boosted_on(grid.sae),
    }
    for t, metrics, training in zip(trained, found, before, strict=True)
  ]
  for t, point in zip(trained, points, strict=True):
    if warning := reconstruction.form_warning(point):
      terminal.say(f"n{n}-{t.member.name}: {warning}")
  return points


def _before(
  grid: Grid,
  trained: Sequence[loop.Trained],
  found: Sequence[reconstruction.Reconstruction],
  rows: Callable[[], Iterable[Any]],
) -> list[reconstruction.Reconstruction]:
  """The metrics of the training forms.

  They are those of the inference forms where both are one function of a row,
  which saves compiling it for another size of batch.
  """
  if all(_is_one_form(t) for t in trained):
    return list(found)
  return _as_trained(grid, [(t.trained, t.stats) for t in trained], rows())


def _is_one_form(t: loop.Trained) -> bool:
  """Whether the inference form is the training form, a row at a time."""
  (ours, here), (theirs, there) = map(jax.tree.flatten, (t.sae, t.trained))
  return (
    isinstance(t.sae.activation, activations.TopK)
    and here == there
    and all(a is b for a, b in zip(ours, theirs, strict=True))
  )


def _boosted_on(sae: SAEConfig) -> dict[str, Any]:
  """The SAE on whose residual the others were trained, where there is one."""
  if not sae.residual_of:
    return {}
  folder = pathlib.Path(sae.residual_of)
  found = {"folder": str(folder.absolute()), "content": files.content(folder)}
  return {"residual_of": found}


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
  """The members with n latents: every combination of arguments and seed.

  Args:
    n: latents.
    sae: recipe, swept arguments and number of seeds.
    train: settings that give the learning rate at n.
  """
  rate = train.rate(n)
  if sae.recipe in catalogue.METHODS:
    rate *= catalogue.METHODS[sae.recipe].rate
  return [
    Member(seed=seed, learning_rate=rate, arguments=given)
    for given in sae.combinations
    for seed in range(sae.seeds)
  ]


def recipe(
  n: int,
  swept: Mapping[str, Any],
  *,
  d: int,
  prep: preps.Prep,
  target: common.Target | None = None,
  sae: SAEConfig,
  train: loop.TrainConfig,
  total_steps: int,
) -> Recipe:
  """The recipe that the flags select.

  Args:
    n: latents.
    swept: the arguments of this member.
    d: width of x.
    prep: of x, for recipes without one of their own.
    target: what is reconstructed instead of x.
    sae: the grid, with the other arguments.
    train: how it is trained.
    total_steps: of the run.
  """
  options = train.options(total_steps)
  if sae.prep == "default":
    options["defaults"]["prep"] = prep
  else:
    options["prep"] = prep
  if target is not None:
    options["target"] = target
  if sae.residual_of:
    options["residual_of"] = sae.residual_of
  given = {**sae.fixed, **swept}
  return arguments.make(sae.recipe, d=d, n=n, arguments=given, **options)


def _prep(sae: SAEConfig, stats: Mapping[str, Any]) -> preps.Prep:
  kind = "centre_scale" if sae.prep == "default" else sae.prep
  return preps.from_stats(kind, stats)


def _frame(grid: Grid, sae: SAE) -> str:
  """Where errors are measured: in the units of the model if the SAE has a prep
  of its own or another target, else in the frame of the run's prep.
  """
  own = jax.tree.structure(sae.prep) != jax.tree.structure(grid.prep) or any(
    not np.array_equal(a, b)
    for a, b in zip(
      jax.tree.leaves(sae.prep), jax.tree.leaves(grid.prep), strict=True
    )
  )
  return "raw" if own or sae.target_prep is not None else "prep"


def _mean(grid: Grid, frame: str) -> np.ndarray:
  """The mean of the training rows, or of their targets, in a frame."""
  if frame == "prep":
    return grid.mean
  if grid.target is not None:
    return np.asarray(grid.store.moments["target"]["mean"], np.float32)
  return np.asarray(grid.store.stats["mean"], np.float32)


def _as_trained(
  grid: Grid, forms, batches
) -> list[reconstruction.Reconstruction]:
  """Metrics of the training forms, in batches as large as in training."""
  frame = _frame(grid, forms[0][0])
  return reconstruction.evaluate_many(
    [sae for sae, _ in forms],
    batches,
    means=[_mean(grid, frame)] * len(forms),
    frame=frame,
    stats=[stats for _, stats in forms],
    batch_rows=grid.train.batch_rows,
  )


def _fingerprint(grid: Grid, n: int) -> dict[str, Any]:
  """Settings that a resumed group must share."""
  sae = grid.sae.decisive()
  del sae["n"]
  return {
    "n": n,
    "store": grid.store.content,
    "sae": sae,
    "train": grid.train.decisive(),
  }


def _finite(value: Any) -> Any:
  """None for numbers that JSON cannot hold."""
  if isinstance(value, float) and not np.isfinite(value):
    return None
  return value


def metrics(grid: Grid) -> dict[int, list[dict]]:
  """The metric records of each group, by n.

  Args:
    grid: a grid that was trained.
  """
  return {n: log.read(grid.path / f"n{n}") for n in grid.sae.n}
