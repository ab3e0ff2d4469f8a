"""Biases moved by feedback from how often their latents fire.

Works on SAEs whose activation is a `sae.bias_gate.BiasGate`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from saejax.sae import activations, decoders, encoders
from saejax.sae.sae import SAE
from saejax.training.parts import rules
from saejax.training.recipe import Record, RowSource, Rule, Stats
from saejax.training.state import TrainState

ROWS = "rows_seen"
OPEN = "gates_open"
LARGEST = "largest_gate"
LEAST_BIAS, MOST_BIAS = -1.0, 0.0


def targets(groups: int, highest: float, lowest: float) -> tuple[float, ...]:
  """Target frequencies of the groups, geometric from highest to lowest.

  Args:
    groups: number of groups.
    highest: target of the first group.
    lowest: target of the last group.
  """
  return tuple(float(p) for p in np.geomspace(highest, lowest, groups))


@dataclasses.dataclass(frozen=True)
class BiasAdaptation(Rule):
  """Keeps each latent's firing rate at or below the target of its group.

  Latents are split into equal groups. Every `every` steps, with y = a + b the
  gate, p_i the fraction of rows since the last adaptation with y_i > 0,
  r_i = max(0, max y_i) and T_j the mean of group j's positive r_i (0 if none):

      p_i > target_j    b_i <- max(b_i - down r_i, -1)
      p_i = 0           b_i <- min(b_i + up T_j, 0)
      otherwise         b_i stays

  Rates between 0 and the target are unchanged, so that they end at or below it.
  The rows between two adaptations must be several times 1 / target of the
  rarest group, or that group's p_i are 0 or above the target by chance. The
  paper's printed algorithm has min and max exchanged, which would let the
  biases leave [-1, 0].

  Attributes:
    targets: target frequency per group.
    every: steps between adaptations.
    up, down: rates at which biases rise and fall.

  References:
    Chen et al., Taming Polysemanticity in LLMs: Provable Feature Recovery via
    Sparse Autoencoders, 2025, arXiv:2506.14002.
  """

  targets: tuple[float, ...]
  every: int = 50
  up: float = 0.01
  down: float = 0.01

  def init(self, sae: SAE) -> Stats:
    return {
      ROWS: jnp.zeros((), jnp.int32),
      OPEN: jnp.zeros((sae.n,), jnp.int32),
      LARGEST: jnp.zeros((sae.n,), jnp.float32),
    }

  def axes(self) -> Mapping[str, str]:
    return {ROWS: "", OPEN: "n", LARGEST: "n"}

  def update(self, stats: Stats, record: Record) -> Stats:
    """Counts open gates and the largest y; rows of weight 0 are excluded."""
    activation: Any = record.sae.activation
    y = activation.gate(record.forward.pre)
    if record.batch.weight is not None:
      y = jnp.where((record.batch.weight != 0)[..., None], y, -1.0)
    axes = tuple(range(y.ndim - 1))
    return {
      **stats,
      ROWS: stats[ROWS] + rules.counted_rows(record),
      OPEN: stats[OPEN] + jnp.sum(y > 0, axes, dtype=jnp.int32),
      LARGEST: jnp.maximum(stats[LARGEST], jnp.max(y, axes)),
    }

  def write(self, state: TrainState) -> TrainState:
    """Moves the biases and resets the counts, every `every` steps."""
    activation: Any = state.sae.activation
    due = (state.step + 1) % self.every == 0
    b = jnp.where(due, self.adapted(activation.b, state.stats), activation.b)
    cleared = {
      name: jnp.where(due, 0, state.stats[name])
      for name in (ROWS, OPEN, LARGEST)
    }
    return state.replace(
      sae=state.sae.replace(activation=activation.replace(b=b)),
      stats={**state.stats, **cleared},
    )

  def adapted(self, b: Float[Array, "n"], stats: Stats) -> Float[Array, "n"]:
    """Computes the biases after one adaptation.

    Args:
      b: current biases.
      stats: the rule's statistics since the last adaptation.
    """
    grouped = lambda values: values.reshape(len(self.targets), -1)
    target = jnp.asarray(self.targets, jnp.float32)[:, None]
    b, count, r = (grouped(v) for v in (b, stats[OPEN], stats[LARGEST]))
    p = count / jnp.maximum(stats[ROWS], 1)
    positive = jnp.sum(r > 0, axis=1, keepdims=True, dtype=jnp.float32)
    T = jnp.sum(r, axis=1, keepdims=True) / jnp.maximum(positive, 1)
    lower = jnp.maximum(b - self.down * r, LEAST_BIAS)
    higher = jnp.minimum(b + self.up * T, MOST_BIAS)
    return jnp.where(
      p > target, lower, jnp.where(count == 0, higher, b)
    ).ravel()

  def metrics(self, stats: Stats) -> Mapping[str, Array]:
    """Logs open: fraction of gates open since the last adaptation."""
    seen = jnp.maximum(stats[ROWS], 1) * stats[OPEN].shape[-1]
    return {"open": jnp.sum(stats[OPEN]) / seen}


def to_threshold(sae: SAE, stats: Stats, rows: RowSource | None) -> SAE:
  """Converts the SAE to the inference form, exactly.

  A jump gate becomes a threshold -b, a relu gate a bias of the encoder; the
  decoder's rows are a_i w_i.

  Args:
    sae, stats, rows: see `recipe.Finish`.
  """
  del stats, rows
  gate: Any = sae.activation
  jump = gate.form == "jump"
  zeros = jnp.zeros_like(gate.b)
  return sae.replace(
    encoder=encoders.Affine(W=sae.W_enc, b=zeros if jump else gate.b),
    activation=activations.Threshold(-gate.b if jump else zeros),
    decoder=decoders.Free(W=sae.W_dec, b=sae.b_dec),
  )
