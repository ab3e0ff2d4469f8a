"""Metrics of the relations between the latents of an ensemble.

  connectivity = 1 - |{(i, j): i and j are not 0 on a common row}| / n^2
  stability    = mean cosine of latents and their matches in another run, matched
                 one to one or to the nearest
  diversity    = number of latents without near-duplicates

Explained variance is 1 - fvu of `reconstruction` in the frame "raw", since the
stages of a boosted ensemble have different preps.

References:
  Ensembling Sparse Autoencoders, 2025, arXiv:2505.16077.
  Fel et al., Archetypal SAE, 2025, arXiv:2502.12892 (connectivity, stability).
"""

from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from saejax.evals import matching

DUPLICATE_COSINE = 0.7


def connectivity(
  encode: Callable[[Array], Array], batches: Iterable[Float[Array, "B d"]]
) -> float:
  """Computes 1 - the share of ordered pairs of latents active on a common row.

  Pairs (i, i) count too. Memory is n^2 booleans.

  Args:
    encode: maps rows to latents [B, n]: that of an SAE, or
      `ensembles.encode_stages`.
    batches: rows.

  Raises:
    ValueError: there are no batches.
  """

  @jax.jit
  def meet(met, x):
    z = (encode(x) != 0).astype(jnp.float32)
    return met | (z.T @ z > 0)

  met = False
  for x in batches:
    met = meet(jnp.asarray(met), x)
  if met is False:
    raise ValueError("batches must have at least one batch")
  return 1 - float(np.mean(met))


def stability(
  W: Float[Array, "n d"], other: Float[Array, "m d"], how: str = "assigned"
) -> float:
  """Computes the mean cosine of dictionary rows and their matches in another.

  Args:
    W: decoder rows.
    other: decoder rows of a run with other seeds.
    how: "assigned" for one-to-one matches, or "nearest", where several rows may
      have one match; it is at least as large for equally many rows.

  Raises:
    ValueError: `how` is another.

  >>> stability(np.eye(3), np.eye(3)[::-1])
  1.0
  """
  rows, others = np.asarray(W), np.asarray(other)
  if how == "assigned":
    return float(matching.match_rows(rows, others)[1].mean())
  if how != "nearest":
    raise ValueError(f"how must be assigned or nearest, got {how!r}")
  cosines = matching.unit(rows) @ matching.unit(others).T
  return float(cosines.max(axis=1).mean())


def diversity(W: Float[Array, "n d"], cosine: float = DUPLICATE_COSINE) -> int:
  """Counts the rows left when near-duplicates of earlier rows are dropped.

  The default threshold is ours; the paper does not give one.

  Args:
    W: decoder rows.
    cosine: cosine above which a row is a duplicate.

  >>> diversity(np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]))
  2
  """
  distinct = np.zeros_like(rows := matching.unit(np.asarray(W)))
  count = 0
  for row in rows:
    if count == 0 or (distinct[:count] @ row).max() <= cosine:
      distinct[count] = row
      count += 1
  return count
