"""Importance of latents, and the masking probability derived from it."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from saejax.sae import activations, encoders
from saejax.sae.masking import PROBABILITY
from saejax.sae.sae import SAE
from saejax.training.recipe import Record, RowSource, Rule, Stats

PARTS = ("importance_size", "importance_rate", "importance_need")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Importance(Rule):
  """Tracks the importance of each latent and its masking probability.

      I_j = sum_i weights_i A_ij / mean_j A_ij
      theta = mean_j I_j + c std_j I_j
      p_j = 1 - exp(-r (theta - I_j) / theta) where I_j < theta, else 0

  with A the running means of size, rate and need, see `measures`; their bias
  from starting at 0 cancels in the division. Nothing is masked before
  `start_step`.

  Attributes:
    c: threshold in standard deviations above the mean.
    r: steepness of the probability below the threshold; 0 never masks.
    decay: decay of the running means.
    weights: weights of size, rate and need.
    start_step: first step that masks.
  """

  c: float = 0.0
  r: float = 1.0
  decay: float = 0.99
  weights: tuple[float, float, float] = (1 / 3, 1 / 3, 1 / 3)
  start_step: int = 1000

  def init(self, sae: SAE) -> Stats:
    return {
      name: jnp.zeros((sae.n,), jnp.float32) for name in (*PARTS, PROBABILITY)
    }

  def axes(self) -> Mapping[str, str]:
    return dict.fromkeys((*PARTS, PROBABILITY), "n")

  def update(self, stats: Stats, record: Record) -> Stats:
    averages = {
      name: self.decay * stats[name] + (1 - self.decay) * new
      for name, new in zip(PARTS, measures(record), strict=True)
    }
    share = lambda a: a / jnp.maximum(jnp.mean(a), 1e-30)
    importance = jnp.zeros(())
    for weight, name in zip(self.weights, PARTS, strict=True):
      importance += weight * share(averages[name])
    p = probability(importance, c=self.c, r=self.r)
    step = record.forward.ctx.step
    started = step is not None and step + 1 >= self.start_step
    p = jnp.where(started, p, 0)
    return {**stats, **averages, PROBABILITY: p}

  def metrics(self, stats: Stats) -> Mapping[str, Array]:
    """Logs masked: mean masking probability in the next batch."""
    return {"masked": jnp.mean(stats[PROBABILITY])}


def probability(
  importance: Float[Array, "n"], *, c: float, r: float
) -> Float[Array, "n"]:
  """Probability of masking each latent, from 0 to 1 - exp(-r).

  Args:
    importance: importance of each latent.
    c: threshold, in standard deviations above the mean.
    r: steepness; 0 never masks.
  """
  theta = jnp.mean(importance) + c * jnp.std(importance)
  theta = jnp.maximum(theta, 1e-8)
  short = jnp.maximum(theta - importance, 0) / theta
  return -jnp.expm1(-r * short)


def measures(
  record: Record,
) -> tuple[Float[Array, "n"], Float[Array, "n"], Float[Array, "n"]]:
  """Size, rate and need of each latent over the rows of a batch.

      size = mean of s over rows with s > 0;   rate = mean 1[s > 0]
      need = mean max(0, 2 s (e . w) + (2 m - 1) s^2 |w|^2),   e = y - x_hat

  with s = relu(a) before the mask, so that a masked latent can recover, and m =
  1 where the latent was used, 0 where it was masked. The need is the increase
  of the squared error without the latent; for a masked latent, relative to the
  error had it been used. A latent that is inactive on the batch has size 0.

  Args:
    record: the record of the batch.

  Raises:
    ValueError: the record has no pre-activations (sparse engine).
  """
  forward, weight = record.forward, record.batch.weight
  if forward.pre is None:
    raise ValueError("importance needs all pre-activations: the dense engine")
  s = jax.nn.relu(forward.pre.a)
  rows = jnp.ones(s.shape[:-1]) if weight is None else weight
  rows = (rows / jnp.maximum(jnp.sum(rows), 1e-12))[..., None]
  axes = tuple(range(s.ndim - 1))
  mean = lambda a: jnp.sum(rows * a, axis=axes)
  used = jnp.where(forward.latents.dense() != 0, 1.0, -1.0)
  along = encoders.matmul(
    forward.target - forward.x_hat, forward.W_dec, record.sae.dtype
  )
  squares = jnp.sum(jnp.square(forward.W_dec), axis=-1)
  need = jnp.maximum(2 * s * along + used * jnp.square(s) * squares, 0)
  rate = mean((s > 0).astype(s.dtype))
  return mean(s) / jnp.maximum(rate, 1e-12), rate, mean(need)


@dataclasses.dataclass(frozen=True)
class WithoutMasked:
  """Permanently removes latents with a masking probability of at least 1/2.

  z = relu(a) where p < 1/2, else 0; no sampling.
  """

  def __call__(self, sae: SAE, stats: Stats, rows: RowSource | None) -> SAE:
    often = np.asarray(stats[PROBABILITY]) >= 0.5
    theta = jnp.asarray(np.where(often, np.inf, 0.0), jnp.float32)
    return sae.replace(activation=activations.Threshold(theta))
