"""Frontiers of L0 and loss, and methods against a reference at equal L0."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from saejax.evals import comparison


def against(
  points: Sequence[Mapping[str, Any]], reference: str
) -> list[dict[str, Any]]:
  """Compares every method on every site with the reference at equal L0.

  Args:
    points: records of SAEs with site, method, seed, k, coefficient, status, l0,
      fvu, dead, parameters, encode_flops and seconds.
    reference: name of the method that the others are compared with.

  Returns:
    A record per site and method:
      log_ratio: mean over seeds of the mean over settings of log FVU - log FVU
        of the reference at that seed and L0, interpolated in log L0;
      log_ratio_sd: its standard deviation over seeds;
      settings: number of settings within the reference's range of L0;
      dead: mean over these settings;
      over_parameters, over_flops, over_seconds: means over these settings,
        divided by the reference's means.
    Values are None where no setting is within the range.
  """
  records = []
  for site in dict.fromkeys(p["site"] for p in points):
    here = [p for p in points if p["site"] == site and p["status"] == "ok"]
    of = lambda method, here=here: [p for p in here if p["method"] == method]
    base = of(reference)
    for method in dict.fromkeys(p["method"] for p in here):
      ratios: dict[int, list[float]] = {}
      inside = []
      for p in of(method):
        matching = [r for r in base if r["seed"] == p["seed"]]
        if not matching:
          continue
        expected = comparison.log_fvu_at(
          [r["l0"] for r in matching], [r["fvu"] for r in matching], p["l0"]
        )
        if np.isfinite(expected):
          inside.append(p)
          ratio = float(np.log(p["fvu"])) - expected
          ratios.setdefault(p["seed"], []).append(ratio)
      over = partial(_over, inside, base)
      each = [float(np.mean(r)) for r in ratios.values()]
      records.append(
        {
          "site": site,
          "method": method,
          "log_ratio": float(np.mean(each)) if each else None,
          "log_ratio_sd": float(np.std(each, ddof=len(each) > 1))
          if each
          else None,
          "settings": len({(p["k"], p["coefficient"]) for p in inside}),
          "dead": mean([p["dead"] for p in inside]),
          "over_parameters": over("parameters"),
          "over_flops": over("encode_flops"),
          "over_seconds": over("seconds"),
        }
      )
  return records


def pareto(l0: Sequence[float], loss: Sequence[float]) -> list[int]:
  """Finds the frontier: what nothing else beats in L0 and in loss.

  Args:
    l0: active latents per row.
    loss: losses.

  Returns:
    Places of those on the frontier, by rising L0.

  >>> pareto([1, 2, 2, 4], [0.5, 0.3, 0.4, 0.3])
  [0, 1]
  """
  kept: list[int] = []
  for i in sorted(range(len(l0)), key=lambda i: (l0[i], loss[i])):
    if not kept or loss[i] < loss[kept[-1]]:
      kept.append(i)
  return kept


def _over(points, base, name: str) -> float | None:
  """Divides the mean of a field by its mean over other points."""
  mine, theirs = (mean([p[name] for p in of]) for of in (points, base))
  return mine / theirs if mine is not None and theirs else None


def mean(values) -> float | None:
  """Computes the mean of the values that are not None, or None without any.

  Args:
    values: numbers or None.
  """
  good = [v for v in values if v is not None]
  return float(np.mean(good)) if good else None
