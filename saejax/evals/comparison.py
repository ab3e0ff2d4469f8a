"""Compares two methods over paired seeds: effect, interval, verdict.

The effect is the mean of paired differences over seeds with equal data, and its
95 % interval is that of Student's distribution. Errors are compared as
differences of log FVU at equal held-out L0, so that -0.05 means 5 % lower. Two
models on the same rows are compared by a bootstrap over documents.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy import stats

HOLDS, FAILS, UNDECIDED = "holds", "does not hold", "undecided"


@dataclasses.dataclass(frozen=True)
class Difference:
  """A mean difference and its 95 % interval.

  Attributes:
    effect: mean over pairs.
    low, high: ends of the interval; infinite for fewer than 2 pairs.
    pairs: number of pairs.
  """

  effect: float
  low: float
  high: float
  pairs: int


def difference(a: Sequence[float], b: Sequence[float]) -> Difference:
  """Computes the mean of a - b over pairs, with its interval.

  Args:
    a: values of one method, one per seed.
    b: values of the other method, for equal seeds.

  Raises:
    ValueError: the lengths differ, or there are no pairs.

  >>> difference([2.0, 2.0], [1.0, 1.0]).effect
  1.0
  """
  if len(a) != len(b) or not len(a):
    raise ValueError(
      f"a and b must have equally many values, got {len(a)} and {len(b)}"
    )
  d = np.asarray(a, float) - np.asarray(b, float)
  if len(d) < 2:
    return Difference(float(d.mean()), -np.inf, np.inf, len(d))
  half = stats.t.ppf(0.975, len(d) - 1) * d.std(ddof=1) / np.sqrt(len(d))
  mean = float(d.mean())
  return Difference(mean, mean - float(half), mean + float(half), len(d))


def resampled(
  difference: Float[np.ndarray, "D"],
  weight: Float[np.ndarray, "D"],
  *,
  resamples: int = 2000,
  seed: int = 0,
) -> Difference:
  """Computes sum difference / sum weight, with its paired bootstrap interval.

  Units, such as documents, are drawn with replacement; a unit's difference and
  weight stay together. The interval is from percentiles 2.5 to 97.5.

  Args:
    difference: sum over each unit of a - b.
    weight: sum over each unit of what is divided by, such as rows.
    resamples: resamples of the units.
    seed: of the resampling.

  References:
    Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.

  >>> resampled(np.array([1.0, 1.0]), np.array([2.0, 2.0])).high
  0.5
  """
  effect = float(difference.sum() / weight.sum())
  if len(difference) < 2:
    return Difference(effect, -np.inf, np.inf, len(difference))
  rng = np.random.default_rng(seed)
  means = np.empty(resamples)
  for i in range(resamples):
    drawn = rng.integers(len(difference), size=len(difference))
    means[i] = difference[drawn].sum() / weight[drawn].sum()
  low, high = np.quantile(means, [0.025, 0.975])
  return Difference(effect, float(low), float(high), len(difference))


def verdict(found: Difference, *, claim: str, margin: float) -> str:
  """Decides whether a difference exceeds a margin.

  Args:
    found: the difference.
    claim: "lower" or "higher", the claimed side of 0.
    margin: minimum size of the effect.

  Returns:
    "holds" if the whole interval is beyond the margin on the claimed side,
      "does not hold" if none of it is, otherwise "undecided".

  Raises:
    ValueError: the claim is another.

  >>> verdict(Difference(-0.2, -0.3, -0.1, 5), claim="lower", margin=0.05)
  'holds'
  """
  if claim not in ("lower", "higher"):
    raise ValueError(f"claim must be lower or higher, got {claim!r}")
  sign = -1 if claim == "lower" else 1
  low, high = sorted((sign * found.low, sign * found.high))
  if np.isnan(low) or np.isnan(high):
    return UNDECIDED
  if low > margin:
    return HOLDS
  return FAILS if high <= margin else UNDECIDED


def log_fvu_at(l0: Sequence[float], fvu: Sequence[float], at: float) -> float:
  """Interpolates log FVU at an L0, linearly in log L0.

  Beyond the ends it is extrapolated by up to 10 %, and NaN further away. A
  single point is used within 5 % of its L0.

  Args:
    l0: L0 of each point.
    fvu: FVU of each point.
    at: the L0 to interpolate at.
  """
  order = np.argsort(l0)
  x = np.log(np.maximum(np.asarray(l0, float)[order], 1e-9))
  y = np.log(np.asarray(fvu, float)[order])
  target = np.log(at)
  reach = np.log(1.05 if len(x) == 1 else 1.1)
  if not x[0] - reach <= target <= x[-1] + reach:
    return np.nan
  # The segment around the target, or the one at that end.
  i = min(max(int(np.searchsorted(x, target)), 1), len(x) - 1)
  run = x[i] - x[i - 1]
  slope = (y[i] - y[i - 1]) / run if run > 0 else 0.0
  return float(y[i] + slope * (target - x[i]))
