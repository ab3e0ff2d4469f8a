"""`saejax.fit` and `saejax.fit_grid`: SAEs from rows in one call."""

import dataclasses
import itertools
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from saejax import terminal
from saejax.data import streams
from saejax.errors import InputError
from saejax.evals import held_out as evaluation
from saejax.evals.reconstruction import Reconstruction
from saejax.recipes import arguments as recipe_arguments
from saejax.recipes import catalogue
from saejax.runs import inputs
from saejax.sae import prep as preps
from saejax.sae.sae import SAE
from saejax.training import sharding
from saejax.training.members import Group, Member
from saejax.training.parts import rules, schedules
from saejax.training.recipe import Recipe
from saejax.training.rows import Stream

LEARNING_RATE = 2e-3  # peak, of methods that Adam trains
WARMUP_STEPS, DECAY = 10, 0.2  # of methods without a schedule of their own
CLIP_NORM = 1.0  # likewise
EXPANSION = 8  # latents over width, where n is not given
DISPATCH_STEPS = 50  # steps between two looks at the metrics


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
  """One SAE of `fit_grid`.

  Attributes:
    sae: its inference form.
    metrics: on the held-out rows.
    n: latents.
    seed: of the initial weights.
    arguments: of the recipe.
  """

  sae: SAE
  metrics: Reconstruction
  n: int
  seed: int
  arguments: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Run:
  """Settings of a run, the same for all its SAEs."""

  steps: int
  batch_rows: int
  learning_rate: float | None
  prep: str
  mesh: tuple[int, int, int]
  progress: bool
  order_seed: int = 0


def fit(
  x: Any,
  recipe: str | Recipe | Callable[..., Recipe] = "topk",
  *,
  n: int | None = None,
  held_out: Any = None,
  steps: int | None = None,
  batch_rows: int = 2048,
  learning_rate: float | None = None,
  prep: str = "centre_scale",
  seed: int = 0,
  mesh: tuple[int, int, int] | None = None,
  run_dir: str | os.PathLike[str] | None = None,
  progress: bool = True,
  **arguments: Any,
) -> tuple[SAE, Reconstruction]:
  """Trains one SAE and evaluates it.

  Args:
    x: rows to train on: an array [rows, d], a `Batch` or mapping of fields, a
      `Store`, `Batches`, or an iterator of batches.
    recipe: a name of `recipes.catalogue`, "module:function", a function
      (d, n, ..., **options), or a built `Recipe`.
    n: latents; 8 d by default. Not beside a built recipe.
    held_out: rows to evaluate on; 5 % of an array are set aside where none are
      given. Stores and streams need them.
    steps: batches; one pass over the rows and at least 500 by default. Streams
      need them.
    batch_rows: rows per batch; a stream has its own.
    learning_rate: peak; the method's own by default (2e-3 with Adam).
    prep: of x, see `sae.prep.from_stats`.
    seed: of the initial weights.
    mesh: devices: ensemble, data, latent; one device by default.
    run_dir: folder for checkpoints, metrics and event files: the same call
      resumes there exactly. Without one nothing is written.
    progress: whether a line on standard error shows it.
    **arguments: of the recipe, such as k.

  Returns:
    The inference form, and its metrics on the held-out rows.

  Raises:
    InputError: rows, sizes or arguments that cannot be trained, naming the one.
    FloatingPointError: the loss or the weights became not finite.

  >>> import jax, saejax
  >>> x = jax.random.normal(jax.random.key(0), (2000, 16))
  >>> sae, found = saejax.fit(x, n=32, k=4, steps=50, batch_rows=256,
  ...                         progress=False)
  >>> sae.n, round(found.l0, 1), found.rows
  (32, 4.0, 100)
  """
  rows = inputs.given(x, held_out)
  run = _run(rows, steps, batch_rows, learning_rate, prep, mesh, progress)
  built = _recipe(recipe, rows, n, run, arguments)
  group = _Group(built, run, recipe, [seed])
  if run_dir is None:
    ((sae, metrics),) = _train([group], rows, run)[0]
    return sae, metrics
  from saejax.runs import resumable  # Orbax, where there is a folder

  named = recipe if isinstance(recipe, str) else built.name
  settings = {"recipe": named, "n": group.group.n, "arguments": arguments}
  sae = resumable.train(
    built,
    group.group.members,
    rows.batches(batch_rows=run.batch_rows, steps=run.steps, seed=0),
    run_dir=run_dir,
    steps=run.steps,
    batch_rows=run.batch_rows,
    mesh=run.mesh,
    progress=progress,
    identity={**settings, "prep": prep, "rows": rows.content()},
  )
  return sae, evaluation.evaluate(sae, rows.held_out, mean=rows.mean)


def fit_grid(
  x: Any,
  recipe: str | Callable[..., Recipe] = "topk",
  *,
  n: int | Sequence[int],
  seeds: int = 1,
  held_out: Any = None,
  steps: int | None = None,
  batch_rows: int = 2048,
  learning_rate: float | None = None,
  prep: str = "centre_scale",
  mesh: tuple[int, int, int] | None = None,
  progress: bool = True,
  **lists: Any,
) -> list[Trained]:
  """Trains every combination of arguments in one pass over the rows.

  Args:
    x, recipe, held_out, steps, batch_rows, learning_rate, prep, mesh, progress:
      see `fit`; the recipe is not a built one.
    n: latents, one number or several.
    seeds: SAEs of each combination, from seeds 0, 1, ...
    **lists: arguments of the recipe; a list is swept, anything else is fixed.

  Returns:
    One entry per SAE: by n, then the combinations in order, then seeds.

  Raises:
    InputError, FloatingPointError: as `fit`.

  >>> import jax, saejax
  >>> x = jax.random.normal(jax.random.key(0), (2000, 16))
  >>> saes = saejax.fit_grid(x, n=32, k=[2, 4], steps=20, batch_rows=256,
  ...                        progress=False)
  >>> [(t.arguments["k"], t.sae.n) for t in saes]
  [(2, 32), (4, 32)]
  """
  if isinstance(recipe, Recipe):
    raise _built("recipe", recipe.name)
  if seeds < 1:
    raise InputError("seeds", seeds, "must be at least 1", "give 1 or more")
  rows = inputs.given(x, held_out)
  run = _run(rows, steps, batch_rows, learning_rate, prep, mesh, progress)
  swept = {k: v if isinstance(v, list) else [v] for k, v in lists.items()}
  combinations = [
    (size, dict(zip(swept, values, strict=True)))
    for size in ([n] if isinstance(n, int) else list(n))
    for values in itertools.product(*swept.values())
  ]
  groups = [
    _Group(_recipe(recipe, rows, size, run, own), run, recipe, range(seeds))
    for size, own in combinations
  ]
  return [
    Trained(sae=sae, metrics=metrics, n=size, seed=seed, arguments=own)
    for (size, own), saes in zip(
      combinations, _train(groups, rows, run), strict=True
    )
    for seed, (sae, metrics) in enumerate(saes)
  ]


def _run(rows, steps, batch_rows, learning_rate, prep, mesh, progress) -> _Run:
  """The settings of a run, checked."""
  steps = rows.steps(batch_rows) if steps is None else steps
  if steps is None:
    rule = "must be given where x is a stream of batches"
    raise InputError("steps", None, rule, "give the number of batches")
  for name, value in (("steps", steps), ("batch_rows", batch_rows)):
    if value < 1:
      raise InputError(name, value, "must be at least 1", "give 1 or more")
  if prep not in preps.KINDS:
    known = ", ".join(preps.KINDS)
    raise InputError("prep", prep, f"must be one of {known}", "see sae.prep")
  if learning_rate is not None and not 0 < learning_rate < float("inf"):
    rule = "must be positive and finite"
    raise InputError("learning_rate", learning_rate, rule, "such as 2e-3")
  return _Run(
    steps=steps,
    batch_rows=batch_rows,
    learning_rate=learning_rate,
    prep=prep,
    mesh=mesh or (1, 1, 1),
    progress=progress,
  )


def _recipe(recipe, rows: inputs.Rows, n, run: _Run, arguments) -> Recipe:
  """The recipe with its arguments and the settings of the run."""
  if isinstance(recipe, Recipe):
    for name, value in (("n", n), *arguments.items()):
      if value is not None:
        raise _built(name, value)
    return recipe
  prep = preps.from_stats(run.prep, rows.stats)
  return recipe_arguments.make(
    recipe,
    d=rows.d,
    n=EXPANSION * rows.d if n is None else n,
    arguments=arguments,
    dead_after_tokens=rules.dead_after(run.steps * run.batch_rows),
    steps=run.steps,
    batch_rows=run.batch_rows,
    defaults={
      "prep": prep,
      "schedule": schedules.warmup_decay(
        run.steps,
        warmup_steps=min(WARMUP_STEPS, run.steps // 10),
        decay_fraction=DECAY,
      ),
      "clip_norm": CLIP_NORM,
    },
  )


def _built(name: str, value: Any) -> InputError:
  return InputError(
    name,
    value,
    "cannot be set beside a recipe that is already built",
    "set it where the recipe is built, or give the recipe's name",
  )


class _Group:
  """The SAEs of one recipe: their programs and their states."""

  def __init__(self, recipe: Recipe, run: _Run, named: Any, seeds):
    rate = run.learning_rate
    if rate is None:
      method = catalogue.METHODS.get(named) if isinstance(named, str) else None
      rate = LEARNING_RATE * (1.0 if method is None else method.rate)
    members = [Member(seed=s, learning_rate=rate) for s in seeds]
    mesh = sharding.make_mesh(run.mesh)
    self.recipe = recipe
    self.group = Group(
      lambda: recipe,
      members,
      mesh=mesh,
      stacked=recipe.coupling is not None or mesh.shape["ensemble"] > 1,
    )
    sharding.check(
      mesh, n=self.group.n, batch_rows=run.batch_rows, members=len(members)
    )


def _train(
  groups: Sequence[_Group], rows: inputs.Rows, run: _Run
) -> list[list[tuple[SAE, Reconstruction]]]:
  """The SAEs of each group with their metrics, on one reading of the rows."""
  for g in groups:
    g.group.check(rows.fields)
  batches = rows.batches(
    batch_rows=run.batch_rows, steps=run.steps, seed=run.order_seed
  )
  source = Stream(batches)
  sample = source.sample(4096)
  states: Any = [g.group.init(sample) for g in groups]
  advance = _advance_drawn if _fits(rows, run) else _advance_read
  screen, shown = terminal.Screen(sys.stderr), 0.0
  try:
    for done, reached, metrics in advance(groups, states, rows, batches, run):
      states = reached
      _check_finite(metrics, done)
      now = time.monotonic()
      pause = 0.2 if screen.is_terminal else 10.0
      if run.progress and (now - shown > pause or done == run.steps):
        shown = now
        screen.status(_fields(done, run.steps, metrics))
  finally:
    screen.end()
    getattr(batches, "close", lambda: None)()
  results = []
  for g, state in zip(groups, states, strict=True):
    saes = g.group.saes(state, source)
    metrics = [
      evaluation.evaluate(s, rows.held_out, mean=rows.mean) for s in saes
    ]
    results.append(list(zip(saes, metrics, strict=True)))
  return results


def _fits(rows: inputs.Rows, run: _Run) -> bool:
  """Whether batches are drawn on the device, inside the compiled program."""
  return rows.arrays is not None and run.mesh == (1, 1, 1)


def _advance_drawn(groups, states, rows, batches, run: _Run):
  """Several steps a dispatch on rows that lie on the device."""
  del batches
  count = len(rows.arrays["x"])
  draw = streams.array_draw(
    inputs.on_device(rows),
    batch_rows=run.batch_rows,
    seed=run.order_seed,
    epochs=-(-run.steps * run.batch_rows // count),
  )
  done = 0
  while done < run.steps:
    stop = min(done + DISPATCH_STEPS, run.steps)
    moved = [
      g.group.run_drawn(state, draw, done, stop)
      for g, state in zip(groups, states, strict=True)
    ]
    states, done = [state for state, _ in moved], stop
    yield done, states, [metrics for _, metrics in moved]


def _advance_read(groups, states, rows, batches, run: _Run):
  """A step a dispatch on batches of a stream."""
  del rows
  for done in range(1, run.steps + 1):
    batch = next(batches, None)
    if batch is None:
      rule = f"the stream ended after {done - 1} batches"
      raise InputError(
        "steps", run.steps, rule, "lower it or give more batches"
      )
    moved = []
    for g, state in zip(groups, states, strict=True):
      state, metrics, _ = g.group.run(state, [g.group.put(batch)])
      last = {k: v[-1] for k, v in g.group.by_member(metrics).items()}
      moved.append((state, last))
    states = [state for state, _ in moved]
    yield done, states, [metrics for _, metrics in moved]


def _check_finite(
  metrics: Sequence[Mapping[str, np.ndarray]], done: int
) -> None:
  for own in metrics:
    if not np.all(own["rows_ok"]):
      raise FloatingPointError(
        f"a batch before step {done} held rows that are not finite: leave them "
        "out"
      )
    if not np.all(own["alive"]):
      raise FloatingPointError(
        f"the loss or its gradient was not finite before step {done}: lower "
        "learning_rate"
      )


def _fields(done: int, steps: int, metrics) -> list[str]:
  """The parts of the progress line."""
  mean = lambda name: float(np.mean([np.mean(m[name]) for m in metrics]))
  return [
    f"step {done:,}/{steps:,} ({done / steps:.0%})",
    f"loss {mean('loss'):.4g}",
    f"L0 {mean('l0'):.4g}",
  ]
