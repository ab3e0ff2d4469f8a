"""Null tests: a statistic beside its values on data without the effect.

With R values t_r of the statistic under the null and the observed one t,

  p = (1 + #{t_r > t} + u) / (1 + R),   u uniform on {0, ..., #{t_r = t}}

which is the rank of t among all R + 1 values, with equal values in random order:
where t is drawn like the others, p is uniform on {1, ..., R + 1} / (R + 1), ties
or not, and it is never 0. A large statistic is evidence; negate one whose small
values are. Without ties this is (1 + #{t_r >= t}) / (1 + R).

Nulls: permuted labels (or a permuted pairing), random directions of equal norms,
and random latents of like densities.

References:
  Phipson and Smyth, Permutation P-values Should Never Be Zero, 2010.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int, Shaped

from saejax.errors import InputError

_NEAR = 16  # latents of nearest density that one is drawn from


@dataclasses.dataclass(frozen=True)
class Null:
  """An observed statistic and its values under the null.

  Attributes:
    observed: the statistic.
    draws: its values under the null [R].
    seed: seed of the order of equal values, see `p`.
  """

  observed: float
  draws: Float[np.ndarray, "R"]
  seed: int = 0

  @property
  def mean(self) -> float:
    """Mean under the null."""
    return float(np.mean(self.draws))

  @property
  def sd(self) -> float:
    """Standard deviation under the null; NaN for one draw."""
    many = len(self.draws) > 1
    return float(np.std(self.draws, ddof=1)) if many else float("nan")

  @property
  def z(self) -> float:
    """(observed - mean) / sd; NaN where the null does not vary."""
    return (self.observed - self.mean) / self.sd if self.sd else float("nan")

  @property
  def p(self) -> float:
    """The p value of the module's docstring."""
    return p_value(self.observed, self.draws, seed=self.seed)

  def record(self) -> dict[str, float]:
    """Returns the numbers, for results.json."""
    names = ("observed", "mean", "sd", "z", "p")
    return {
      **{name: float(getattr(self, name)) for name in names},
      "draws": len(self.draws),
    }


def p_value(
  observed: float, draws: Float[np.ndarray, "R"], *, seed: int
) -> float:
  """Computes the p value of the module's docstring.

  Args:
    observed: the statistic.
    draws: its values under the null.
    seed: seed of the order of equal values.

  Raises:
    InputError: there are no draws, or a value is NaN.

  >>> p_value(3.0, np.array([1.0, 2.0, 4.0]), seed=0)
  0.5
  """
  draws = np.asarray(draws, np.float64)
  if draws.ndim != 1 or not len(draws):
    rule = "must be at least one value [R]"
    raise InputError("draws", f"shape {draws.shape}", rule, "draw the null")
  for field, value in (("observed", observed), ("draws", draws)):
    if np.isnan(value).any():
      rule, remedy = "must not be NaN", "define the statistic on every draw"
      raise InputError(field, "NaN", rule, remedy)
  ties = int((draws == observed).sum())
  among = int(np.random.default_rng(seed).integers(ties + 1))
  return (1 + int((draws > observed).sum()) + among) / (1 + len(draws))


def permuted(
  labels: Shaped[np.ndarray, "N *s"], *, count: int, seed: int
) -> Iterator[Shaped[np.ndarray, "N *s"]]:
  """Yields labels in random orders, one at a time.

  Columns stay together: rows are permuted.

  Args:
    labels: labels of rows.
    count: number of orders.
    seed: seed of the orders.

  >>> [sorted(y.tolist()) for y in permuted(np.arange(3), count=1, seed=0)]
  [[0, 1, 2]]
  """
  labels, rng = np.asarray(labels), np.random.default_rng(seed)
  for _ in range(count):
    yield labels[rng.permutation(len(labels))]


def random_directions(
  like: Float[np.ndarray, "n d"], *, seed: int
) -> Float[np.ndarray, "n d"]:
  """Draws uniform random directions with the norms of given rows, float64.

  Args:
    like: rows, such as those of a decoder.
    seed: seed of the draw.
  """
  like = np.asarray(like, np.float64)
  drawn = np.random.default_rng(seed).standard_normal(like.shape)
  size = np.linalg.norm(like, axis=-1) / np.linalg.norm(drawn, axis=-1)
  return drawn * size[..., None]


def matched(
  density: Float[np.ndarray, "n"],
  chosen: Int[np.ndarray, "m"],
  *,
  count: int,
  seed: int,
) -> Int[np.ndarray, "count m"]:
  """Draws sets of other latents with densities like those of chosen ones.

  Each chosen latent is replaced by one of the 16 whose densities have the
  nearest ratio to its own; no latent is twice in a set, and no chosen one is.

  Args:
    density: share of rows where each latent is not 0.
    chosen: numbers of the chosen latents, each once.
    count: number of sets.
    seed: seed of the draw.

  Returns:
    Latents, in the order of `chosen`.

  Raises:
    InputError: a latent is chosen twice or does not exist, or fewer others are
      left than are chosen.
  """
  density, chosen = np.asarray(density, np.float64), np.asarray(chosen)
  n, m = len(density), len(chosen)
  inside = (chosen >= 0) & (chosen < n)
  if len(np.unique(chosen)) < m or not inside.all():
    rule = f"must be different latents in [0, n={n})"
    raise InputError("chosen", chosen.tolist(), rule, "name each once")
  if n - m < m:
    rule = f"must be at most half of the {n} latents"
    raise InputError("chosen", f"{m} latents", rule, "choose fewer")
  alive = density[density > 0]
  least = alive.min() / 2 if len(alive) else 1.0  # of those that are never on
  size = np.log(np.maximum(density, least))
  others = np.setdiff1d(np.arange(n), chosen)
  others = others[np.argsort(size[others], kind="stable")]
  place = np.searchsorted(size[others], size[chosen])
  reach = _NEAR + m  # at least _NEAR of these are free
  rng, sets = np.random.default_rng(seed), np.zeros((count, m), np.int64)
  for one in sets:
    free = np.ones(len(others), bool)
    for j in rng.permutation(m):
      start = max(0, place[j] - reach)
      window = start + np.flatnonzero(free[start : place[j] + reach])
      apart = np.abs(size[others[window]] - size[chosen[j]])
      near = window[np.argsort(apart, kind="stable")[:_NEAR]]
      pick = rng.choice(near)
      one[j], free[pick] = others[pick], False
  return sets
