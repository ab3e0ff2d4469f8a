"""Statistics of training, updated by rules and never by gradients.

Counts are in tokens, so that their meaning does not depend on the batch size or
the number of devices. int32 counters saturate instead of wrapping round.
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
  """Mask of latents that are active on a row of non-zero weight.

  Args:
    stats: the statistics.
    record: the record of the batch.
  """
  del stats
  return record.forward.latents.fired(record.batch.weight)


@dataclasses.dataclass(frozen=True)
class DeadTracker(Rule):
  """Counts the tokens since each latent fired (was active).

  Attributes:
    dead_after_tokens: tokens without firing after which a latent is dead.
    fired: function of the statistics and the record that gives the mask of
      latents that fired; methods may require more than one active row.
    statistic: name of the counter.
    metric: name of the logged fraction of dead latents.
  """

  dead_after_tokens: int
  fired: Callable[[Stats, Record], Array] = fired
  statistic: str = SINCE_FIRED
  metric: str = "dead"

  def init(self, sae: SAE) -> Stats:
    return {self.statistic: jnp.zeros((sae.n,), jnp.int32)}

  def axes(self) -> Mapping[str, str]:
    return {self.statistic: "n"}

  @property
  def by_parts(self) -> bool:
    return self.fired is fired

  def measure(self, stats: Stats, record: Record) -> Any:
    """Rows, and the latents that fired on any of them."""
    return counted_rows(record), self.fired(stats, record)

  def absorb(self, stats: Stats, measured: Any) -> Stats:
    """Adds the batch's rows to every latent that did not fire on them."""
    rows, fired = measured
    since = add_tokens(stats[self.statistic], rows)
    return {**stats, self.statistic: jnp.where(fired, 0, since)}

  def dead(self, stats: Stats) -> Bool[Array, "n"]:
    """Mask of dead latents."""
    return stats[self.statistic] >= self.dead_after_tokens

  def any_dead(self, stats: Stats, rows: int) -> Bool[Array, ""]:
    """Whether any latent is dead or can be after `rows` more tokens."""
    since = add_tokens(stats[self.statistic], rows)
    return jnp.any(since >= self.dead_after_tokens)

  def metrics(self, stats: Stats) -> Mapping[str, Array]:
    """Logs the fraction of dead latents."""
    return {self.metric: jnp.mean(self.dead(stats).astype(jnp.float32))}


@dataclasses.dataclass(frozen=True)
class DataMean(Rule):
  """Tracks the mean of the reconstruction targets, in the prep's frame.

      m <- m + (W_B / W) (m_B - m)

  with m_B and W_B the mean and the weight of the batch and W the weight of all
  rows so far: the plain mean, with no time constant.
  """

  def init(self, sae: SAE) -> Stats:
    return {DATA_MEAN: jnp.zeros((sae.d,)), DATA_WEIGHT: jnp.zeros(())}

  def axes(self) -> Mapping[str, str]:
    return {DATA_MEAN: "d", DATA_WEIGHT: ""}

  def measure(self, stats: Stats, record: Record) -> Any:
    """Weight of the rows, and the weighted sum of y - m."""
    y, weight = record.forward.target, record.batch.weight
    rows = y.reshape(-1, y.shape[-1])
    if weight is None:
      each = jnp.ones(rows.shape[:1])
    else:
      each = weight.reshape(-1)
    return jnp.sum(each), each @ (rows - stats[DATA_MEAN])

  def absorb(self, stats: Stats, measured: Any) -> Stats:
    added, apart = measured
    seen = stats[DATA_WEIGHT] + added
    m = stats[DATA_MEAN] + apart / jnp.maximum(seen, 1e-12)
    return {**stats, DATA_MEAN: m, DATA_WEIGHT: seen}


def counted_rows(record: Record) -> int | Int[Array, ""]:
  """Number of rows of a batch with non-zero weight.

  Args:
    record: the record of the batch.
  """
  if record.batch.weight is None:
    return record.batch.rows
  return jnp.sum(record.batch.weight != 0, dtype=jnp.int32)


def add_tokens(
  count: Int[Array, "*n"], tokens: int | Int[Array, ""]
) -> Int[Array, "*n"]:
  """count + tokens, saturating at the largest int32.

  Args:
    count: counters.
    tokens: number of tokens to add.
  """
  return jnp.where(count > INT32_MAX - tokens, INT32_MAX, count + tokens)


def dead_after(tokens: int) -> int:
  """Default number of tokens after which a latent is dead in a run of `tokens`.

  10 million as in Gao et al. 2024, but at most a fiftieth of the run, so that
  short runs also revive their dead latents, and early.

  Args:
    tokens: tokens of the run.

  >>> dead_after(1_000_000)
  20000
  """
  return max(1, min(10_000_000, tokens // 50))


@dataclasses.dataclass(frozen=True)
class ColumnShares(Rule):
  """Records each latent's share of a batch's rows, as given by a budget.

      share_i = m_i / B

  of the last batch, not an average: `parts.finish` estimates thresholds that
  keep this share. NaN before `start_step`.

  Attributes:
    budget: a budget of scope "column", see `sae.budgets`.
    start_step: first step that is recorded, such as the start of a phase.
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
