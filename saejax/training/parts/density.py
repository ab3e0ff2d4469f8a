"""Firing densities of latents and their ranks, for methods with row budgets.

    density q_i   running fraction of rows on which latent i is active
    rank r_i      its place by density, 0 for the highest

Ranks are what `sae.budgets.Zipf` reads.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from saejax.sae import budgets
from saejax.sae.sae import SAE
from saejax.training.parts import rules
from saejax.training.recipe import Record, Rule, Stats

DENSITY = "density"
UNDERUSED = "tokens_underused"


@dataclasses.dataclass(frozen=True)
class Density(Rule):
  """Tracks the running density of each latent, and the ranks by density.

      q <- q + max(rate, 1 / (t + 1)) (f - q)

  with f the fraction of the batch's rows on which a latent is active and t the
  step, so that q is the plain mean over the first batches. Ranks are updated
  with q until they are frozen; initially they are the indices.

  Attributes:
    rate: rate of the moving average.
    freeze_step: first step that no longer updates the ranks.
  """

  rate: float = 0.01
  freeze_step: int = 0

  def init(self, sae: SAE) -> Stats:
    return {
      DENSITY: jnp.zeros((sae.n,), jnp.float32),
      budgets.RANK: jnp.arange(sae.n, dtype=jnp.int32),
    }

  def axes(self) -> Mapping[str, str]:
    return {DENSITY: "n", budgets.RANK: "n"}

  def update(self, stats: Stats, record: Record) -> Stats:
    """Adds a batch; rows of weight 0 are excluded."""
    z = record.forward.latents.dense()
    rows = z.reshape(-1, z.shape[-1]) != 0
    weight = record.batch.weight
    if weight is not None:
      rows &= (weight.reshape(-1) != 0)[:, None]
    counted = jnp.asarray(rules.counted_rows(record), jnp.float32)
    f = jnp.sum(rows, axis=0, dtype=jnp.float32) / jnp.maximum(counted, 1)
    step: Any = record.forward.ctx.step  # not None in training
    rate = jnp.maximum(self.rate, 1 / (step.astype(jnp.float32) + 1))
    q = stats[DENSITY] + rate * (f - stats[DENSITY])
    rank = stats[budgets.RANK]
    if self.freeze_step:
      rank = jnp.where(step < self.freeze_step, ranks(q), rank)
    return {**stats, DENSITY: q, budgets.RANK: rank}

  def metrics(self, stats: Stats) -> Mapping[str, Array]:
    """Logs densest: the largest density."""
    return {"densest": jnp.max(stats[DENSITY])}


def ranks(density: Float[Array, "n"]) -> Int[Array, "n"]:
  """Rank of each latent by density, 0 the highest, ties by index.

  Args:
    density: density of each latent.
  """
  order = jnp.argsort(-density, stable=True)
  places = jnp.arange(density.shape[-1], dtype=jnp.int32)
  return jnp.zeros_like(places).at[order].set(places)


def underused(
  tokens: int,
  k: float,
  *,
  eta: float = 0.1,
  alpha: float = 1.0,
  beta: float = 5.0,
) -> rules.DeadTracker:
  """The tracker of aux_zipf: finds latents too rare for their rank.

      q_i <= eta k p(r_i)      p(r) ~ 1 / (r + beta)^alpha, with sum 1

  for that many consecutive tokens; q is the statistic of `Density`, a rule that
  must come before, and r_i the current rank. With eta = 0 and an average of
  rate 1 these are the dead latents of AuxK. The paper's definition was
  unavailable; this one counts tokens, as all counters here do, not batches.

  Args:
    tokens: tokens below that density after which a latent is underused.
    k: mean number of active latents per row.
    eta: fraction of the expected density below which a latent is too rare.
    alpha, beta: exponent and offset of the law.

  References:
    Ayonrinde, Adaptive Sparse Allocation with Mutual Choice & Feature Choice
    Sparse Autoencoders, 2024, arXiv:2411.02124.
  """

  def used(stats: Stats, record: Record) -> Array:
    pre, ctx = record.forward.pre, record.forward.ctx
    q = stats[DENSITY]
    expected = budgets.Constant(k)(pre, ctx) * budgets.zipf(
      q.shape[-1], alpha, beta
    )
    return q > eta * expected[ranks(q)]

  return rules.DeadTracker(tokens, used, UNDERUSED, "underused")
