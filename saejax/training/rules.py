"""Statistics that training keeps, moved by rules and never by gradients.

Counts are in tokens, so that they mean the same at every batch size and on any
number of devices. int32 counters saturate instead of wrapping round.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from saejax.sae.activations import SCORES
from saejax.sae.sae import SAE
from saejax.training.recipe import Record, Rule, Stats

SINCE_FIRED = "tokens_since_fired"
THRESHOLD = "threshold"
INT32_MAX = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class DeadTracker(Rule):
  """Counts the tokens since each latent fired (was kept and not 0).

  Attributes:
    dead_after_tokens: a latent is dead once it has not fired for so many.
  """

  dead_after_tokens: int

  def init(self, sae: SAE) -> Stats:
    return {SINCE_FIRED: jnp.zeros((sae.n,), jnp.int32)}

  def update(self, stats: Stats, record: Record) -> Stats:
    """Adds the batch's rows to every latent that did not fire on them."""
    since = add_tokens(stats[SINCE_FIRED], counted_rows(record))
    fired = record.forward.latents.fired(record.batch.weight)
    return {**stats, SINCE_FIRED: jnp.where(fired, 0, since)}

  def dead(self, stats: Stats) -> Bool[Array, "n"]:
    """Which latents are dead."""
    return stats[SINCE_FIRED] >= self.dead_after_tokens

  def any_candidate(self, stats: Stats, rows: int) -> Bool[Array, ""]:
    """Whether a latent that stays silent for `rows` more tokens is dead."""
    since = add_tokens(stats[SINCE_FIRED], rows)
    return jnp.any(since >= self.dead_after_tokens)

  def candidates(
    self, stats: Stats, count: int
  ) -> tuple[Int[Array, "c"], Bool[Array, "c"]]:
    """The `count` latents silent for longest, and which of them are dead.

    Latents silent for equally long come lowest index first.
    """
    since, rows = jax.lax.top_k(stats[SINCE_FIRED], count)
    return rows, since >= self.dead_after_tokens

  def metrics(self, stats: Stats) -> Mapping[str, Array]:
    """dead: the fraction of latents that are dead."""
    return {"dead": jnp.mean(self.dead(stats).astype(jnp.float32))}


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
  is, and batches that keep nothing leave theta alone. Column scope has a theta
  for each latent, with m halfway to the largest score that was not kept: the
  smallest one kept would bias the rates of rare latents low.

  Attributes:
    rate: of the average.
    per_latent: whether each latent has a threshold of its own.
    score: what was ranked, by name in `activations.SCORES`.
  """

  rate: float = 0.01
  per_latent: bool = False
  score: str = "value"

  def init(self, sae: SAE) -> Stats:
    shape = (sae.n,) if self.per_latent else ()
    return {THRESHOLD: jnp.full(shape, jnp.nan, jnp.float32)}

  def update(self, stats: Stats, record: Record) -> Stats:
    forward = record.forward
    score = SCORES[self.score](forward.pre, forward.ctx)
    kept = forward.latents.dense() != 0
    if record.batch.weight is not None:
      kept &= (record.batch.weight != 0)[..., None]
    axes = tuple(range(score.ndim - self.per_latent))
    m = jnp.min(jnp.where(kept, score, jnp.inf), axis=axes)
    if self.per_latent:
      below = jnp.max(jnp.where(kept, -jnp.inf, score), axis=axes)
      m = jnp.where(jnp.isfinite(below), (m + jnp.maximum(below, 0)) / 2, m)
    old = stats[THRESHOLD]
    moved = jnp.where(jnp.isnan(old), m, old + self.rate * (m - old))
    new = jnp.where(jnp.isfinite(m), moved, old)
    return {**stats, THRESHOLD: jax.lax.stop_gradient(new)}

  def metrics(self, stats: Stats) -> Mapping[str, Float[Array, ""]]:
    """threshold: the mean over latents."""
    return {THRESHOLD: jnp.mean(stats[THRESHOLD])}
