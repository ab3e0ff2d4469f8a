"""Two methods compared over paired seeds: effect, interval, verdict.

The effect is a difference of means over seeds with the same data; its interval
is Student's, at 95 %. Errors are compared as differences of log FVU at equal
held-out L0, so that -0.05 reads "5 % lower".
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy import stats

HOLDS, FAILS, UNDECIDED = "holds", "does not hold", "undecided"


@dataclasses.dataclass(frozen=True)
class Difference:
  """A mean difference and its 95 % interval.

  Attributes:
    effect: mean over pairs.
    low, high: ends of the interval; infinite with fewer than 2 pairs.
    pairs: number of seeds.
  """

  effect: float
  low: float
  high: float
  pairs: int


def difference(a: Sequence[float], b: Sequence[float]) -> Difference:
  """a - b over pairs, with Student's interval.

  Raises:
    ValueError: the lengths differ, or there are no pairs.
  """
  if len(a) != len(b) or not len(a):
    raise ValueError(f"pairs must be equal in number, got {len(a)}, {len(b)}")
  d = np.asarray(a, float) - np.asarray(b, float)
  if len(d) < 2:
    return Difference(float(d.mean()), -np.inf, np.inf, len(d))
  half = stats.t.ppf(0.975, len(d) - 1) * d.std(ddof=1) / np.sqrt(len(d))
  mean = float(d.mean())
  return Difference(mean, mean - float(half), mean + float(half), len(d))


def verdict(found: Difference, *, claim: str, margin: float) -> str:
  """Whether a difference is "lower" or "higher" than 0 by more than a margin.

  "holds" if the whole interval lies beyond the margin on the claimed side,
  "does not hold" if it lies wholly on the other side of the margin (which
  includes effects inside the margin), otherwise "undecided".
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

  It is extrapolated by up to 10 % beyond the ends, NaN further out. A single
  point is used if its L0 is within 5 % of the given one.
  """
  order = np.argsort(l0)
  x = np.log(np.maximum(np.asarray(l0, float)[order], 1e-9))
  y = np.log(np.asarray(fvu, float)[order])
  asked = np.log(at)
  reach = np.log(1.05 if len(x) == 1 else 1.1)
  if not x[0] - reach <= asked <= x[-1] + reach:
    return np.nan
  # The segment around it, or the one at that end.
  i = min(max(int(np.searchsorted(x, asked)), 1), len(x) - 1)
  run = x[i] - x[i - 1]
  slope = (y[i] - y[i - 1]) / run if run > 0 else 0.0
  return float(y[i] + slope * (asked - x[i]))
