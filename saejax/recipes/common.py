"""Shared parts of recipes: run settings, AuxK, composition and checks."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Required, TypedDict

import optax
from jaxtyping import Array

from saejax.errors import InputError
from saejax.recipes import boosting, limits
from saejax.sae.prep import Identity, Prep
from saejax.sae.sae import SAE
from saejax.training.parts import (
  clipping,
  constraints,
  optimizers,
  revival,
  schedules,
)
from saejax.training.parts.rules import DeadTracker
from saejax.training.recipe import Recipe, Record, Rule, Term, constant

# OpenAI's settings: an eps far below the size of SAE gradients.
adam = partial(optax.adam, b1=0.9, b2=0.999, eps=6.25e-10)


# Of the AuxK term. Papers have 1/32, and k_aux d/2 instead of k: with both of
# ours fewer latents are dead where k is small (benchmarks/defaults.py).
AUX_WEIGHT = 1 / 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
  """Reconstruction target of a transcoder, `Batch.target`.

  Attributes:
    d: width of the target.
    prep: prep of the target.
  """

  d: int
  prep: Prep = Identity()

  def __post_init__(self):
    limits.check_least("target.d", self.d, 1)


class Options(TypedDict, total=False):
  """Settings of a run, which every recipe takes.

  Attributes:
    dead_after_tokens: tokens without firing after which a latent is dead.
    steps: steps of the whole run; needed by methods with durations, which are
      fractions of it.
    batch_rows: rows per batch, for methods whose budgets depend on it.
    prep: applied to the activations; none by default.
    schedule: factor of the learning rate; by default the method's own, or 1.
    clip_norm: largest global norm of the gradients, in the units of the
      method's loss, or "unit": every gradient is divided by its norm, see
      `parts.clipping`; by default the method's own, or none.
    ema_decay: decay of the weight EMA; no EMA by default.
    dtype: dtype of matmul operands; float32 by default.
    param_dtype: dtype in which matrices are kept between steps, see
      `parts.rounding`; float32 by default.
    second_moments: "element", or "row" for one per latent, see
      `parts.optimizers`; for methods trained by Adam.
    target: reconstruction target of a transcoder; x by default.
    residual_of: an SAE or the folder of one, on whose residual the recipe is
      trained: the next stage of boosting, see `sae.ensembles`. The result is
      the whole ensemble. Not beside prep or target.
    defaults: values of prep, schedule and clip_norm for methods that have no
      default of their own.
  """

  dead_after_tokens: Required[int]
  steps: int
  batch_rows: int
  prep: Prep
  schedule: Callable[[Array], Array]
  clip_norm: clipping.Norm
  ema_decay: float | None
  dtype: str
  param_dtype: str
  second_moments: str
  target: Target
  residual_of: str | SAE
  defaults: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class AuxK:
  """The arguments of the AuxK term, see `aux_k`."""

  k_aux: int | None
  weight: float
  k: float | None
  choices: Mapping[str, Any]

  def terms(self, tracker: DeadTracker, d: int, n: int) -> dict[str, Term]:
    """Returns the term by name; empty if its weight is 0.

    Args:
      tracker: rule that tracks dead latents.
      d, n: width, and number of latents.
    """
    k = _k_aux(d, n, self.k_aux, self.k)
    if not self.weight:
      return {}
    by_k = self.k_aux is None and self.k is not None
    given = {"among": tracker, "by_k": by_k, **self.choices}
    return {"aux": revival.aux_k(k, weight=self.weight, **given)}


def aux_k(
  k_aux: int | None,
  aux_weight: float,
  k: float | None = None,
  **choices: Any,
) -> AuxK:
  """AuxK: dead latents learn to reconstruct the residual of the live ones.

  Args:
    k_aux: dead latents revived per row; None: k, or where there is none the
      power of two nearest d/2.
    aux_weight: weight of the term; 0 leaves it out.
    k: mean number of active latents per row, where the method fixes it. A
      latent that learns as one of many more has values too small to be among
      the k largest.
    **choices: further arguments of `revival.aux_k`.

  Raises:
    InputError: the weight is negative.
  """
  limits.check_least("aux_weight", aux_weight, 0)
  return AuxK(k_aux, aux_weight, k, choices)


def compose(
  name: str,
  d: int,
  n: int,
  options: Options,
  *,
  init: Callable[..., Any],
  terms: Mapping[str, Term],
  aux: AuxK | None = None,
  unit_norm: bool = True,
  transcodes: bool = True,
  rules: tuple[Rule, ...] = (),
  **parts: Any,
) -> Recipe:
  """Builds a recipe from a method's own parts and the settings of a run.

  Args:
    name: name of the method.
    d: width of the activations.
    n: latents.
    options: see `Options`.
    init: draws the weights; also takes n, d, prep and dtype.
    terms: terms of the method's loss.
    aux: the AuxK term of methods that have it, see `aux_k`.
    unit_norm: whether decoder rows are projected to unit norm.
    transcodes: whether the decoder's width may differ from d, as for a
      transcoder: `init` then takes d_target and target_prep.
    rules: rules of the method, beside the tracker of dead latents.
    **parts: other fields of `Recipe`.

  Raises:
    InputError: an option is unknown, has an invalid value, or does not go with
      another.
  """
  given = {**options.get("defaults", {}), **options}
  _check(given)
  tracker = DeadTracker(options["dead_after_tokens"])
  if aux is not None:
    terms = {**terms, **aux.terms(tracker, d, n)}
  if unit_norm:
    parts = {
      "gradient": constraints.without_parallel_gradient,
      "project": constraints.unit_norm_decoder,
      **parts,
    }
  draw = partial(
    init,
    n=n,
    d=d,
    prep=given.get("prep", Identity()),
    dtype=given.get("dtype", "float32"),
  )
  parts = {"optimizer": adam, **parts}
  if given.get("second_moments") == "row":
    parts["optimizer"] = optimizers.by_rows(parts["optimizer"], name)
  made = Recipe(
    name=name,
    init=draw,
    terms=terms,
    rules=(tracker, *rules),
    schedule=given.get("schedule", constant),
    clip=clipping.by_norm(given.get("clip_norm")),
    ema_decay=given.get("ema_decay"),
    param_dtype=given.get("param_dtype", "float32"),
    **parts,
  )
  if "residual_of" in options:
    _check_stage(options)
    return boosting.stage(made, options["residual_of"], d)
  if "target" not in options:
    return made
  return _transcoder(made, options["target"], transcodes)


def penalty(
  fn: Callable[[Record], Array],
  coefficient: float,
  warmup: float = 0.0,
  options: Options | None = None,
  *,
  names: tuple[str, str] = ("coefficient", "coefficient_warmup"),
) -> Term:
  """A swept term whose weight rises linearly from 0.

  Args:
    fn: function of the term.
    coefficient: its weight after the rise.
    warmup: fraction of the run that the rise takes; 0 for none.
    options: settings of the run.
    names: names of the two settings, for errors.

  Raises:
    InputError: the coefficient is negative, or the warmup is not a fraction.
  """
  limits.check_least(names[0], coefficient, 0)
  steps = duration(names[1], warmup, options)
  return Term(fn=fn, weight=schedules.ramp(coefficient, steps), swept=True)


def duration(field: str, fraction: float, options: Options | None) -> int:
  """Converts a fraction of the run to steps, at least 1 unless it is 0.

  Args:
    field: name of the setting, for errors.
    fraction: fraction of the steps of the run.
    options: settings of the run.

  Raises:
    InputError: it is not a fraction, or the run's length is unknown.
  """
  if not 0 <= fraction <= 1:
    raise InputError(
      field, fraction, "must be a fraction of the run, in [0, 1]", "such as 0.1"
    )
  if not fraction:
    return 0
  return max(1, round(fraction * run_steps(options, field)))


def run_steps(options: Options | None, field: str) -> int:
  """Returns the steps of the run, of which a setting is a fraction.

  Args:
    options: options of the recipe.
    field: name of the setting that is a fraction, for the error.

  Raises:
    InputError: the steps are missing, or below 1.
  """
  steps = (options or {}).get("steps")
  if steps is None or steps < 1:
    raise InputError(
      "steps",
      steps,
      f"must be at least 1: {field} is a fraction of the run",
      "pass the steps of the whole run",
    )
  return steps


def _transcoder(recipe: Recipe, target: Target, can: bool) -> Recipe:
  """Converts a recipe to a transcoder: it reconstructs `Batch.target` from x.

  There is no pre-bias, and W_enc starts independent of W_dec.

  Raises:
    InputError: the method's encoder or loss needs the decoder's width.
  """
  if not can:
    raise InputError(
      "target",
      recipe.name,
      "is not for methods that need the decoder to have the width of x",
      "leave target out, or choose another recipe",
    )
  draw: Any = recipe.init
  return dataclasses.replace(
    recipe,
    init=partial(draw, d_target=target.d, target_prep=target.prep),
    needs=(*recipe.needs, "target"),
  )


def _check_stage(options: Options) -> None:
  """Refuses options that do not go with `residual_of`."""
  for other in ("prep", "target"):
    if other in options:
      raise InputError(
        "residual_of",
        _shown(options.get("residual_of")),
        f"cannot stand beside {other}: the residual of x is centred, scaled and "
        "reconstructed",
        f"leave {other} out",
      )


def _shown(given: Any) -> str:
  """An option in an error: text as it is, of anything else the type."""
  return given if isinstance(given, str) else type(given).__name__


def _k_aux(d: int, n: int, k_aux: int | None, k: float | None) -> int:
  """k_aux as given, else k, else the power of two nearest d/2; at most n."""
  if k_aux is None:
    least = revival.default_k_aux(d) if k is None else max(1, round(k))
    return min(least, n)
  if not 1 <= k_aux <= n:
    raise InputError("k_aux", k_aux, f"must be in [1, n={n}]", f"such as {n}")
  return k_aux


def _check(options: Mapping[str, Any]) -> None:
  """Raises an InputError for unknown options and invalid values."""
  for name in set(options) - set(Options.__annotations__):
    raise InputError(
      name,
      options[name],
      "is neither an argument of the recipe nor an option of a run",
      f"options are {', '.join(Options.__annotations__)}",
    )
  limits.check_least("dead_after_tokens", options["dead_after_tokens"], 1)
  decay = options.get("ema_decay")
  if decay is not None and not 0 <= decay < 1:
    raise InputError("ema_decay", decay, "must be in [0, 1)", "such as 0.999")


def check_no_prep(name: str, options: Options) -> None:
  """Checks that a method with its own prep is not given another.

  Args:
    name: name of the method, for the error.
    options: options of the run.

  Raises:
    InputError: `prep` or `residual_of` is among the options.
  """
  for other in ("prep", "residual_of"):
    if other in options:
      raise InputError(
        other,
        _shown(options.get(other)),
        f"{name} has its own prep",
        f"leave {other} out",
      )


def switches(phases: Sequence[float], steps: int) -> tuple[int, ...]:
  """First step of each phase but the first.

  Args:
    phases: fractions of the steps.
    steps: steps of the whole run.

  Raises:
    InputError: the fractions do not sum to 1, or a phase has no step.
  """
  ends = [round(sum(phases[: i + 1]) * steps) for i in range(len(phases))]
  if abs(sum(phases) - 1) > 1e-6:
    raise InputError("phases", phases, "must sum to 1", "such as (0.8, 0.2)")
  if any(end <= start for start, end in itertools.pairwise([0, *ends])):
    raise InputError(
      "phases", phases, f"each needs one of the {steps} steps", "train longer"
    )
  return tuple(ends[:-1])
