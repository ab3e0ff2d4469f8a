"""Absorption: a parent feature's latent is inactive where a child is active.

With a planted tree the features of every row are known, so that no probe is
needed to say which latent is the parent's.

References:
  Chanin et al., A is for Absorption: Studying Feature Splitting and Absorption
  in Sparse Autoencoders, 2024, arXiv:2409.14507.
"""

import numpy as np
from jaxtyping import Bool


def parent_recall(
  fires: Bool[np.ndarray, "rows n"],
  on: Bool[np.ndarray, "rows f"],
  parents: int = 4,
) -> float:
  """Share of rows with a parent and its child on which the parent's latent fires.

  The parent's latent is the one that best separates rows with the parent alone
  from rows without it, by balanced accuracy. 1 is no absorption.

  Args:
    fires: whether each latent is not 0.
    on: features of each row: the parents, then the children of each parent in
      turn, equally many.
    parents: number of parents.

  Returns:
    The mean over parents; NaN where a parent never occurs alone or with a
    child.

  Raises:
    ValueError: the children cannot be dealt to the parents.
  """
  children = on.shape[-1] - parents
  if children <= 0 or children % parents:
    raise ValueError(
      f"on must have a multiple of parents={parents} columns beyond them, got "
      f"{on.shape[-1]}"
    )
  child: np.ndarray = np.any(
    on[:, parents:].reshape(len(on), parents, -1), axis=-1
  )
  recalls = []
  for i in range(parents):
    alone, off = on[:, i] & ~child[:, i], ~on[:, i]
    accuracy = fires[alone].mean(axis=0) - fires[off].mean(axis=0)
    both = on[:, i] & child[:, i]
    recalls.append(fires[both, int(accuracy.argmax())].mean())
  return float(np.mean(recalls))
