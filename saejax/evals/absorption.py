"""Absorption: a parent feature's latent is inactive where a child is active.

With a planted tree the features of every row are known, so that the latent of a
parent can be identified without a probe.

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
  """Recall of parents' latents on rows where a child is active too.

  The latent of a parent is the one with the highest balanced accuracy at
  separating rows with the parent alone from rows without it. Recall is the share
  of rows with the parent and a child on which this latent is not 0; 1 means no
  absorption.

  Args:
    fires: whether each latent is not 0.
    on: active features of each row: the parents, then the children of the first
      parent, and so on.
    parents: number of parents, which have equally many children.

  Returns:
    The mean over parents; NaN where a parent never occurs alone or with a
    child.

  Raises:
    ValueError: the number of children is not a multiple of the parents.
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
