"""Statistics that training keeps, moved by rules and never by gradients.

Counts are in tokens, so that they mean the same at every batch size and on any
number of devices. int32 counters saturate instead of wrapping round.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from saejax.sae.latents import DenseLatents, SparseLatents
from saejax.sae.sae import SAE
from saejax.training.recipe import Stats

SINCE_FIRED = "tokens_since_fired"
INT32_MAX = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class DeadTracker:
  """Counts the tokens since each latent fired (was kept and not 0).

  Attributes:
    dead_after_tokens: a latent is dead once it has not fired for so many.
  """

  dead_after_tokens: int

  def init(self, sae: SAE) -> Stats:
    return {SINCE_FIRED: jnp.zeros((sae.n,), jnp.int32)}

  def update(
    self, stats: Stats, latents: SparseLatents | DenseLatents, rows: int
  ) -> Stats:
    """Adds the batch's rows to every latent that did not fire on them."""
    since = add_tokens(stats[SINCE_FIRED], rows)
    return {**stats, SINCE_FIRED: jnp.where(latents.fired(), 0, since)}

  def dead(self, stats: Stats) -> Bool[Array, "n"]:
    """Which latents are dead."""
    return stats[SINCE_FIRED] >= self.dead_after_tokens

  def any_dead_after(self, stats: Stats, rows: int) -> Bool[Array, ""]:
    """Whether a latent that stays silent for `rows` more tokens is dead."""
    since = add_tokens(stats[SINCE_FIRED], rows)
    return jnp.any(since >= self.dead_after_tokens)

  def longest_dead(
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


def add_tokens(count: Int[Array, "*n"], tokens: int) -> Int[Array, "*n"]:
  """count + tokens, held at the largest int32."""
  return jnp.where(count > INT32_MAX - tokens, INT32_MAX, count + tokens)


def dead_after(tokens: int) -> int:
  """Tokens after which a latent counts as dead, for a run of `tokens`.

  10 million as in Gao et al. 2024, but no more than a tenth of the run, so
  that short runs revive their dead latents too.
  """
  return max(1, min(10_000_000, tokens // 10))
