"""A loss for SAEs whose prep is trained and depends on a condition.

With the error of prepared rows, an SAE could lower its loss by shrinking the
prep's scale. The error is therefore taken in the units of x, and each row is
divided by the variance of its condition, since conditions with large
activations would otherwise dominate.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from saejax.sae import condition_preps
from saejax.sae.sae import SAE
from saejax.training.parts.losses import EPS, squares
from saejax.training.recipe import Record, Rule, Stats

ROWS = "condition_rows"
MEAN = "condition_mean"
VARIANCE = "condition_variance"


@dataclasses.dataclass(frozen=True)
class ConditionVariance(Rule):
  """Tracks mean and variance of raw rows per condition, for the loss.

  Exact until a condition has had `window_rows` rows, then an average that
  forgets older ones at that rate, whatever the size of a batch:

      r = c / (N + c),  N <= window_rows;   delta = mean_batch - m
      m <- m + r delta
      v <- (1 - r) v + r v_batch + r (1 - r) |delta|^2

  Attributes:
    count: number of conditions, or of bins of times in [0, 1].
    continuous: whether conditions are times in [0, 1].
    window_rows: time constant of the averages, in rows per condition.
  """

  count: int
  continuous: bool = False
  window_rows: float = 10_000.0

  def init(self, sae: SAE) -> Stats:
    return {
      ROWS: jnp.zeros((self.count,)),
      MEAN: jnp.zeros((self.count, sae.d)),
      VARIANCE: jnp.zeros((self.count,)),
    }

  def axes(self) -> Mapping[str, str]:
    return {ROWS: "c", MEAN: "c d", VARIANCE: "c"}

  def update(self, stats: Stats, record: Record) -> Stats:
    x, which = self._rows(record)
    counted = jnp.ones(which.shape)
    if record.batch.weight is not None:
      counted = (record.batch.weight != 0).astype(jnp.float32).reshape(-1)
    add = lambda values: (
      jnp.zeros((self.count, *values.shape[1:])).at[which].add(values)
    )
    c = add(counted)
    some = jnp.maximum(c, 1.0)
    mean = add(counted[:, None] * x) / some[:, None]
    spread = add(counted * squares(x - mean[which])) / some
    r = c / jnp.maximum(stats[ROWS] + c, 1.0)
    delta = mean - stats[MEAN]
    new = {
      ROWS: jnp.minimum(stats[ROWS] + c, self.window_rows),
      MEAN: stats[MEAN] + r[:, None] * delta,
      VARIANCE: (1 - r) * stats[VARIANCE]
      + r * spread
      + r * (1 - r) * squares(delta),
    }
    return {**stats, **jax.lax.stop_gradient(new)}

  def loss(self, record: Record) -> Float[Array, "*b"]:
    """|x - x_hat|^2 / variance of the row's condition, in the units of x.

    Its mean over rows is the fraction of variance unexplained per condition,
    averaged over conditions with their numbers of rows as weights. A condition
    with fewer than two rows so far uses the mean variance of the others.

    Args:
      record: the training pass, with conditions in its batch.
    """
    forward = record.forward
    x_hat = record.sae.prep.undo(forward.x_hat, forward.statistics)
    rows, variance = record.stats[ROWS], record.stats[VARIANCE]
    known = (rows >= 2) & (variance > 0)
    total = jnp.sum(jnp.where(known, variance, 0.0))
    others = total / jnp.maximum(jnp.sum(known), 1).astype(jnp.float32)
    variance = jnp.where(known, variance, others)
    x, which = self._rows(record)
    spread = variance[which].reshape(record.batch.x.shape[:-1])
    return squares(x.reshape(x_hat.shape) - x_hat) / jnp.maximum(spread, EPS)

  def _rows(self, record: Record) -> tuple[Array, Int[Array, "rows"]]:
    """Raw rows [rows, d] and the condition of each."""
    x = record.batch.x.astype(jnp.float32)
    cond = condition_preps.required(record.batch.cond)
    which = condition_preps.bins(cond, self.count, self.continuous)
    return x.reshape(-1, x.shape[-1]), which.reshape(-1)
