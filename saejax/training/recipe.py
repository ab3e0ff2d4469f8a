"""What a training method is: a composition of parts, named once.

A recipe names its parts; the train step knows none of them by name.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import flax.struct
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from saejax.sae.latents import DenseLatents, SparseLatents
from saejax.sae.sae import SAE, Forward

Stats = Mapping[str, Array]
LearningRate = Float[Array, ""] | float


class Hyper(flax.struct.PyTreeNode):
  """Numbers that differ between members of one run; never leaves of the SAE.

  Attributes:
    learning_rate: peak, before the schedule.
    k: latents a row may keep where members share one program, else None.
  """

  learning_rate: Float[Array, ""]
  k: Int[Array, ""] | None = None


class Record(flax.struct.PyTreeNode):
  """All that a loss term may read of one pass over a batch.

  Attributes:
    forward: reconstruction and latents, in the prep's frame.
    sae: the weights of this pass.
    stats: statistics, this batch included.
    engine: "dense" or "sparse"; terms hand it on, they do not branch on it.
  """

  forward: Forward
  sae: SAE
  stats: Stats
  engine: str = flax.struct.field(pytree_node=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Term:
  """One named scalar of the loss.

  Attributes:
    fn: from a record to one value a row [*b], or to a scalar of the batch.
    weight: factor, or a function of the step.
    active: from the statistics before the batch and the number of its rows to
      whether the term can be other than 0; None means always. Where no member
      needs the term its work is skipped.
  """

  fn: Callable[[Record], Array]
  weight: float | Callable[[Array], Array] = 1.0
  active: Callable[[Stats, int], Array] | None = None


class Rule(Protocol):
  """State moved by rules, never by gradients."""

  def init(self, sae: SAE) -> Stats: ...

  def update(
    self, stats: Stats, latents: SparseLatents | DenseLatents, rows: int
  ) -> Stats: ...

  def metrics(self, stats: Stats) -> Mapping[str, Array]: ...


class Init(Protocol):
  """Draws the weights: a key and a sample of raw rows give an SAE."""

  def __call__(
    self, key: PRNGKeyArray, *, sample: Float[Array, "s d"] | None
  ) -> SAE: ...


def same(sae: SAE) -> SAE:
  """No constraint."""
  return sae


def unchanged(sae: SAE, gradients: SAE) -> SAE:
  """Gradients as they are."""
  del sae
  return gradients


def constant(step: Array) -> Array:
  """A schedule that stays at 1."""
  return jnp.ones_like(step, jnp.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
  """A training method.

  One step: forward, rules, terms; gradient of their weighted sum; `gradient`;
  clip; `optimizer`; `project`; weight EMA of the result.

  Attributes:
    name: of the method.
    init: draws the weights.
    terms: the loss, each a named scalar.
    reduce: from one value a row to a scalar.
    optimizer: from a learning rate to an optax transformation.
    schedule: from the step to a factor of the learning rate.
    gradient: what is done to the gradients before clipping.
    clip_norm: largest global norm of the gradients; None leaves them.
    project: puts the weights back on their constraint.
    ema_decay: of the average of the weights that is kept; None keeps none.
    rules: statistics and how they move.
    finish: from the trained SAE and its statistics to what users hold.
  """

  name: str
  init: Init
  terms: Mapping[str, Term]
  reduce: Callable[[Array], Array] = jnp.mean
  optimizer: Callable[[Any], optax.GradientTransformation] = optax.adam
  schedule: Callable[[Array], Array] = constant
  gradient: Callable[[SAE, SAE], SAE] = unchanged
  clip_norm: float | None = None
  project: Callable[[SAE], SAE] = same
  ema_decay: float | None = None
  rules: tuple[Rule, ...] = ()
  finish: Callable[[SAE, Stats], SAE] = lambda sae, stats: sae
