"""Metrics of the relations between an ensemble's latents.

  connectivity = 1 - |{(i, j): i and j are not 0 on a common row}| / n^2
  stability    = mean cosine of the latents matched with those of another run,
                 one to one or each with its nearest
  diversity    = latents left when near-duplicates are merged

Explained variance is 1 - fvu of `reconstruction`, in the frame "raw": the
stages of a boosted ensemble have frames of their own.

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
  """1 - the share of ordered pairs of latents (i = j too) that ever meet.

  Args:
    encode: from rows to latents [B, n], of an SAE or `ensembles.encode_stages`.
    batches: rows; n^2 booleans are held.

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
    raise ValueError("connectivity needs at least one batch")
  return 1 - float(np.mean(met))


def stability(
  W: Float[Array, "n d"], other: Float[Array, "m d"], how: str = "assigned"
) -> float:
  """Mean cosine of the rows of a dictionary with their matches in another.

  Args:
    W: decoder rows.
    other: those of a run with other seeds.
    how: "assigned", one to one; or "nearest", which lets several rows share
      one match and so is at least as large where both have as many rows.

  Raises:
    ValueError: another way.
  """
  rows, others = np.asarray(W), np.asarray(other)
  if how == "assigned":
    return float(matching.match_rows(rows, others)[1].mean())
  if how != "nearest":
    raise ValueError(f"how must be assigned or nearest, got {how!r}")
  cosines = matching.unit(rows) @ matching.unit(others).T
  return float(cosines.max(axis=1).mean())


def diversity(W: Float[Array, "n d"], cosine: float = DUPLICATE_COSINE) -> int:
  """Rows kept when each that is near one kept before it is dropped, in order.

  The paper's threshold is not known.
  """
  kept = np.zeros_like(rows := matching.unit(np.asarray(W)))
  count = 0
  for row in rows:
    if count == 0 or (kept[:count] @ row).max() <= cosine:
      kept[count] = row
      count += 1
  return count
