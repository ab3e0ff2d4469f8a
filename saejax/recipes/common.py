"""What recipes share: settings, and the recipe around a method's own parts."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Required, TypedDict

import optax
from jaxtyping import Array

from saejax.errors import InputError
from saejax.sae.prep import Identity, Prep
from saejax.training.parts import constraints, losses, rules, schedules
from saejax.training.recipe import Recipe, Record, Term, constant

# OpenAI's settings: an eps far below the size of SAE gradients.
adam = partial(optax.adam, b1=0.9, b2=0.999, eps=6.25e-10)


class Options(TypedDict, total=False):
  """Settings that every recipe takes.

  Attributes:
    dead_after_tokens: silence after which a latent is dead.
    prep: of the activations; none by default.
    schedule: factor of the learning rate.
    clip_norm: largest global norm of the gradients; none by default.
    ema_decay: of the weight average; none by default.
    dtype: of matmul operands; float32 by default.
    k_aux: dead latents kept in a row by AuxK; by default the power of two
      nearest d/2, at most n. These two count only for methods with AuxK.
    aux_weight: of the AuxK term; 1/32 by default, 0 leaves it out.
  """

  dead_after_tokens: Required[int]
  prep: Prep
  schedule: Callable[[Array], Array]
  clip_norm: float | None
  ema_decay: float | None
  dtype: str
  k_aux: int | None
  aux_weight: float


def compose(
  name: str,
  d: int,
  n: int,
  options: Options,
  *,
  init: Callable[..., Any],
  terms: Mapping[str, Term],
  aux: Mapping[str, Any] | None = None,
  unit_norm: bool = True,
  rules: tuple[rules.Rule, ...] = (),
  **parts: Any,
) -> Recipe:
  """A recipe from a method's own parts and the settings all methods take.

  Args:
    name: of the method.
    d: width of the activations.
    n: latents.
    options: see `Options`.
    init: draws the weights; given n, d, prep and dtype too.
    terms: the method's loss.
    aux: arguments of `losses.aux_k` other than the defaults ({} for none); None
      for methods without AuxK.
    unit_norm: whether decoder rows are held at unit norm.
    rules: of the method, beside the tracker of dead latents.
    **parts: other fields of `Recipe`.

  Raises:
    InputError: an option that no run could use.
  """
  _check(options)
  tracker = _tracker(options)
  weight = options.get("aux_weight", 1 / 32)
  k_aux = _k_aux(d, n, options)
  if aux is not None and weight:
    term = losses.aux_k(k_aux, weight=weight, **{"among": tracker, **aux})
    terms = {**terms, "aux": term}
  if unit_norm:
    parts = {
      "gradient": constraints.without_parallel_gradient,
      "project": constraints.unit_norm_decoder,
      **parts,
    }
  return Recipe(
    name=name,
    init=partial(
      init,
      n=n,
      d=d,
      prep=options.get("prep", Identity()),
      dtype=options.get("dtype", "float32"),
    ),
    terms=terms,
    rules=(tracker, *rules),
    schedule=options.get("schedule", constant),
    clip_norm=options.get("clip_norm"),
    ema_decay=options.get("ema_decay"),
    **{"optimizer": adam, **parts},
  )


def penalty(
  fn: Callable[[Record], Array],
  coefficient: float,
  steps: int = 0,
  names: tuple[str, str] = ("coefficient", "coefficient_steps"),
) -> Term:
  """A term whose weight rises from 0 over some steps, times a member's own.

  Args:
    fn: of the term.
    coefficient: its weight after the rise.
    steps: that the rise takes; 0 for none.
    names: of the two settings, for errors.

  Raises:
    InputError: one is negative.
  """
  check_least(names[0], coefficient, 0)
  check_least(names[1], steps, 0)
  return Term(fn=fn, weight=schedules.ramp(coefficient, steps), swept=True)


def transcoder(
  recipe: Recipe, d_target: int, target_prep: Prep = Identity()
) -> Recipe:
  """The same method, reconstructing `Batch.target` from x.

  For recipes whose weights are drawn by `sae.initial.init`. There is no
  pre-bias, and W_enc starts independent of W_dec.

  Args:
    recipe: the method.
    d_target: width of the target.
    target_prep: of the target.

  Raises:
    InputError: no width.
  """
  if d_target < 1:
    raise InputError("d_target", d_target, "must be at least 1", "the width")
  draw: Any = recipe.init
  return dataclasses.replace(
    recipe,
    init=partial(draw, d_target=d_target, target_prep=target_prep),
    needs=(*recipe.needs, "target"),
  )


def _k_aux(d: int, n: int, options: Options) -> int:
  """k_aux as given, else the default of `Options`."""
  k_aux = options.get("k_aux")
  if k_aux is None:
    return min(losses.default_k_aux(d), n)
  if not 1 <= k_aux <= n:
    raise InputError("k_aux", k_aux, f"must be in [1, n={n}]", "lower it")
  return k_aux


def _check(options: Options) -> None:
  """Refuses settings with which no run could end well."""
  check_least("dead_after_tokens", options["dead_after_tokens"], 1)
  check_least("aux_weight", options.get("aux_weight", 0.0), 0)
  clip, decay = options.get("clip_norm"), options.get("ema_decay")
  if clip is not None and not clip > 0:
    raise InputError("clip_norm", clip, "must be above 0", "None leaves them")
  if decay is not None and not 0 <= decay < 1:
    raise InputError("ema_decay", decay, "must be in [0, 1)", "such as 0.999")


def _tracker(options: Options) -> rules.DeadTracker:
  return rules.DeadTracker(options["dead_after_tokens"])


def check_k(k: int, n: int) -> None:
  """Refuses a k that no row can have."""
  if not (1 <= k <= n and k == int(k)):
    raise InputError(
      "k", k, f"must be a whole number in [1, n={n}]", "lower k or raise n"
    )


def check_mean_k(k: float, n: int) -> None:
  """Refuses a k that rows cannot have on average."""
  if not 0 < k <= n:
    raise InputError("k", k, f"must be in (0, n={n}]", "lower k or raise n")


def check_least(field: str, value: float, least: float) -> None:
  """Refuses what is below the least, or not a number."""
  if not value >= least:
    raise InputError(field, value, f"must be at least {least:g}", "raise it")


def check_fraction(field: str, value: float) -> None:
  """Refuses what is not in (0, 1)."""
  if not 0 < value < 1:
    raise InputError(field, value, "must be in (0, 1)", "such as 0.1")


def check_no_prep(name: str, options: Options) -> None:
  """Refuses a prep where the method has one of its own."""
  if "prep" in options:
    raise InputError(
      "prep",
      type(options["prep"]).__name__,
      f"{name} has a prep of its own",
      "leave prep out",
    )


def switches(phases: Sequence[float], steps: int) -> tuple[int, ...]:
  """First step of each phase but the first.

  Args:
    phases: fractions of the steps.
    steps: of the whole run.

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
