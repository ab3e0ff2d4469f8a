"""`saejax.fit`: an SAE from rows in one call. `sweeps` has `saejax.fit_grid`."""

import contextlib
import io
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from saejax import compile_cache, processes, terminal
from saejax.errors import InputError
from saejax.evals import held_out as evaluation
from saejax.evals.reconstruction import Reconstruction
from saejax.recipes import arguments as recipe_arguments
from saejax.recipes import catalogue, common
from saejax.runs import inputs, sites
from saejax.sae import files
from saejax.sae import prep as preps
from saejax.sae.sae import SAE
from saejax.training import lock, loop
from saejax.training.config import TrainConfig
from saejax.training.members import Member
from saejax.training.recipe import Recipe

EXPANSION = 8  # latents over width, where n is not given


@compile_cache.enabled()
def fit(
  x: Any,
  recipe: str | Recipe | Callable[..., Recipe] = "topk",
  *,
  n: int | None = None,
  held_out: Any = None,
  steps: int | None = None,
  batch_rows: int = TrainConfig.batch_rows,
  learning_rate: float | None = None,
  prep: str = "centre_scale",
  seed: int = 0,
  mesh: tuple[int, int, int] | None = None,
  native: bool = False,
  run_dir: str | os.PathLike[str] | None = None,
  progress: bool = True,
  **arguments: Any,
) -> tuple[SAE, Reconstruction]:
  """Trains one SAE and evaluates it.

  Args:
    x: rows to train on: an array [rows, d], a `Batch` or mapping of fields, a
      `Store`, `Batches`, or an iterator of batches. Where they have a target,
      the target is reconstructed from x (a transcoder).
    recipe: a name of `recipes.catalogue`, "module:function", a function
      (d, n, ..., **options), or a built `Recipe`.
    n: latents; 8 d by default. Not beside a built recipe.
    held_out: rows to evaluate on; 5 % of an array are set aside where none are
      given. Stores and streams need them.
    steps: batches; one pass over the rows and at least 500 by default. Streams
      need them.
    batch_rows: rows per batch; a stream has its own.
    learning_rate: peak; by default the method's own, with Adam
      6e-3 (1024 / n)^1/2, at most 6e-3; a built recipe's is that of 8 d latents.
    prep: of x, see `sae.prep.from_stats`.
    seed: of the initial weights.
    mesh: devices: ensemble, data, latent; one device by default.
    native: on a CPU, C++ kernels, which the system's compiler makes at their
      first use; see `kernels.native`.
    run_dir: folder for checkpoints, metrics and event files: the same call
      resumes there exactly. Without one nothing is written.
    progress: whether a line on standard error shows it.
    **arguments: of the recipe, such as k; or residual_of, an SAE or the folder of
      one, on whose residual this one is trained (boosting).

  Returns:
    The inference form, and its metrics on the held-out rows.

  Raises:
    InputError: rows, sizes or arguments that cannot be trained, naming the one;
      or another process uses run_dir, or another run is in it.
    FloatingPointError: the loss or the weights became not finite.

  >>> import jax, saejax
  >>> x = jax.random.normal(jax.random.key(0), (2000, 16))
  >>> sae, found = saejax.fit(x, n=32, k=4, steps=50, batch_rows=256,
  ...                         progress=False)
  >>> sae.n, round(found.l0, 1), found.rows
  (32, 4.0, 100)
  """
  rows = inputs.given(x, held_out)
  named = {"": rows}
  config = settings(named, steps, batch_rows, prep, mesh, native)
  built = make_recipe(recipe, rows, n, config, prep, arguments)
  identity = {
    "recipe": recipe if isinstance(recipe, str) else built.name,
    "n": n or (None if isinstance(recipe, Recipe) else EXPANSION * rows.d),
    "arguments": recorded(recipe, arguments),
    "prep": prep,
  }
  rate = rate_of(recipe, learning_rate, n or EXPANSION * rows.d)
  ((trained, metrics),) = train(
    lambda: built,
    [Member(seed=seed, learning_rate=rate)],
    named,
    config,
    progress=progress,
    folder=run_dir,
    identity=lambda: {**identity, "rows": rows.content()},
  )
  return trained.sae, metrics


def settings(
  rows: Mapping[str, inputs.Rows],
  steps: int | None,
  batch_rows: int,
  prep: str,
  mesh: tuple[int, int, int] | None,
  native: bool,
  **more: Any,
) -> TrainConfig:
  """Returns the settings of a run, checked.

  Args:
    rows: from `sites.given`.
    steps, batch_rows, prep, mesh, native: as for `fit`.
    **more: further settings.

  Raises:
    InputError: one cannot be used; its name is that of the argument.
  """
  for name, value in (("steps", steps), ("batch_rows", batch_rows)):
    if value is not None and value < 1:
      raise InputError(name, value, "must be at least 1", "give 1 or more")
  steps = sites.steps(rows, batch_rows) if steps is None else steps
  if steps is None:
    rule = "must be given where x is a stream of batches"
    raise InputError("steps", None, rule, "give the number of batches")
  if prep not in preps.KINDS:
    known = ", ".join(preps.KINDS)
    raise InputError("prep", prep, f"must be one of {known}", "see sae.prep")
  return TrainConfig(
    steps=steps,
    batch_rows=batch_rows,
    mesh=mesh or (1, 1, 1),
    native=native,
    **more,
  )


def rate_of(recipe: Any, given: float | None, n: int) -> float:
  """Returns the peak learning rate, by default that of the method.

  Args:
    recipe: as for `fit`.
    given: the rate, or None.
    n: latents.

  Raises:
    InputError: the rate is not positive and finite.
  """
  if given is None:
    method = catalogue.METHODS.get(recipe) if isinstance(recipe, str) else None
    return TrainConfig().rate(n) * (1.0 if method is None else method.rate)
  if not 0 < given < float("inf"):
    rule = "must be positive and finite"
    raise InputError("learning_rate", given, rule, "such as 2e-3")
  return given


def make_recipe(
  recipe: str | Recipe | Callable[..., Recipe],
  rows: inputs.Rows,
  n: int | None,
  config: TrainConfig,
  prep: str,
  arguments: Mapping[str, Any],
) -> Recipe:
  """Builds the recipe with its arguments and the settings of the run.

  Args:
    recipe, n, prep: as for `fit`.
    rows: the rows of its site.
    config: from `settings`.
    arguments: of the recipe.

  Raises:
    InputError: an argument is refused, or given beside a built recipe.
  """
  if isinstance(recipe, Recipe):
    for name, value in (("n", n), *arguments.items()):
      if value is not None:
        raise built_error(name, value)
    return recipe
  options = config.options(config.total_steps(0))
  options["defaults"]["prep"] = preps.from_stats(prep, rows.stats)
  if (target := rows.target_stats) is not None:
    target_prep = preps.from_stats(prep, target)
    options["target"] = common.Target(d=len(target["mean"]), prep=target_prep)
  if "residual_of" in arguments:
    arguments = dict(arguments)
    options["residual_of"] = arguments.pop("residual_of")
  return recipe_arguments.make(
    recipe,
    d=rows.d,
    n=EXPANSION * rows.d if n is None else n,
    arguments=arguments,
    **options,
  )


def recorded(recipe: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the arguments as they are recorded: SAEs by their content.

  Args:
    recipe, arguments: as for `make_recipe`.
  """
  found = dict(arguments)
  saes = () if isinstance(recipe, Recipe) else recipe_arguments.saes(recipe)
  for name in arguments.keys() & {"residual_of", *saes}:
    leaves = jax.tree.leaves(files.loaded(arguments[name], name))
    found[name] = inputs.arrays_hash(dict(enumerate(leaves)))
  return found


def built_error(name: str, value: Any) -> InputError:
  """Returns the error of an argument beside a built recipe.

  Args:
    name: name of the argument.
    value: its value.
  """
  return InputError(
    name,
    value,
    "cannot be set beside a recipe that is already built",
    "set it where the recipe is built, or give the recipe's name",
  )


def train(
  make: Callable[..., Recipe],
  members: Sequence[Member],
  rows: Mapping[str, inputs.Rows],
  config: TrainConfig,
  *,
  progress: bool,
  folder: str | os.PathLike[str] | None = None,
  identity: Callable[[], Mapping[str, Any]] = dict,
) -> list[tuple[loop.Trained, Reconstruction]]:
  """Trains members on one reading of the rows and evaluates each.

  Args:
    make: from a member's arguments, by name, to the recipe.
    members: the members.
    rows: from `sites.given`.
    config: from `settings`.
    progress: whether a line on standard error shows it.
    folder: for checkpoints and metrics; None for none.
    identity: settings that must be equal on resume, where there is a folder.

  Returns:
    Each member after training, with its metrics on the rows of its site.

  Raises:
    FloatingPointError: rows or the losses of all members became not finite.
  """
  steps = config.total_steps(0)
  processes.agree({"run_dir": None if folder is None else str(folder)})
  source = sites.source(rows, config, steps)
  try:
    with contextlib.ExitStack() as stack:
      if folder is not None:
        processes.check_shared(folder)
        own = lock.RunLock(folder)
        processes.first(lambda: stack.enter_context(own))
      trained = loop.train(
        make,
        members,
        source,
        config=config,
        total_steps=steps,
        folder=folder,
        fingerprint=None if folder is None else identity(),
        stream=None if progress and processes.is_first() else io.StringIO(),
      )
  except loop.NonFiniteError as error:
    advice = "lower learning_rate" if error.rows_ok else "leave those rows out"
    raise FloatingPointError(f"{error}: {advice}") from error
  finally:
    source.close()
  found = []
  for own in trained:
    if own.status != "ok" and processes.is_first():
      terminal.say(f"warning: {own.member.name}: {own.status}: lower its rate")
    read = rows[own.member.site]
    metrics = evaluation.evaluate(own.sae, read.held_out, mean=read.mean)
    found.append((own, metrics))
  return found
