"""Converts trained SAEs to their inference form."""

import dataclasses
from typing import Any

import numpy as np

from saejax.errors import InputError
from saejax.sae import activations, convert, thresholds
from saejax.sae.context import Batch
from saejax.sae.sae import SAE
from saejax.training.parts import rules
from saejax.training.recipe import RowSource, Stats

ROWS = 32_768  # rows that thresholds are estimated from


def inference_form(sae: SAE, stats: Stats, rows: RowSource | None) -> SAE:
  """Converts learned thresholds and gates to plain thresholds, exactly.

  Args:
    sae, stats, rows: see `recipe.Finish`.
  """
  del stats, rows
  return convert.inference_form(sae)


def to_jumprelu(sae: SAE, stats: Stats, rows: RowSource | None) -> SAE:
  """Replaces a selection by one threshold: see `convert.to_jumprelu`.

  Args:
    sae, stats, rows: see `recipe.Finish`.

  Raises:
    InputError: there are no rows to estimate it from, or no latent is positive
      on any of them.
  """
  del stats
  return convert.to_jumprelu(sae, _sampled(rows))


def to_column_thresholds(sae: SAE, stats: Stats, rows: RowSource | None) -> SAE:
  """Replaces a selection of rows per latent by a threshold per latent.

  Each latent keeps the share of rows that it had in training, the statistic of
  `rules.ColumnShares`; see `sae.thresholds.of_columns`.

  Args:
    sae, stats, rows: see `recipe.Finish`.

  Raises:
    InputError: there are no rows to estimate it from, no latent is positive on
      any of them, or training never reached the selection per latent.
  """
  share = np.asarray(stats[rules.COLUMN_SHARE])
  if np.isnan(share).any():
    raise InputError(
      "threshold",
      "none",
      "cannot be estimated: training did not reach the phase that selects rows "
      "per latent",
      "train on",
    )
  batch = _sampled(rows)
  counts = thresholds.spread(share, batch.rows)
  theta = thresholds.of_columns(sae, batch, counts, score="value")
  return sae.replace(activation=activations.Threshold(theta))


def _sampled(rows: RowSource | None) -> Batch:
  if rows is None:
    raise InputError(
      "rows", None, "thresholds are estimated from training rows", "pass rows"
    )
  return rows.sample(ROWS).flat


@dataclasses.dataclass(frozen=True)
class ToTopK:
  """Replaces a budget that varied in training by TopK of round(alpha k).

  Attributes:
    alpha: factor of k at inference, at least 1.
    keep: kept value of the activation, see `sae.activations`.
  """

  alpha: float = 1.0
  keep: str = "relu"

  def __call__(self, sae: SAE, stats: Stats, rows: RowSource | None) -> SAE:
    """Returns the SAE with a `TopK` of round(alpha k)."""
    del stats, rows
    activation: Any = sae.activation  # its budget ends at a fixed k
    k = min(round(self.alpha * activation.budget.k), sae.n)
    return sae.replace(activation=activations.TopK(k, keep=self.keep))
