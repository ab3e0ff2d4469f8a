"""From a trained SAE and its statistics to what users hold."""

import dataclasses

import numpy as np

from saejax.errors import InputError
from saejax.sae import activations
from saejax.sae.context import Batch
from saejax.sae.sae import SAE
from saejax.training import rules
from saejax.training.recipe import Stats


@dataclasses.dataclass(frozen=True)
class ToThreshold:
  """A threshold in the place of a selection over the batch.

  z_i = keep(a_i) where score_i > theta, theta as `rules.ThresholdAverage` left
  it: rows no longer depend on each other. A latent of column scope that never
  was kept gets an infinite threshold.

  Attributes:
    score, keep: of the activation, see `sae.activations`.
  """

  score: str = "value"
  keep: str = "relu"

  def __call__(self, sae: SAE, stats: Stats, sample: Batch | None) -> SAE:
    """The SAE with a `Threshold`.

    Raises:
      InputError: no threshold was ever estimated.
    """
    theta = np.asarray(stats[rules.THRESHOLD])
    if np.isnan(theta).all():
      raise InputError(
        "threshold",
        theta,
        "must have been estimated: no batch kept a positive latent",
        "train on, lower the learning rate, or raise k",
      )
    theta = np.where(np.isnan(theta), np.inf, theta).astype(np.float32)
    activation = activations.Threshold(theta, self.score, self.keep)
    return sae.replace(activation=activation)
