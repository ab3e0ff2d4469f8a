"""Statistics that training keeps, moved by rules and never by gradients.

Counts are in tokens, so that they mean the same at every batch size and on any
number of devices. int32 counters saturate instead of wrapping round.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from saejax.sae.budgets import Budget
from saejax.sae.sae import SAE
from saejax.training.recipe import Record, Rule, Stats

SINCE_FIRED = "tokens_since_fired"
COLUMN_SHARE = "column_share"
DATA_MEAN = "data_mean"
DATA_WEIGHT = "data_weight"
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

  def any_dead(self, stats: Stats, rows: int) -> Bool[Array, ""]:
    """Whether a latent is dead if it stays silent for `rows` more tokens."""
    since = add_tokens(stats[self.statistic], rows)
    return jnp.any(since >= self.dead_after_tokens)

  def metrics(self, stats: Stats) -> Mapping[str, Array]:
    """The fraction of latents that are dead."""
    return {self.metric: jnp.mean(self.dead(stats).astype(jnp.float32))}


@dataclasses.dataclass(frozen=True)
class DataMean(Rule):
  """The mean of the reconstruction targets seen so far, in the prep's frame.

      m <- m + (W_B / W) (m_B - m)

  with m_B and W_B the mean and the weight of the batch and W the weight of all
  rows so far: the plain mean of the run, whatever its length.
  """

  def init(self, sae: SAE) -> Stats:
    return {DATA_MEAN: jnp.zeros((sae.d,)), DATA_WEIGHT: jnp.zeros(())}

  def axes(self) -> Mapping[str, str]:
    return {DATA_MEAN: "d", DATA_WEIGHT: ""}

  def update(self, stats: Stats, record: Record) -> Stats:
    y, weight = record.forward.target, record.batch.weight
    rows = y.reshape(-1, y.shape[-1])
    if weight is None:
      each = jnp.ones(rows.shape[:1])
    else:
      each = weight.reshape(-1)
    added = jnp.sum(each)
    seen = stats[DATA_WEIGHT] + added
    m = stats[DATA_MEAN]
    m += each @ (rows - m) / jnp.maximum(seen, 1e-12)
    return {**stats, DATA_MEAN: m, DATA_WEIGHT: seen}


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
class ColumnShares(Rule):
  """The share of a batch's rows that each latent's budget gives it.

      share_i = m_i / B

  of the last batch, not an average: `parts.finish` estimates thresholds that
  keep this share. NaN before the first batch that counts.

  Attributes:
    budget: of the scope "column", see `sae.budgets`.
    start_step: first step that counts, such as that of a phase.
  """

  budget: Budget
  start_step: int = 0

  def init(self, sae: SAE) -> Stats:
    return {COLUMN_SHARE: jnp.full((sae.n,), jnp.nan, jnp.float32)}

  def axes(self) -> Mapping[str, str]:
    return {COLUMN_SHARE: "n"}

  def update(self, stats: Stats, record: Record) -> Stats:
    ctx = record.forward.ctx
    m = self.budget(record.forward.pre, ctx).astype(jnp.float32)
    rows = jnp.asarray(counted_rows(record), jnp.float32)
    share = jnp.where(rows > 0, m / jnp.maximum(rows, 1), stats[COLUMN_SHARE])
    if self.start_step:
      step: Any = ctx.step  # not None in training
      share = jnp.where(step >= self.start_step, share, stats[COLUMN_SHARE])
    return {**stats, COLUMN_SHARE: share}
