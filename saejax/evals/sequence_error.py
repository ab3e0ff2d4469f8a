"""Errors of reconstruction in which each sequence weighs the same.

  MSE = mean_i 1/L_i sum_{t in i} |x_t - x_hat_t|^2 / d

over sequences i of L_i tokens, and the same over special tokens only (L_i then
counts those, and sequences without any do not count).

References:
  Li et al., Training Superior Sparse Autoencoders for Instruct Models, 2025,
  arXiv:2506.07691.
"""

from collections.abc import Collection

import numpy as np
from jaxtyping import Bool, Float, Int

from saejax.errors import InputError

# Role names and marks of turns, as listed in the paper.
LLAMA3_SPECIAL = (882, 78191, 128006, 128007, 128009)
QWEN_SPECIAL = (872, 77091, 151644, 151645)


def sequence_mse(
  x: Float[np.ndarray, "rows d"],
  x_hat: Float[np.ndarray, "rows d"],
  doc: Int[np.ndarray, "rows"],
  *,
  keep: Bool[np.ndarray, "rows"] | None = None,
) -> float:
  """The metric of the module's docstring.

  Args:
    x: rows in the units of the model.
    x_hat: their reconstruction.
    doc: the sequence of each row.
    keep: rows that count; all by default. Leaves padding out, or all but
      special tokens.

  Raises:
    InputError: no row counts.
  """
  keep = np.ones(len(x), bool) if keep is None else keep
  if not keep.any():
    raise InputError("keep", 0, "at least one row must count", "give more rows")
  error = np.asarray(x, np.float64)[keep] - np.asarray(x_hat, np.float64)[keep]
  row = np.mean(error**2, axis=-1)
  _, sequence = np.unique(doc[keep], return_inverse=True)
  return float(np.mean(np.bincount(sequence, row) / np.bincount(sequence)))


def token_mask(
  tok: Int[np.ndarray, "*rows"], special: Collection[int]
) -> Bool[np.ndarray, "*rows"]:
  """Which tokens are special."""
  return np.isin(tok, sorted(special))
