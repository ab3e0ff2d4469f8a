"""Description length: bits per row of latents that are rounded to bins.

The values of latent f where it is active are divided into b equal bins between the
least and the largest; a bin is decoded as its middle. With p_f the share of rows
where f is active and H in bits,

  bits(b) = sum_f [H(p_f) + p_f H(bin | f is active)]
  loss(b) = sum |x_hat - x_hat_b|^2 / sum |x - mean|^2

where x_hat_b is decoded from the bins. The description length is the least bits(b)
over b with a loss of at most the tolerance. Latents are coded one by one, so that
it bounds the length of a joint code from above.

SAEBench names bins and tolerance alone; the range of the bins and the loss relative
to the variance of x are our definition.

References:
  Karvonen et al., SAEBench, 2025, arXiv:2503.09532.
  Ayonrinde et al., Interpretability as Compression, 2024, arXiv:2410.11179.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from saejax.errors import InputError
from saejax.features import reading

BINS, TOLERANCE = (4, 6, 8, 12, 16, 32), 0.01


@dataclasses.dataclass(frozen=True, eq=False)
class DescriptionLength:
  """Bits per row for each number of bins.

  Attributes:
    bins: numbers of bins.
    bits: bits per row.
    loss: error that the bins add, relative to the variance of x.
    tolerance: the largest loss.
  """

  bins: Sequence[int]
  bits: Float[np.ndarray, "b"]
  loss: Float[np.ndarray, "b"]
  tolerance: float

  @property
  def best(self) -> int | None:
    """The number of bins with the fewest bits within the tolerance, or None."""
    inside = np.where(self.loss <= self.tolerance, self.bits, np.inf)
    at = int(inside.argmin())
    return self.bins[at] if np.isfinite(inside[at]) else None

  @property
  def length(self) -> float:
    """The description length; infinite where no number of bins is enough."""
    best = self.best
    if best is None:
      return float("inf")
    return float(self.bits[list(self.bins).index(best)])

  def record(self) -> dict[str, float | int | None]:
    """Returns the numbers, for results.json."""
    best = self.best
    found = {"bins": best, "length": None if best is None else self.length}
    for b, bits, loss in zip(self.bins, self.bits, self.loss, strict=True):
      found[f"bits_{b}"], found[f"loss_{b}"] = float(bits), float(loss)
    return found


def description_length(
  sae: Any,
  x: Float[np.ndarray, "N d"],
  *,
  bins: Sequence[int] = BINS,
  tolerance: float = TOLERANCE,
  batch_rows: int = 4096,
) -> DescriptionLength:
  """Computes bits per row; rows are read twice, in batches.

  Args:
    sae: an SAE in the inference form, or any object with its `encode` and
      `decode`.
    x: rows.
    bins: numbers of bins.
    tolerance: largest error that bins may add, relative to the variance of x.
    batch_rows: rows per batch on the device.

  Raises:
    InputError: there are fewer than two rows, they are all equal, or a number of
      bins is below 1.
  """
  if len(x) < 2 or min(bins, default=0) < 1:
    field, value = ("x", f"{len(x)} rows") if len(x) < 2 else ("bins", bins)
    rule = "must be at least 2" if len(x) < 2 else "must be at least 1 each"
    raise InputError(field, value, rule, "give more")
  batch_rows = min(batch_rows, len(x))
  encode, decode = jax.jit(sae.encode), jax.jit(sae.decode)

  def batches():
    for start in range(0, len(x), batch_rows):
      rows = np.asarray(x[start : start + batch_rows], np.float32)
      padded, _ = reading.pad(rows, batch_rows)
      yield rows, np.array(encode(padded))

  rows = np.asarray(x[:1], np.float32)
  try:
    jax.eval_shape(lambda rows: sae.decode(sae.encode(rows)), rows)
  except ValueError as error:
    rule = f"must decode latents without their row ({error})"
    raise InputError("sae", type(sae).__name__, rule, "give another") from error
  mean = np.mean(x, axis=0, dtype=np.float64)
  low, high, variance = np.inf, -np.inf, 0.0
  for rows, z in batches():
    z = z[: len(rows)]
    low = np.minimum(low, np.where(z != 0, z, np.inf).min(axis=0))
    high = np.maximum(high, np.where(z != 0, z, -np.inf).max(axis=0))
    variance += float(((rows - mean) ** 2).sum())
  if not variance:
    raise InputError("x", "equal rows", "must vary", "give other rows")
  counts = [np.zeros((len(low), b), np.int64) for b in bins]
  added = np.zeros(len(bins))
  for rows, z in batches():
    exact = np.asarray(decode(z))[: len(rows)]
    for i, b in enumerate(bins):
      rounded, bin_ = _rounded(z, low, high, b)
      row, latent = np.nonzero(z[: len(rows)])
      np.add.at(counts[i], (latent, bin_[row, latent]), 1)
      coarse = np.asarray(decode(rounded))[: len(rows)]
      added[i] += float(((exact - coarse).astype(np.float64) ** 2).sum())
  bits = np.array([_bits(count, len(x)) for count in counts])
  return DescriptionLength(tuple(bins), bits, added / variance, tolerance)


def _rounded(z, low, high, bins: int) -> tuple[np.ndarray, np.ndarray]:
  """Latents at the middles of their bins, and the bins."""
  alive = high >= low
  width = np.where(alive, high - low, 0) / bins
  low = np.where(alive, low, 0)
  # Equal values are one bin of no width.
  place = (z - low) / np.where(width > 0, width, 1)
  bin_ = np.clip(place.astype(np.int64), 0, bins - 1)
  middle = low + np.where(width > 0, bin_ + 0.5, 0) * width
  return np.where(z != 0, middle, 0).astype(z.dtype), bin_


def _bits(count: Int[np.ndarray, "n b"], rows: int) -> float:
  """sum_f H(p_f) + p_f H(bin | active), in bits."""
  active = count.sum(axis=1)
  p = active / rows
  within = _entropy(count / np.maximum(active, 1)[:, None])
  return float((_entropy(np.stack([p, 1 - p], axis=1)) + p * within).sum())


def _entropy(p: Float[np.ndarray, "n b"]) -> Float[np.ndarray, "n"]:
  return -(p * np.log2(np.where(p > 0, p, 1))).sum(axis=1)
