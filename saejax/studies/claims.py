"""Directional claims of papers, measured here over paired seeds.

A claim names two sets of points that share seeds, a number of each SAE, and
the direction in which the paper says the first differs. What comes out is an
effect, its 95 % interval and a verdict; a claim that does not hold at these
sizes is reported like one that does.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from saejax.evals import comparison
from saejax.report import curves, page, study
from saejax.studies import arms

MARGIN = 0.01  # of log FVU: 1 %
COLOURS = {
  comparison.HOLDS: "#009E73",
  comparison.FAILS: "#D55E00",
  comparison.UNDECIDED: "#5a6472",
}
Points = Sequence[Mapping[str, Any]]
# From the points of an arm to one value a seed.
Read = Callable[[Points], Mapping[int, float]]
# The same for both arms, the second of which may depend on the first.
Compare = Callable[[Points, Points], tuple[Mapping[int, float], ...]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claim:
  """One directional claim.

  Attributes:
    recipe: of the method.
    paper: arXiv id.
    claim: the sentence, its subject the method.
    method, against: names of the two arms.
    compare: the numbers compared: see `both`, `each` and `at_own_l0`.
    unit: of the effect.
    direction: "lower" or "higher".
    margin: an effect within it does not count.
    data: on which rows.
  """

  recipe: str
  paper: str
  claim: str
  method: str
  against: str
  compare: Compare
  direction: str
  data: str
  unit: str = "difference of log FVU"
  margin: float = MARGIN


def both(read: Read) -> Compare:
  """One number of both arms."""
  return each(read, read)


def each(read: Read, other: Read) -> Compare:
  """A number of the method and another of the arm it is compared with."""
  return lambda ours, theirs: (read(ours), other(theirs))


def at_own_l0(ours: Points, theirs: Points) -> tuple[dict[int, float], ...]:
  """log FVU of each seed of the method, and of the other arm at that L0."""
  own = {seed: of[0] for seed, of in _by_seed(ours).items()}
  values = {seed: float(np.log(p["fvu"])) for seed, p in own.items()}
  at = {seed: log_fvu(p["l0"])(theirs) for seed, p in own.items()}
  return values, {s: found[s] for s, found in at.items() if s in found}


def log_fvu(l0: float) -> Read:
  """log FVU of each seed at a held-out L0, between the arm's points."""

  def read(points: Points) -> dict[int, float]:
    return {
      seed: comparison.log_fvu_at(
        [p["l0"] for p in of], [p["fvu"] for p in of], l0
      )
      for seed, of in _by_seed(points).items()
    }

  return read


def mean_of(name: str, **where: Any) -> Read:
  """A field of each seed's points, averaged over those that agree."""

  def read(points: Points) -> dict[int, float]:
    chosen = [p for p in points if all(p.get(k) == v for k, v in where.items())]
    return {
      seed: float(np.mean([_float(p.get(name)) for p in of]))
      for seed, of in _by_seed(chosen).items()
    }

  return read


def log_of(name: str, **where: Any) -> Read:
  """The logarithm of `mean_of`: differences are ratios."""
  inner = mean_of(name, **where)
  return lambda points: {
    seed: float(np.log(value)) for seed, value in inner(points).items()
  }


def measure(claim: Claim, points: Points) -> dict[str, Any]:
  """The record of a claim for results.json.

  Returns:
    recipe, paper, claim, verdict, effect, interval, seeds, data, unit.
  """
  of = {
    name: [p for p in points if p["arm"] == name and p["status"] == "ok"]
    for name in (claim.method, claim.against)
  }
  ours, theirs = claim.compare(of[claim.method], of[claim.against])
  seeds = sorted(
    s for s in ours.keys() & theirs.keys() if _good(ours[s], theirs[s])
  )
  record: dict[str, Any] = {
    "recipe": claim.recipe,
    "paper": claim.paper,
    "claim": claim.claim,
    "method": claim.method,
    "against": claim.against,
    "direction": claim.direction,
    "unit": claim.unit,
    "data": claim.data,
    "seeds": len(seeds),
  }
  if not seeds:
    return {
      **record,
      "verdict": comparison.UNDECIDED,
      "effect": None,
      "interval": None,
    }
  found = comparison.difference(
    [ours[s] for s in seeds], [theirs[s] for s in seeds]
  )
  return {
    **record,
    "verdict": comparison.verdict(
      found, claim=claim.direction, margin=claim.margin
    ),
    "effect": found.effect,
    "interval": [found.low, found.high],
  }


def sections(
  found: Sequence[Mapping[str, Any]],
) -> tuple[list[page.Section], dict[str, Any]]:
  """The table and the figures of the claims measured, and these by name."""
  verdicts = [c["verdict"] for c in found]
  numbers = [
    (str(verdicts.count(verdict)), verdict)
    for verdict in (comparison.HOLDS, comparison.FAILS, comparison.UNDECIDED)
  ]
  drawn = figures(found)
  made = [
    page.Section(
      "Verdicts",
      [
        page.Numbers(numbers),
        page.Prose(
          "Each line compares two methods over seeds that share data and "
          "order. A claim holds where the whole 95 % interval of the effect "
          "lies beyond the margin on the side that the paper says. These are "
          "short runs of small SAEs: a claim that does not hold here may hold "
          "at the paper's size."
        ),
        *(
          study.figure(effects, f"Effects in {unit}.", f"Effects: {unit}.")
          for unit, effects in drawn.items()
        ),
        _table(found),
      ],
    )
  ]
  return made, {arms.slug(unit): effects for unit, effects in drawn.items()}


def figures(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """The effects with their intervals, a figure for each unit."""
  units = dict.fromkeys(c["unit"] for c in found)
  drawn = {}
  for unit in units:
    shown = [
      c
      for c in found
      if c["unit"] == unit
      and c["interval"]
      and np.isfinite(c["interval"]).all()
    ]
    # With the data where a claim was measured on several.
    names = [f"{c['recipe']}: {c['claim']}" for c in shown]
    rows = [
      (
        f"{name} ({c['data']})" if names.count(name) > 1 else name,
        c["effect"],
        *c["interval"],
        c["verdict"],
      )
      for name, c in zip(names, shown, strict=True)
    ]
    if rows:
      drawn[unit] = curves.intervals(
        rows, unit, groups=COLOURS, legend="verdict"
      )
  return drawn


def _table(found: Sequence[Mapping[str, Any]]) -> page.Table:
  rows = [
    {
      **c,
      "low": (c["interval"] or [None, None])[0],
      "high": (c["interval"] or [None, None])[1],
    }
    for c in found
  ]
  return study.table(
    rows,
    {
      "recipe": ("Recipe", ""),
      "paper": ("arXiv", ""),
      "claim": ("Claim", ""),
      "data": ("Data", ""),
      "effect": ("Effect", ".3f"),
      "low": ("95 % low", ".3f"),
      "high": ("95 % high", ".3f"),
      "unit": ("Unit", ""),
      "seeds": ("Seeds", "d"),
      "verdict": ("Verdict", ""),
    },
    "Every claim measured.",
  )


def _by_seed(points: Points) -> dict[int, list[Mapping[str, Any]]]:
  found: dict[int, list[Mapping[str, Any]]] = {}
  for p in points:
    found.setdefault(p["seed"], []).append(p)
  return found


def _float(value: Any) -> float:
  return float("nan") if value is None else float(value)


def _good(*values: float) -> bool:
  return bool(np.isfinite(values).all())
