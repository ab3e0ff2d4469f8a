"""Statistics that training keeps, moved by rules and never by gradients.

Counts are in tokens, so that they mean the same at every batch size and on any
number of devices. int32 counters saturate instead of wrapping round.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from saejax.sae.activations import SCORES
from saejax.sae.budgets import Budget
from saejax.sae.sae import SAE
from saejax.training.recipe import Record, Rule, Stats

SINCE_FIRED = "tokens_since_fired"
THRESHOLD = "threshold"
INT32_MAX = 2**31 - 1


def fired(stats: Stats, record: Record) -> Bool[Array, "n"]:
  """Which latents were kept and not 0 on a row of weight other than 0."""
  del stats
  return record.forward.latents.fired(record.batch.weight)


@dataclasses.dataclass(frozen=True)
class DeadTracker(Rule):
  """Counts the tokens since each latent fired (was kept and not 0).

  Attributes:
    dead_after_tokens: a latent is dead once it has not fired for so many.
    fired: from the statistics and the record to which latents did; methods may
      ask for more than once a batch.
    statistic: name of the counter.
    metric: name of the fraction that is dead.
  """

  dead_after_tokens: int
  fired: Callable[[Stats, Record], Array] = fired
  statistic: str = SINCE_FIRED
  metric: str = "dead"

  def init(self, sae: SAE) -> Stats:
    return {self.statistic: jnp.zeros((sae.n,), jnp.int32)}

  def axes(self) -> Mapping[str, str]:
    return {self.statistic: "n"}

  def update(self, stats: Stats, record: Record) -> Stats:
    """Adds the batch's rows to every latent that did not fire on them."""
    since = add_tokens(stats[self.statistic], counted_rows(record))
    fired = self.fired(stats, record)
    return {**stats, self.statistic: jnp.where(fired, 0, since)}

  def dead(self, stats: Stats) -> Bool[Array, "n"]:
    """Which latents are dead."""
    return stats[self.statistic] >= self.dead_after_tokens

  def any_candidate(self, stats: Stats, rows: int) -> Bool[Array, ""]:
    """Whether a latent that stays silent for `rows` more tokens is dead."""
    since = add_tokens(stats[self.statistic], rows)
    return jnp.any(since >= self.dead_after_tokens)

  def candidates(
    self, stats: Stats, count: int
  ) -> tuple[Int[Array, "c"], Bool[Array, "c"]]:
    """The `count` latents silent for longest, and which of them are dead.

    Latents silent for equally long come lowest index first.
    """
    since, rows = jax.lax.top_k(stats[self.statistic], count)
    return rows, since >= self.dead_after_tokens

  def metrics(self, stats: Stats) -> Mapping[str, Array]:
    """The fraction of latents that are dead."""
    return {self.metric: jnp.mean(self.dead(stats).astype(jnp.float32))}


def counted_rows(record: Record) -> int | Int[Array, ""]:
  """Rows of a batch whose weight is not 0."""
  if record.batch.weight is None:
    return record.batch.rows
  return jnp.sum(record.batch.weight != 0, dtype=jnp.int32)


def add_tokens(
  count: Int[Array, "*n"], tokens: int | Int[Array, ""]
) -> Int[Array, "*n"]:
  """count + tokens, held at the largest int32."""
  return jnp.where(count > INT32_MAX - tokens, INT32_MAX, count + tokens)


def dead_after(tokens: int) -> int:
  """Tokens after which a latent counts as dead, for a run of `tokens`.

  10 million as in Gao et al. 2024, but no more than a tenth of the run, so
  that short runs revive their dead latents too.
  """
  return max(1, min(10_000_000, tokens // 10))


@dataclasses.dataclass(frozen=True)
class ThresholdAverage(Rule):
  """The running threshold that replaces a selection over the batch.

      theta <- theta + rate (m - theta),  m = the smallest score kept

  over the entries kept with a value other than 0; the first m is taken as it
  is, and batches that keep nothing leave theta alone.

  Column scope has a theta for each latent, and there m is halfway between the
  m_i-th and the (m_i+1)-th largest of max(score, 0) in the column, m_i being
  the latent's budget. The m_i-th alone has a mean above the threshold that lets
  m_i rows through: for normal scores and m_i = 1, 2, 4, 8 the rates come out
  40, 21, 10 and 5 % low, and at most 2 % off with the midpoint (exponential
  scores with m_i = 1: 7 % low).

  Attributes:
    rate: of the average.
    budget: of column scope, None for one threshold for all.
    score: what was ranked, by name in `activations.SCORES`.
    start_step: first step that counts, such as that of a phase.
  """

  rate: float = 0.01
  budget: Budget | None = None
  score: str = "value"
  start_step: int = 0

  def init(self, sae: SAE) -> Stats:
    shape = () if self.budget is None else (sae.n,)
    return {THRESHOLD: jnp.full(shape, jnp.nan, jnp.float32)}

  def axes(self) -> Mapping[str, str]:
    return {THRESHOLD: "" if self.budget is None else "n"}

  def update(self, stats: Stats, record: Record) -> Stats:
    ctx, pre = record.forward.ctx, record.forward.pre
    score = SCORES[self.score](pre, ctx)
    counts = jnp.ones(score.shape[:-1], bool)
    if record.batch.weight is not None:
      counts = record.batch.weight != 0
    kept = (record.forward.latents.dense() != 0) & counts[..., None]
    axes = tuple(range(score.ndim - (self.budget is not None)))
    m = jnp.min(jnp.where(kept, score, jnp.inf), axis=axes)
    if self.budget is not None:
      full = jnp.sum(kept, axis=axes) >= self.budget(pre, ctx)
      others = jnp.where(counts[..., None] & ~kept, score, 0)
      m = (jnp.where(full, m, 0) + jnp.max(others, axis=axes, initial=0)) / 2
    old = stats[THRESHOLD]
    moved = jnp.where(jnp.isnan(old), m, old + self.rate * (m - old))
    use = jnp.isfinite(m)
    if self.start_step:
      step: Any = ctx.step  # not None in training
      use &= step >= self.start_step
    new = jnp.where(use, moved, old)
    return {**stats, THRESHOLD: jax.lax.stop_gradient(new)}

  def metrics(self, stats: Stats) -> Mapping[str, Float[Array, ""]]:
    """threshold: the mean over latents, 0 where there is none yet."""
    return {THRESHOLD: jnp.mean(jnp.nan_to_num(stats[THRESHOLD]))}
