"""Reconstruction errors in which all sequences have equal weight.

  MSE = mean_i 1/L_i sum_{t in i} |x_t - x_hat_t|^2 / d

over sequences i of L_i tokens. For the error on special tokens, only these and
sequences with at least one of them count.

References:
  Li et al., Training Superior Sparse Autoencoders for Instruct Models, 2025,
  arXiv:2506.07691.
"""

from collections.abc import Collection

import numpy as np
from jaxtyping import Bool, Float, Int

from saejax.errors import InputError

# Token ids of role names and turn delimiters, as listed in the paper.
LLAMA3_SPECIAL = (882, 78191, 128006, 128007, 128009)
QWEN_SPECIAL = (872, 77091, 151644, 151645)


def sequence_mse(
  x: Float[np.ndarray, "rows d"],
  x_hat: Float[np.ndarray, "rows d"],
  doc: Int[np.ndarray, "rows"],
  *,
  keep: Bool[np.ndarray, "rows"] | None = None,
) -> float:
  """Computes the MSE of the module's docstring.

  Args:
    x: rows in the units of the model.
    x_hat: their reconstruction.
    doc: number of the sequence of each row.
    keep: mask of the rows that count, such as special tokens; all by default.

  Raises:
    InputError: no row counts.

  >>> x, doc = np.ones((3, 2)), np.array([0, 0, 1])
  >>> sequence_mse(x, np.zeros((3, 2)), doc)
  1.0
  """
  keep = np.ones(len(x), bool) if keep is None else keep
  if not keep.any():
    raise InputError(
      "keep", 0, "must be true for at least one row", "give more rows"
    )
  error = np.asarray(x, np.float64)[keep] - np.asarray(x_hat, np.float64)[keep]
  row = np.mean(error**2, axis=-1)
  _, sequence = np.unique(doc[keep], return_inverse=True)
  return float(np.mean(np.bincount(sequence, row) / np.bincount(sequence)))


def token_mask(
  tok: Int[np.ndarray, "*rows"], special: Collection[int]
) -> Bool[np.ndarray, "*rows"]:
  """Returns the mask of special tokens.

  Args:
    tok: token ids.
    special: ids of special tokens.

  >>> token_mask(np.array([1, 882]), LLAMA3_SPECIAL).tolist()
  [False, True]
  """
  return np.isin(tok, sorted(special))
