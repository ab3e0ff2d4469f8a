"""From a trained SAE and its statistics to what users hold."""

import dataclasses
from typing import Any

import numpy as np

from saejax.errors import InputError
from saejax.sae import activations, convert
from saejax.sae.sae import SAE
from saejax.training.parts import rules
from saejax.training.recipe import RowSource, Stats

SAMPLE_ROWS = 4096  # that a threshold is estimated from


@dataclasses.dataclass(frozen=True)
class ToThreshold:
  """A threshold in the place of a selection over the batch.

  z_i = keep(a_i) where score_i > theta, theta as `rules.ThresholdAverage` left
  it: rows no longer depend on each other.

  Attributes:
    score, keep: of the activation, see `sae.activations`.
  """

  score: str = "value"
  keep: str = "relu"

  def __call__(self, sae: SAE, stats: Stats, rows: RowSource | None) -> SAE:
    """The SAE with a `Threshold`.

    Raises:
      InputError: no threshold was ever estimated.
    """
    theta = np.asarray(stats[rules.THRESHOLD])
    unset = int(np.isnan(theta).sum())
    if unset:
      raise InputError(
        "threshold",
        f"{unset} of {theta.size} unset",
        "must have been estimated: no batch kept a positive latent, or the "
        "phase that estimates it was not reached",
        "train on, lower the learning rate, or raise k",
      )
    activation = activations.Threshold(theta, self.score, self.keep)
    return sae.replace(activation=activation)


def inference_form(sae: SAE, stats: Stats, rows: RowSource | None) -> SAE:
  """Learned thresholds and gates as plain thresholds, exactly."""
  del stats, rows
  return convert.inference_form(sae)


def to_jumprelu(sae: SAE, stats: Stats, rows: RowSource | None) -> SAE:
  """One threshold in the place of a selection: see `convert.to_jumprelu`.

  Raises:
    InputError: there are no rows to estimate it from.
  """
  del stats
  if rows is None:
    raise InputError(
      "rows", None, "a threshold is estimated from rows", "give rows"
    )
  return convert.to_jumprelu(sae, rows.sample(SAMPLE_ROWS))


@dataclasses.dataclass(frozen=True)
class ToTopK:
  """TopK of alpha k, rounded, in the place of a budget that moved in training.

  Attributes:
    alpha: at least 1; more latents than in training.
    keep: of the activation, see `sae.activations`.
  """

  alpha: float = 1.0
  keep: str = "relu"

  def __call__(self, sae: SAE, stats: Stats, rows: RowSource | None) -> SAE:
    """The SAE with a `TopK` of its budget's k."""
    activation: Any = sae.activation  # one whose budget ends at a k
    k = min(round(self.alpha * activation.budget.k), sae.n)
    return sae.replace(activation=activations.TopK(k, keep=self.keep))
