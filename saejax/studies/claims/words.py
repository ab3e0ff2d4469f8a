"""The page of the claims: a table of all and a figure for each unit."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from saejax.evals import comparison
from saejax.report import curves, page, study
from saejax.studies import arms
from saejax.studies.claims import claim

COLOURS = {
  comparison.HOLDS: "#009E73",
  comparison.FAILS: "#D55E00",
  comparison.UNDECIDED: "#5a6472",
  claim.NOT_JUDGED: "#9aa3ad",
}
ABOUT = (
  "Each line compares two methods over seeds that share data and order. A claim "
  "holds where the whole 95 % interval of the effect lies beyond the margin in "
  "the direction claimed. These are short runs of small SAEs: a claim "
  "that does not hold here may hold at the paper's size. A claim that the "
  "comparison cannot judge as it is set up is measured, without a verdict."
)
COLUMNS = {
  "recipe": ("Recipe", ""),
  "paper": ("arXiv", ""),
  "claim": ("Claim", ""),
  "data": ("Data", ""),
  "effect": ("Effect", ".3f"),
  "low": ("95 % low", ".3f"),
  "high": ("95 % high", ".3f"),
  "margin": ("Margin", ".3g"),
  "unit": ("Unit", ""),
  "seeds": ("Seeds", "d"),
  "verdict": ("Verdict", ""),
  "reservation": ("Why it is not judged", ""),
}


def sections(
  records: Sequence[Mapping[str, Any]],
) -> tuple[list[page.Section], dict[str, Any]]:
  """The table and the figures of the claims measured, and these by name.

  Args:
    records: records of the claims, see `claim.measured`.
  """
  verdicts = [record["verdict"] for record in records]
  numbers = [(str(verdicts.count(verdict)), verdict) for verdict in COLOURS]
  drawn = figures(records)
  blocks = [
    page.Numbers(numbers),
    page.Prose(ABOUT),
    *(
      study.figure(effects, f"Effects in {unit}.", f"Effects: {unit}.")
      for unit, effects in drawn.items()
    ),
    _table(records),
  ]
  named = {arms.slug(unit): effects for unit, effects in drawn.items()}
  return [page.Section("Verdicts", blocks)], named


def figures(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """The effects with their intervals, a figure for each unit.

  Args:
    records: records of the claims; those without a finite interval are left out.

  Returns:
    Figures by unit; units without an effect have none.
  """
  drawn = {}
  for unit in dict.fromkeys(record["unit"] for record in records):
    shown = [
      record
      for record in records
      if record["unit"] == unit
      and record["interval"]
      and np.isfinite(record["interval"]).all()
    ]
    # With the data where a claim was measured on several.
    names = [f"{r['recipe']}: {r['claim']}" for r in shown]
    lines = [
      (
        f"{name} ({r['data']})" if names.count(name) > 1 else name,
        r["effect"],
        *r["interval"],
        r["verdict"],
      )
      for name, r in zip(names, shown, strict=True)
    ]
    if lines:
      drawn[unit] = curves.intervals(
        lines, unit, groups=COLOURS, legend="verdict"
      )
  return drawn


def _table(records: Sequence[Mapping[str, Any]]) -> page.Table:
  ends = lambda record: record["interval"] or [None, None]
  rows = [{**r, "low": ends(r)[0], "high": ends(r)[1]} for r in records]
  return study.table(rows, COLUMNS, "Every claim measured.")
