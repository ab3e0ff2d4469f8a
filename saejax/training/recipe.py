"""What a training method is: a composition of parts, named once.

A recipe names its parts; the train step knows none of them by name.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import flax.struct
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from saejax.errors import InputError
from saejax.sae.context import FIELDS, Batch
from saejax.sae.sae import SAE, Forward
from saejax.training.rows import RowSource as RowSource
from saejax.training.state import Stats as Stats
from saejax.training.state import TrainState

LearningRate = Float[Array, ""] | float


class Hyper(flax.struct.PyTreeNode):
  """Numbers that differ between members of one run; never leaves of the SAE.

  Attributes:
    learning_rate: peak, before the schedule.
    k: latents a row may keep where members share one program, else None.
    coefficient: multiplies the weight of swept terms, else None.
  """

  learning_rate: Float[Array, ""]
  k: Int[Array, ""] | None = None
  coefficient: Float[Array, ""] | None = None


class Record(flax.struct.PyTreeNode):
  """All that a loss term or a rule may read of one pass over a batch.

  Attributes:
    forward: reconstruction, latents and surroundings, in the prep's frame.
    sae: the weights of this pass.
    stats: statistics; for a term this batch is included.
    engine: "dense" or "sparse"; terms hand it on, they do not branch on it.
  """

  forward: Forward
  sae: SAE
  stats: Stats
  engine: str = flax.struct.field(pytree_node=False)

  @property
  def batch(self) -> Batch:
    """The data of the pass."""
    return self.forward.ctx.batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Term:
  """One named scalar of the loss.

  Attributes:
    fn: from a record to one value a row [*b], or to a scalar of the batch.
    weight: factor, or a function of the step.
    swept: whether a member's own coefficient multiplies the weight.
    active: from the statistics before the batch and the number of its rows to
      whether the term can be other than 0; None means always. Where no member
      needs the term its work is skipped.
  """

  fn: Callable[[Record], Array]
  weight: float | Callable[[Array], Array] = 1.0
  swept: bool = False
  active: Callable[[Stats, int], Array] | None = None


class Rule:
  """State moved by rules, never by gradients; each method has a default.

  Statistics are added up over the global batch: under `jit` on a mesh the sums
  and maxima of a rule are reductions over devices.
  """

  def init(self, sae: SAE) -> Stats:
    """Statistics before the first batch."""
    return {}

  def axes(self) -> Mapping[str, str]:
    """The axes of each statistic, written as in annotations: "n", "c d", "".

    Statistics with `n` first have one row per latent: they are sharded, and
    move with their latents.
    """
    return {}

  def update(self, stats: Stats, record: Record) -> Stats:
    """Statistics with one more batch; no gradient flows through them."""
    return stats

  def write(self, state: TrainState) -> TrainState:
    """What the rule changes after the optimizer's step: see `surgery`."""
    return state

  def metrics(self, stats: Stats) -> Mapping[str, Array]:
    """Scalars to log."""
    return {}


def statistics(
  rules: Sequence[Rule], sae: SAE
) -> tuple[Stats, tuple[tuple[str, str], ...]]:
  """The statistics of all rules before the first batch, and their axes.

  Raises:
    TypeError: a rule names no axes of one of its statistics, or too many.
  """
  stats: dict[str, Array] = {}
  axes: dict[str, str] = {}
  for rule in rules:
    started, named = rule.init(sae), rule.axes()
    for name, value in started.items():
      if name not in named or len(named[name].split()) != value.ndim:
        raise TypeError(
          f"{type(rule).__name__}.axes() must name the {value.ndim} axes of "
          f"{name}, got {named.get(name)!r}"
        )
    stats.update(started)
    axes.update({name: named[name] for name in started})
  return stats, tuple(sorted(axes.items()))


class Init(Protocol):
  """Draws the weights: a key and a sample of raw rows give an SAE."""

  def __call__(self, key: PRNGKeyArray, *, sample: Batch | None) -> SAE: ...


class Finish(Protocol):
  """Converts a trained SAE to the inference form; runs once, outside jit.

  Takes the SAE with the weights that are handed out, its statistics, and raw
  training rows for what is estimated (None where there are none).
  """

  def __call__(self, sae: SAE, stats: Stats, rows: RowSource | None) -> SAE: ...


def same(sae: SAE) -> SAE:
  """No constraint."""
  return sae


def unchanged(sae: SAE, gradients: SAE) -> SAE:
  """Gradients as they are."""
  del sae
  return gradients


def as_trained(sae: SAE, stats: Stats, rows: RowSource | None) -> SAE:
  """The inference form is the training form."""
  del stats, rows
  return sae


def constant(step: Array) -> Array:
  """A schedule that stays at 1."""
  return jnp.ones_like(step, jnp.float32)


def mean(
  values: Float[Array, "*b"], weight: Float[Array, "*b"] | None
) -> Float[Array, ""]:
  """sum_b weight_b values_b / sum_b weight_b; plain mean without weights."""
  if weight is None:
    return jnp.mean(values)
  return jnp.sum(weight * values) / jnp.maximum(jnp.sum(weight), 1e-12)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
  """A training method.

  One step: forward, rules' statistics, terms; row terms are added up row by row
  and reduced once, batch terms added to that; gradient; `gradient`; clip;
  `optimizer`; `project`; what rules write; weight EMA of the result.

  Attributes:
    name: of the method.
    init: draws the weights.
    terms: the loss, each a named scalar.
    reduce: from one value a row [*b] and the rows' weights to a scalar.
    coupling: a loss of all members together: from the stacked SAEs and the step
      to a scalar. Its gradient is added to each member's own.
    optimizer: from a learning rate to an optax transformation.
    schedule: from the step to a factor of the learning rate.
    gradient: what is done to the gradients before clipping.
    clip_norm: largest global norm of the gradients; None leaves them.
    project: puts the weights back on their constraint.
    ema_decay: of the average of the weights that is kept; None keeps none.
    rules: statistics and how they move.
    finish: converts the trained SAE to the inference form.
    needs: fields of the batch beside x that the method reads.
    static_k: k sets a part that does not read `Context.k`, so that members of
      several k cannot share a program.
  """

  name: str
  init: Init
  terms: Mapping[str, Term]
  reduce: Callable[[Array, Array | None], Array] = mean
  coupling: Callable[[SAE, Array], Array] | None = None
  optimizer: Callable[[Any], optax.GradientTransformation] = optax.adam
  schedule: Callable[[Array], Array] = constant
  gradient: Callable[[SAE, SAE], SAE] = unchanged
  clip_norm: float | None = None
  project: Callable[[SAE], SAE] = same
  ema_decay: float | None = None
  rules: tuple[Rule, ...] = ()
  finish: Finish = as_trained
  needs: tuple[str, ...] = ()
  static_k: bool = False

  def check(self, fields: tuple[str, ...], members: int) -> None:
    """Refuses a stream or a number of members that the method cannot use.

    Raises:
      InputError: a field of the batch is missing, or a coupled method has one
        member.
    """
    for field in self.needs:
      if field not in fields:
        raise InputError(
          "batch",
          ", ".join(fields),
          f"{self.name} needs {field} of every row",
          f"give a stream whose batches have {field} (of {', '.join(FIELDS)})",
        )
    if self.coupling is not None and members < 2:
      raise InputError(
        "members",
        members,
        f"{self.name} couples SAEs and needs at least 2",
        "train two or more seeds together",
      )
