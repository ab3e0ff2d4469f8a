"""A directional claim of a paper, and how it is measured over paired seeds.

A claim names two arms that share seeds, a measure of their SAEs, and the
direction in which the paper says that the first differs. Measuring it gives an
effect, its 95 % interval and a verdict; a claim that does not hold at these
sizes is reported like one that does.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from saejax.evals import comparison

LOWER, HIGHER = "lower", "higher"
NOT_JUDGED = "not judged"
SITE = "site"  # group of claims that are measured on each site
TRUNCATED = (2, 4, 8)  # latents kept of SAEs that keep more
Points = Sequence[Mapping[str, Any]]
BySeed = Mapping[int, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
  """Sizes of the SAEs on a site, which claims refer to by name.

  Attributes:
    n: latents.
    k: active latents per token, ascending.
  """

  n: int
  k: tuple[int, ...]

  @property
  def low(self) -> int:
    return self.k[0]

  @property
  def mid(self) -> int:
    return self.k[len(self.k) // 2]

  @property
  def high(self) -> int:
    return self.k[-1]

  @property
  def sparse(self) -> int:
    """Few enough that latents die."""
    return max(2, self.low // 2)

  @property
  def common_l0(self) -> float:
    """An L0 inside the range of every arm."""
    return (self.low * self.high) ** 0.5

  @property
  def few(self) -> int:
    """Latents that an SAE trained with `high` is cut down to."""
    return max((k for k in TRUNCATED if k < self.high), default=self.low)

  @property
  def same(self) -> int:
    """The most of those that an SAE was trained with too."""
    return max((k for k in TRUNCATED if k in self.k[:-1]), default=self.low)


# From the points of an arm and the sizes of the site to one value per seed.
Read = Callable[[Points, Sizes | None], BySeed]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measure:
  """The quantity compared by a claim.

  Attributes:
    compare: function of the points of both arms that gives a value per seed for
      each.
    unit: unit of the effect.
    margin: smallest effect that counts; if negative, the first arm may be worse
      by as much.
  """

  compare: Callable[[Points, Points, Sizes | None], tuple[BySeed, BySeed]]
  unit: str = "difference of log FVU"
  margin: float = 0.01


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claim:
  """A directional claim about two arms, a row of a table.

  Attributes:
    recipe: name of the method's recipe.
    paper: arXiv id, or a name where there is none.
    claim: the sentence, its subject the method; {few}, {same} and {high} stand
      for sizes of the site.
    arms: the method's arm and the one that it is compared with.
    measure: the quantity compared.
    direction: LOWER or HIGHER.
    margin: replaces the measure's margin.
    group: rows that the claim is about: SITE, or the name of a group of arms.
    reservation: why the comparison cannot judge the claim as it is set up; it
      is measured and reported, without a verdict.
  """

  recipe: str
  paper: str
  claim: str
  arms: tuple[str, str]
  measure: Measure
  direction: str
  margin: float | None = None
  group: str = SITE
  reservation: str = ""


def measured(
  claim: Claim, points: Points, data: str, sizes: Sizes | None = None
) -> dict[str, Any]:
  """The record of a claim for results.json.

  Args:
    claim: what is claimed.
    points: of all arms; those of `data` are used.
    data: name of the rows.
    sizes: of the SAEs there, for claims about a site.

  Returns:
    recipe, paper, claim, method, against, direction, margin, unit, data, seeds,
    verdict, reservation, effect and interval; the last two are None where no
    seed has both numbers. The verdict of a claim with a reservation is
    NOT_JUDGED.
  """
  own = [p for p in points if p["data"] == data and p["status"] == "ok"]
  method, against = claim.arms
  ours, theirs = claim.measure.compare(
    [p for p in own if p["arm"] == method],
    [p for p in own if p["arm"] == against],
    sizes,
  )
  seeds = sorted(
    s
    for s in ours.keys() & theirs.keys()
    if np.isfinite([ours[s], theirs[s]]).all()
  )
  margin = claim.measure.margin if claim.margin is None else claim.margin
  record: dict[str, Any] = {
    "recipe": claim.recipe,
    "paper": claim.paper,
    "claim": worded(claim.claim, sizes),
    "method": method,
    "against": against,
    "direction": claim.direction,
    "margin": margin,
    "unit": claim.measure.unit,
    "data": data,
    "seeds": len(seeds),
    "verdict": NOT_JUDGED if claim.reservation else comparison.UNDECIDED,
    "reservation": claim.reservation,
    "effect": None,
    "interval": None,
  }
  if not seeds:
    return record
  effect = comparison.difference(
    [ours[s] for s in seeds], [theirs[s] for s in seeds]
  )
  record["effect"] = effect.effect
  record["interval"] = [effect.low, effect.high]
  if not claim.reservation:
    record["verdict"] = comparison.verdict(
      effect, claim=claim.direction, margin=margin
    )
  return record


def worded(text: str, sizes: Sizes | None) -> str:
  """A text in which {few}, {same} and {high} are the sizes of a site.

  Args:
    text: the text, with or without these names.
    sizes: sizes of the site; the text is unchanged if None.
  """
  if sizes is None:
    return text
  names = {name: getattr(sizes, name) for name in ("few", "same", "high")}
  return text.format(**names)


# --- measures ----------------------------------------------------------------


def both(read: Read, unit: str, margin: float = 0.01) -> Measure:
  """A measure that reads one number of both arms.

  Args:
    read: function of an arm's points that gives a value per seed.
    unit: unit of the effect.
    margin: smallest effect that counts, see `Measure`.
  """
  return each(read, read, unit, margin)


def each(
  read: Read,
  other: Read,
  unit: str = "difference of log FVU",
  margin: float = 0.01,
) -> Measure:
  """A number of the method and another of the arm it is compared with.

  Args:
    read: function of the method's points that gives a value per seed.
    other: likewise for the other arm.
    unit: unit of the effect.
    margin: smallest effect that counts, see `Measure`.
  """
  compare = lambda a, b, sizes: (read(a, sizes), other(b, sizes))
  return Measure(compare=compare, unit=unit, margin=margin)


def mean_of(name: str, k: str | None = None, **where: Any) -> Read:
  """A field of each seed's points, averaged.

  Args:
    name: of the field; {few} and others stand for sizes.
    k: points of that size only, by name of a property of `Sizes`.
    **where: fields in which points must agree.
  """

  def read(points: Points, sizes: Sizes | None) -> BySeed:
    wanted = dict(where) if k is None else {**where, "k": getattr(sizes, k)}
    field = worded(name, sizes)
    chosen = [
      p for p in points if all(p.get(k) == v for k, v in wanted.items())
    ]
    return {
      seed: float(np.mean([_float(p.get(field)) for p in own]))
      for seed, own in by_seed(chosen).items()
    }

  return read


def log_of(name: str, k: str | None = None, **where: Any) -> Read:
  """The logarithm of `mean_of`: differences are ratios.

  Args:
    name: of the field, see `mean_of`.
    k: points of that size only, see `mean_of`.
    **where: fields in which points must agree.
  """
  inner = mean_of(name, k, **where)
  return lambda points, sizes: {
    seed: float(np.log(value)) for seed, value in inner(points, sizes).items()
  }


def at_common_l0(points: Points, sizes: Sizes | None) -> BySeed:
  """log FVU of each seed at an L0 inside the range of every arm.

  Args:
    points: of one arm.
    sizes: sizes of the site, which give the L0.

  Raises:
    ValueError: there are no sizes.
  """
  if sizes is None:
    raise ValueError("claims at a common L0 are about a site with sizes")
  return log_fvu_at(points, sizes.common_l0)


def log_fvu_at(points: Points, l0: float) -> BySeed:
  """log FVU of each seed at a held-out L0, between the arm's points.

  Args:
    points: of one arm, at several L0.
    l0: mean number of active latents per row.
  """
  return {
    seed: comparison.log_fvu_at(
      [p["l0"] for p in own], [p["fvu"] for p in own], l0
    )
    for seed, own in by_seed(points).items()
  }


def at_own_l0(
  ours: Points, theirs: Points, sizes: Sizes | None
) -> tuple[BySeed, BySeed]:
  """log FVU of each seed of the method, and of the other arm at that L0.

  Args:
    ours: points of the method; the first of each seed is used.
    theirs: points of the other arm, at several L0.
    sizes: unused.

  Returns:
    A value per seed for each arm; the second lacks seeds that `theirs` lacks.
  """
  del sizes
  first = {seed: own[0] for seed, own in by_seed(ours).items()}
  values = {seed: float(np.log(p["fvu"])) for seed, p in first.items()}
  there = {s: log_fvu_at(theirs, p["l0"]) for s, p in first.items()}
  return values, {s: found[s] for s, found in there.items() if s in found}


def by_seed(points: Points) -> dict[int, list[Mapping[str, Any]]]:
  """The points of each seed.

  Args:
    points: with the field seed; their order is kept.
  """
  groups: dict[int, list[Mapping[str, Any]]] = {}
  for p in points:
    groups.setdefault(p["seed"], []).append(p)
  return groups


def _float(value: Any) -> float:
  return float("nan") if value is None else float(value)
