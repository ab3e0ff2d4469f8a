"""`saejax.fit_grid`: many SAEs from one reading of the rows, in one call."""

import dataclasses
import functools
import itertools
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from saejax import compile_cache, processes
from saejax.errors import InputError
from saejax.evals.reconstruction import Reconstruction
from saejax.runs import fitting, sites
from saejax.sae import files
from saejax.sae.sae import SAE
from saejax.training import loop
from saejax.training.config import TrainConfig
from saejax.training.members import Member
from saejax.training.recipe import Recipe

SAES = "saes"  # folder of the SAEs in that of a run

Method = str | Callable[..., Recipe]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
  """One SAE of `fit_grid`.

  Attributes:
    sae: its inference form; of the last good weights where it diverged.
    metrics: on the held-out rows of its site.
    status: "ok", or "diverged at step s": its loss or gradient was not finite.
    n: latents.
    seed: of the initial weights.
    learning_rate: peak.
    recipe: the method, as it was given.
    site: name of the site; empty where there is one.
    arguments: of the recipe.
  """

  sae: SAE
  metrics: Reconstruction
  status: str
  n: int
  seed: int
  learning_rate: float
  recipe: Method
  site: str
  arguments: Mapping[str, Any]


@compile_cache.enabled()
def fit_grid(
  x: Any,
  recipe: Method | Sequence[Method] = "topk",
  *,
  n: int | Sequence[int],
  seeds: int = 1,
  held_out: Any = None,
  steps: int | None = None,
  batch_rows: int = TrainConfig.batch_rows,
  learning_rate: float | Sequence[float] | None = None,
  prep: str = "centre_scale",
  mesh: tuple[int, int, int] | None = None,
  native: bool = False,
  members: Literal["auto", "in_turn", "stacked"] = "auto",
  run_dir: str | os.PathLike[str] | None = None,
  progress: bool = True,
  **lists: Any,
) -> list[Trained]:
  """Trains every combination of arguments in one pass over the rows.

  Members of equal shape that differ in seed, learning rate, k, the coefficient
  of the sparsity or the site can be stacked: one vmapped program trains them.

  Args:
    x: rows as for `fit`, or `Sites`: every combination is trained at each.
    recipe: a method as for `fit`, but not a built one; or a list of methods.
    n: latents, one number or several.
    seeds: SAEs of each combination, from seeds 0, 1, ...
    held_out: as for `fit`; for `Sites` a mapping from site to rows.
    steps, batch_rows, prep, mesh, native, progress: see `fit`.
    learning_rate: peak, one number or several; see `fit` for the default.
    members: whether they are stepped in turn or stacked; "auto": in turn on a
      CPU, stacked on accelerators and where the mesh has an ensemble axis.
    run_dir: folder for checkpoints, the metrics of each SAE by its name, and
      the SAEs in `saes/`: the same call resumes there exactly. The name of one
      that diverged ends in "-diverged".
    **lists: arguments of the recipes; a list is swept, anything else is fixed.

  Returns:
    One entry per SAE: by site, then n, recipe, the combinations in order,
    learning rate, seed. An SAE that diverges is frozen, and the others are what
    they are without it; a line on standard error names it.

  Raises:
    InputError: as `fit`.
    FloatingPointError: rows are not finite, or every SAE diverged.

  >>> import jax, saejax
  >>> x = jax.random.normal(jax.random.key(0), (2000, 16))
  >>> saes = saejax.fit_grid(x, n=32, k=[2, 4], steps=20, batch_rows=256,
  ...                        progress=False)
  >>> [(t.arguments["k"], t.sae.n) for t in saes]
  [(2, 32), (4, 32)]
  """
  recipes = list(recipe) if isinstance(recipe, list | tuple) else [recipe]
  for one in recipes:
    if isinstance(one, Recipe):
      raise fitting.built_error("recipe", one.name)
  if seeds < 1:
    raise InputError("seeds", seeds, "must be at least 1", "give 1 or more")
  rows = sites.given(x, held_out)
  config = fitting.settings(
    rows, steps, batch_rows, prep, mesh, native, members=members
  )
  arguments = {k: v if isinstance(v, list) else [v] for k, v in lists.items()}
  sizes = [n] if isinstance(n, int) else list(n)
  swept = {"n": sizes, "recipe": recipes, **arguments}
  rates = learning_rate if isinstance(learning_rate, list | tuple) else None
  sweep = _Sweep(rows, config, prep, swept)
  made = [
    (
      own,
      Member(
        seed=seed,
        learning_rate=fitting.rate_of(own["recipe"], rate, own["n"]),
        arguments=sweep.shown(place),
        site=site,
        label=f"rate={rate:g}" if rates and len(rates) > 1 else "",
      ),
    )
    for site in rows
    for place, own in sweep.combinations
    for rate in (rates or [learning_rate])
    for seed in range(seeds)
  ]
  sweep.check()
  found = fitting.train(
    sweep.recipe,
    [member for _, member in made],
    rows,
    config,
    progress=progress,
    folder=run_dir,
    identity=sweep.identity,
  )
  trained = [
    Trained(
      sae=one.sae,
      metrics=metrics,
      status=one.status,
      n=own["n"],
      seed=member.seed,
      learning_rate=member.learning_rate,
      recipe=own["recipe"],
      site=member.site,
      arguments={name: own[name] for name in lists},
    )
    for (own, member), (one, metrics) in zip(made, found, strict=True)
  ]
  if run_dir is not None:
    folder = pathlib.Path(run_dir)
    processes.first(lambda: _save(folder, found, trained))
  return trained


@dataclasses.dataclass(frozen=True, eq=False)
class _Sweep:
  """The combinations of a sweep, and the recipe of each.

  Attributes:
    rows: of each site.
    config: how they are trained.
    prep: kind of the prep.
    swept: values of each argument by name, with n and the recipe.
  """

  rows: Mapping[str, Any]
  config: TrainConfig
  prep: str
  swept: Mapping[str, Sequence[Any]]

  @property
  def combinations(self) -> list[tuple[tuple[int, ...], dict[str, Any]]]:
    """The place of each value among those of its argument, and the values."""
    places = itertools.product(*(range(len(v)) for v in self.swept.values()))
    return [
      (
        place,
        {
          name: v[i]
          for (name, v), i in zip(self.swept.items(), place, strict=True)
        },
      )
      for place in places
    ]

  def shown(self, place: Sequence[int]) -> tuple[tuple[str, Any], ...]:
    """The arguments in which members differ, as values that have a hash.

    Args:
      place: place of each value.
    """
    return tuple(
      (name, _shown(values, i))
      for (name, values), i in zip(self.swept.items(), place, strict=True)
      if len(values) > 1 or name == "k"
    )

  def check(self) -> None:
    """Makes every recipe, so that one is refused before anything is trained.

    Raises:
      InputError: the arguments of one cannot be used.
    """
    for site in self.rows:
      own = {"site": site} if site else {}
      for place, _ in self.combinations:
        self.recipe(**own, **dict(self.shown(place)))

  def recipe(self, **own: Any) -> Recipe:
    """The recipe of a member.

    Args:
      **own: from `shown`, or other values of these arguments; and the site.
    """
    return self._recipe(tuple(sorted(own.items(), key=lambda item: item[0])))

  @functools.cached_property
  def _recipe(self) -> Callable[..., Recipe]:
    known = {
      (name, _shown(values, i)): value
      for name, values in self.swept.items()
      for i, value in enumerate(values)
    }
    fixed = {name: values[0] for name, values in self.swept.items()}

    @functools.cache
    def made(own: tuple[tuple[str, Any], ...]) -> Recipe:
      given = {**fixed, **{name: known.get((name, v), v) for name, v in own}}
      rows = self.rows[given.pop("site", "")]
      recipe, n = given.pop("recipe"), given.pop("n")
      return fitting.make_recipe(recipe, rows, n, self.config, self.prep, given)

    return made

  def identity(self) -> dict[str, Any]:
    """Settings that must be equal on resume."""
    recorded = [
      {
        "recipe": _name(own["recipe"]),
        "n": own["n"],
        "arguments": fitting.recorded(
          own["recipe"],
          {k: v for k, v in own.items() if k not in ("recipe", "n")},
        ),
      }
      for _, own in self.combinations
    ]
    content = {site: rows.content() for site, rows in self.rows.items()}
    return {"combinations": recorded, "prep": self.prep, "rows": content}


def _shown(values: Sequence[Any], i: int) -> Any:
  """A value with a hash and a short text; for others its number."""
  if isinstance(values[i], bool | int | float | str | None):
    return values[i]
  if callable(values[i]):
    return _name(values[i])
  return f"{i}"


def _name(recipe: Any) -> str:
  return recipe if isinstance(recipe, str) else recipe.__name__


def _save(
  folder: pathlib.Path,
  found: Sequence[tuple[loop.Trained, Reconstruction]],
  trained: Sequence[Trained],
) -> None:
  """Saves the SAEs, each with what is known about it."""
  for (one, metrics), own in zip(found, trained, strict=True):
    about = {
      "status": own.status,
      "recipe": _name(own.recipe),
      "n": own.n,
      "seed": own.seed,
      "learning_rate": own.learning_rate,
      **({"site": own.site} if own.site else {}),
      **{k: v for k, v in metrics.record().items() if np.all(np.isfinite(v))},
    }
    name = files.marked(one.member.name, about)
    files.save(own.sae, folder / SAES / name, about=about)
