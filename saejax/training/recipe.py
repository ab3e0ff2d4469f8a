"""Recipe: a training method as a composition of parts.

A recipe names its parts; the train step does not depend on any of them.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from saejax.errors import InputError
from saejax.sae.context import FIELDS, Batch
from saejax.sae.sae import SAE, Forward
from saejax.training.moments import Whole
from saejax.training.parts.clipping import Clip
from saejax.training.state import Stats as Stats
from saejax.training.state import TrainState

MEMBERS = "members"  # name of the axis over which stacked members are vmapped
LearningRate = Float[Array, ""] | float


class Hyper(flax.struct.PyTreeNode):
  """Numbers that differ between members of one run; never leaves of the SAE.

  Attributes:
    learning_rate: peak learning rate, before the schedule.
    k: maximum number of active latents per row where members share a program,
      else None.
    coefficient: factor of the weight of swept terms, or None.
    site: place of the member's rows along the first axis of a batch of several
      sites; None where all members read the same rows.
  """

  learning_rate: Float[Array, ""]
  k: Int[Array, ""] | None = None
  coefficient: Float[Array, ""] | None = None
  site: Int[Array, ""] | None = None


class Record(flax.struct.PyTreeNode):
  """The data of one training pass that loss terms and rules read.

  Attributes:
    forward: reconstruction, latents and context, in the prep's frame.
    sae: the weights of this pass.
    stats: statistics; for a term they include this batch.
    engine: "dense" or "sparse"; terms pass it on, they do not branch on it.
    stacked: whether this is one of the members that are vmapped over the axis
      `MEMBERS`.
    whole: moments over the whole batch, where this pass is of a part of it.
  """

  forward: Forward
  sae: SAE
  stats: Stats
  engine: str = flax.struct.field(pytree_node=False)
  stacked: bool = flax.struct.field(pytree_node=False, default=False)
  whole: Whole | None = None

  @property
  def batch(self) -> Batch:
    """The data of the pass."""
    return self.forward.ctx.batch

  def most(self, count: Int[Array, ""]) -> Int[Array, ""]:
    """The largest count over stacked members.

    A branch chosen by it is the same for all of them; one chosen by their own
    counts would be computed with all other branches.

    Args:
      count: this member's count.
    """
    return jax.lax.pmax(count, MEMBERS) if self.stacked else count


@dataclasses.dataclass(frozen=True, kw_only=True)
class Term:
  """A named term of the loss.

  Attributes:
    fn: function of a record that gives one value per row [*b], or a scalar.
    weight: factor, or a function of the step.
    swept: whether a member's own coefficient multiplies the weight.
    active: function of the statistics before the batch and the number of its
      rows that says whether the term can be non-zero; None means always. The
      term is not computed in steps where it is 0 for all members.
    mean: whether a scalar is a weighted mean over rows, or reads no rows. Rows
      are computed from their own row, the weights and `Record.whole`; other
      scalars keep a batch from being accumulated in parts.
    after: whether it reads the statistics, which include the batch, or the
      moments of the residual. A batch in parts is then encoded twice.
  """

  fn: Callable[[Record], Array]
  weight: float | Callable[[Array], Array] = 1.0
  swept: bool = False
  active: Callable[[Stats, int], Array] | None = None
  mean: bool = False
  after: bool = False


class Rule:
  """Base class of rules, which update statistics without gradients.

  Each method has a default. Statistics are over the global batch: under `jit`
  on a mesh the sums and maxima of a rule are reductions over devices.
  """

  def init(self, sae: SAE) -> Stats:
    """Initialises the statistics before the first batch.

    Args:
      sae: the SAE.
    """
    return {}

  def axes(self) -> Mapping[str, str]:
    """Names the axes of each statistic as annotations do: "n", "c d", "".

    Statistics with `n` first have one row per latent: they are sharded, and
    permuted or replaced with their latents.
    """
    return {}

  @property
  def by_parts(self) -> bool:
    """Whether a batch can be added in parts: by `measure` and `absorb`."""
    return type(self).update is Rule.update

  def measure(self, stats: Stats, record: Record) -> Any:
    """Measures a batch, or a part of one: arrays that parts add up to.

    Numbers are summed over the parts of a batch, masks are joined.

    Args:
      stats: the statistics before the batch.
      record: the record of the batch or part.
    """
    del stats, record
    return ()

  def absorb(self, stats: Stats, measured: Any) -> Stats:
    """Adds a batch to the statistics.

    Args:
      stats: the statistics before the batch.
      measured: sum of `measure` over its parts.
    """
    del measured
    return stats

  def update(self, stats: Stats, record: Record) -> Stats:
    """Adds one batch to the statistics; no gradient flows through them.

    A rule that overrides it, not `measure` and `absorb`, needs whole batches.

    Args:
      stats: the statistics.
      record: the record of the batch.
    """
    return self.absorb(stats, self.measure(stats, record))

  def write(self, state: TrainState) -> TrainState:
    """Changes the state after the optimizer's step, see `surgery`.

    Args:
      state: the state.
    """
    return state

  def metrics(self, stats: Stats) -> Mapping[str, Array]:
    """Returns scalars to log.

    Args:
      stats: the statistics.
    """
    return {}


def statistics(
  rules: Sequence[Rule], sae: SAE
) -> tuple[Stats, tuple[tuple[str, str], ...]]:
  """Initialises the statistics of all rules; returns them and their axes.

  Args:
    rules: the rules.
    sae: the SAE.

  Raises:
    TypeError: a rule does not name the axes of one of its statistics, or names
      too many.
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


class RowSource(Protocol):
  """A source of rows that can be sampled repeatedly."""

  def sample(self, rows: int) -> Batch:
    """Returns about `rows` raw rows, spread over all rows."""
    ...


class Init(Protocol):
  """Draws the weights from a key and a sample of raw rows."""

  def __call__(self, key: PRNGKeyArray, *, sample: Batch | None) -> SAE: ...


class Finish(Protocol):
  """Converts a trained SAE to the inference form; runs once, outside jit.

  Takes the SAE with its final weights, its statistics, and raw training rows
  for estimates (or None).
  """

  def __call__(self, sae: SAE, stats: Stats, rows: RowSource | None) -> SAE: ...


def same(sae: SAE) -> SAE:
  """A constraint that returns the SAE unchanged.

  Args:
    sae: the SAE.
  """
  return sae


def unchanged(sae: SAE, gradients: SAE) -> SAE:
  """Returns the gradients unchanged.

  Args:
    sae: the SAE.
    gradients: gradients of its leaves.
  """
  del sae
  return gradients


def as_trained(sae: SAE, stats: Stats, rows: RowSource | None) -> SAE:
  """Returns the SAE unchanged: the training form is the inference form.

  Args:
    sae, stats, rows: see `Finish`.
  """
  del stats, rows
  return sae


def constant(step: Array) -> Array:
  """The schedule that is always 1.

  Args:
    step: the step.
  """
  return jnp.ones_like(step, jnp.float32)


def mean(
  values: Float[Array, "*b"], weight: Float[Array, "*b"] | None
) -> Float[Array, ""]:
  """Weighted mean over rows; the plain mean without weights.

  Args:
    values: values per row.
    weight: weight of each row, or None.
  """
  if weight is None:
    return jnp.mean(values)
  return jnp.sum(weight * values) / jnp.maximum(jnp.sum(weight), 1e-12)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
  """A training method.

  One step: forward, rules' statistics, terms; row terms are summed per row and
  reduced once, batch terms added to that; gradient; `gradient`; clip;
  `optimizer`; `project`; rules' `write`; weight EMA of the result.

  Attributes:
    name: name of the method.
    init: draws the weights.
    terms: terms of the loss, by name.
    reduce: reduces values per row [*b] to a scalar, given the rows' weights.
    coupling: a loss of all members together: a function of the stacked SAEs and
      the step. Its gradient is added to each member's own.
    optimizer: function of a learning rate that gives an optax transformation.
    schedule: function of the step that gives a factor of the learning rate.
    gradient: transforms the gradients before clipping.
    clip: scales the gradients by their global norm; by default it does not.
    project: projects the weights to their constraints.
    param_dtype: dtype in which matrices of one row per latent are kept between
      steps: "float32", or "bfloat16" with stochastic rounding.
    ema_decay: decay of the weight EMA; None for no EMA.
    rules: statistics and their updates.
    finish: converts the trained SAE to the inference form.
    needs: fields of the batch beside x that the method reads.
    swept: argument that does nothing but multiply the weight of swept terms, so
      that members of different values share a program; empty for none.
    static_k: whether a part depends on k other than through `Context.k`, so
      that members of different k cannot share a program.
  """

  name: str
  init: Init
  terms: Mapping[str, Term]
  reduce: Callable[[Array, Array | None], Array] = mean
  coupling: Callable[[SAE, Array], Array] | None = None
  optimizer: Callable[[Any], optax.GradientTransformation] = optax.adam
  schedule: Callable[[Array], Array] = constant
  gradient: Callable[[SAE, SAE], SAE] = unchanged
  clip: Clip = Clip()
  project: Callable[[SAE], SAE] = same
  param_dtype: str = "float32"
  ema_decay: float | None = None
  rules: tuple[Rule, ...] = ()
  finish: Finish = as_trained
  needs: tuple[str, ...] = ()
  swept: str = ""
  static_k: bool = False

  def check(self, fields: tuple[str, ...], members: int) -> None:
    """Validates the fields of the batches and the number of members.

    Args:
      fields: fields of the batches.
      members: number of members.

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
          f"pass batches with the field {field} (fields: {', '.join(FIELDS)})",
        )
    if self.coupling is not None and members < 2:
      raise InputError(
        "members",
        members,
        f"{self.name} couples SAEs and needs at least 2",
        "train two or more seeds together",
      )
