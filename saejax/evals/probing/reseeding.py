"""Noise of a score over repeated runs: other splits, negatives and probes.

With R runs of standard deviation s and Student's t of R - 1 degrees of freedom,

  interval     mean +- t_.975 s sqrt(1 + 1/R): where one more run falls with 95 %
  detectable   (t'_.975 + t'_.8) s sqrt(2 / R), t' of 2 R - 2: the least
               difference of two SAEs, of R runs each, that a test at the level
               0.05 finds with 80 %

Two SAEs whose means differ by less are not told apart by the score.
"""

import dataclasses

import numpy as np
from jaxtyping import Float
from scipy import stats

LEVEL, POWER = 0.05, 0.8


@dataclasses.dataclass(frozen=True, eq=False)
class Repeated:
  """Values of a score, of several runs.

  Attributes:
    values: one per run.
  """

  values: Float[np.ndarray, "R"]

  @property
  def mean(self) -> float:
    """Mean over runs."""
    return float(self.values.mean())

  @property
  def sd(self) -> float:
    """Standard deviation over runs; infinite for one."""
    many = len(self.values) > 1
    return float(self.values.std(ddof=1)) if many else float("inf")

  @property
  def interval(self) -> tuple[float, float]:
    """The interval of the module's docstring."""
    R = len(self.values)
    if R < 2:
      return -np.inf, np.inf
    half = stats.t.ppf(1 - LEVEL / 2, R - 1) * self.sd * np.sqrt(1 + 1 / R)
    return self.mean - float(half), self.mean + float(half)

  @property
  def detectable(self) -> float:
    """The minimum detectable difference of the module's docstring."""
    R = len(self.values)
    if R < 2:
      return float("inf")
    quantiles = stats.t.ppf([1 - LEVEL / 2, POWER], 2 * R - 2)
    return float(quantiles.sum() * self.sd * np.sqrt(2 / R))

  def record(self) -> dict[str, float | None]:
    """Returns the numbers, for results.json; None for one run's noise."""
    low, high = self.interval
    numbers = {"sd": self.sd, "low": low, "high": high}
    numbers["detectable"] = self.detectable
    known = len(self.values) > 1
    return {
      "mean": self.mean,
      **{name: value if known else None for name, value in numbers.items()},
    }
