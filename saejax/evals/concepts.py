"""Concepts that are suppressed or exaggerated in one set of rows versus another.

With xi_k the mean of latent k over the rows of a set, and s the median of the
non-zero |xi_k(real)|,

  delta_k = sigmoid((xi_k(generated) - xi_k(real)) / s)

delta_k is 1/2 for a concept that is equally strong in both sets; below 0.1 it is
suppressed, above 0.9 exaggerated. The paper's summary does not give the scale of
the sigmoid; s is our definition. The paper also has a Boltzmann form with the
opposite sign; here more activation gives a larger delta.

For images the rows are patches, averaged over all images of a set.

References:
  Bohacek et al., Uncovering Conceptual Blindspots in Generative Image Models
  Using Sparse Autoencoders, 2025, arXiv:2506.19708.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
import scipy.stats
from jaxtyping import Float

from saejax.errors import InputError
from saejax.features import reading
from saejax.sae.sae import SAE

SUPPRESSED, EXAGGERATED = 0.1, 0.9


@dataclasses.dataclass(frozen=True)
class Concepts:
  """Means and firing rates of an SAE's latents on a set of rows.

  Attributes:
    mean: mean of each latent over rows.
    rate: share of rows on which each latent is not 0.
  """

  mean: Float[np.ndarray, "n"]
  rate: Float[np.ndarray, "n"]

  def energy(self, W_dec: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n"]:
    """Computes |mean_k w_k|, the norm of a concept's mean contribution.

    Args:
      W_dec: decoder rows.
    """
    return np.abs(self.mean) * np.linalg.norm(W_dec, axis=-1)


@dataclasses.dataclass(frozen=True)
class Shift:
  """Shift of concepts between two sets.

  Attributes:
    delta: delta of each concept, in (0, 1).
    frequency_correlation: Pearson correlation of |delta_k - 1/2| and the rate in
      the real set; NaN where one of the two does not vary.
  """

  delta: Float[np.ndarray, "n"]
  frequency_correlation: float

  @property
  def suppressed(self) -> np.ndarray:
    """Concepts with delta below 0.1, lowest first."""
    order = np.argsort(self.delta, kind="stable")
    return order[self.delta[order] < SUPPRESSED]

  @property
  def exaggerated(self) -> np.ndarray:
    """Concepts with delta above 0.9, highest first."""
    order = np.argsort(-self.delta, kind="stable")
    return order[self.delta[order] > EXAGGERATED]

  @property
  def skewness(self) -> float:
    """Skewness of delta: negative where suppression has the longer tail."""
    if np.ptp(self.delta) == 0:
      return 0.0
    return float(scipy.stats.skew(self.delta))


def concepts(
  sae: SAE, x: Float[np.ndarray, "*b d"], *, batch_rows: int = 4096
) -> Concepts:
  """Computes means and rates of an SAE's latents over rows.

  Args:
    sae: the SAE, whose latents are the concepts.
    x: rows, with any leading axes, such as images and patches.
    batch_rows: rows per batch on the device.

  Raises:
    InputError: there are no rows.
  """
  rows = x.reshape(-1, x.shape[-1])
  if not len(rows):
    raise InputError("x", x.shape, "must have at least one row", "pass rows")

  @jax.jit
  def sums(sae, x, real):
    z = jnp.where(real[:, None], sae.encode(x), 0)
    return jnp.sum(z, axis=0), jnp.sum(z != 0, axis=0, dtype=jnp.int32)

  total, count = np.zeros(sae.n), np.zeros(sae.n)
  for start in range(0, len(rows), batch_rows):
    part = np.asarray(rows[start : start + batch_rows])
    added, on = sums(sae, *reading.pad(part, batch_rows))
    total += np.asarray(added)
    count += np.asarray(on)
  return Concepts(total / len(rows), count / len(rows))


def shift(real: Concepts, generated: Concepts) -> Shift:
  """Compares the strength of each concept in the generated and the real set.

  Args:
    real: concepts of the real set.
    generated: concepts of the generated set, with the same SAE.

  Raises:
    InputError: the numbers of concepts differ, or no concept is active in the
      real set.
  """
  if real.mean.shape != generated.mean.shape:
    raise InputError(
      "generated",
      generated.mean.shape,
      f"must have as many concepts as real, {real.mean.shape}",
      "encode both sets with one SAE",
    )
  on = real.mean != 0
  if not on.any():
    raise InputError(
      "real", 0, "at least one concept must be active", "check the SAE's prep"
    )
  scale = np.median(np.abs(real.mean[on]))
  delta = scipy.special.expit((generated.mean - real.mean) / scale)
  off, rate = np.abs(delta - 0.5), real.rate
  varies = np.ptp(off) > 0 and np.ptp(rate) > 0
  correlation = np.corrcoef(off, rate)[0, 1] if varies else np.nan
  return Shift(delta, float(correlation))
