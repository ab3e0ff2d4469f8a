"""Every method on the same activations: error against L0, dead latents, cost."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from saejax.evals import comparison
from saejax.recipes import catalogue
from saejax.report import curves, page, study
from saejax.studies import arms

REFERENCE = "topk"


def all_arms(
  rows: arms.Rows,
  config: arms.StudyConfig,
  *,
  names: Sequence[str],
  n: int,
  ks: tuple[int, ...],
  site: str,
) -> list[arms.Arm]:
  """An arm for each method of the catalogue on one site."""
  setting = catalogue.Setting(
    d=rows.d,
    n=n,
    steps=config.steps,
    options=arms.options(config, rows),
    batch_rows=config.batch_rows,
  )
  made = []
  for name in names:
    method = catalogue.METHODS[name]
    made.append(
      arms.Arm(
        name=f"{site} {name}",
        make=partial(catalogue.recipe, name, setting),
        n=n,
        k=ks if method.sweeps == catalogue.K else (0,),
        coefficients=method.coefficients,
        rate=method.rate,
        facts={"method": name, "family": method.family, "site": site},
      )
    )
  return made


def with_scores(rows: arms.Rows) -> arms.Rows:
  """The rows with a score in [0, 10] each, for methods that need one.

  The score is the rank of the row's distance from the mean row: a stand-in for
  labels of complexity, which activations of plain text do not have.
  """
  x = np.asarray(rows.train.x)
  distance = lambda x: np.linalg.norm(x - np.asarray(rows.mean), axis=-1)
  known = np.sort(distance(x))
  score = lambda b: (
    10 * np.searchsorted(known, distance(np.asarray(b.x))) / len(known)
  ).astype(np.float32)
  return dataclasses.replace(
    rows,
    train=rows.train.replace(score=score(rows.train)),
    held_out=rows.held_out.replace(score=score(rows.held_out)),
  )


def measure(trained: arms.Trained) -> list[dict[str, Any]]:
  """Size and cost of each SAE as users hold it.

  Returns:
    parameters: numbers in its arrays, the prep's apart; encode_flops: of
      encoding one row, as XLA counts the program before it is optimised (bodies
      of loops once).
  """
  return [cost(sae, trained.rows) for sae in trained.saes]


def cost(sae, rows: arms.Rows, count: int = 512) -> dict[str, float]:
  """See `measure`."""
  batch = jax.tree.map(lambda a: jnp.asarray(a[:count]), rows.held_out)
  program = jax.jit(lambda s, b: s.encode(b)).lower(sae, batch)
  analysis: Any = program.cost_analysis()
  parts = (sae.encoder, sae.activation, sae.decoder)
  return {
    "parameters": int(sum(a.size for a in jax.tree.leaves(parts))),
    "encode_flops": float(analysis.get("flops", float("nan"))) / batch.rows,
  }


def sections(
  points: Sequence[Mapping[str, Any]],
) -> tuple[list[page.Section], dict[str, Any]]:
  """What the page says, and its plots by name.

  Args:
    points: of arms whose facts name the "method", its "family" and the "site".
  """
  drawn, blocks = {}, []
  for site in dict.fromkeys(p["site"] for p in points):
    here = [{**p, "arm": p["method"]} for p in points if p["site"] == site]
    for name, label, log in (
      ("fvu", "FVU", True),
      ("dead", "dead (share of latents)", False),
    ):
      made = curves.panels(
        _by_family(here, name),
        curves.Axis("held-out L0", log=True),
        curves.Axis(label, log=log),
        height=2.9,
      )
      drawn[f"{name}_{arms.slug(site)}"] = made
      blocks.append(
        study.figure(
          made,
          f"{label} against L0 of every method on {site}.",
          f"{site}: {label} at held-out L0, a panel for each family of methods "
          "with TopK for comparison; bars are standard deviations over seeds.",
        )
      )
  compared = against_reference(points)
  drawn["ratios"] = _ratios(compared)
  return [
    page.Section(
      "All methods",
      [
        study.figure(
          drawn["ratios"],
          "Error over TopK's of every method.",
          "FVU over TopK's at the same held-out L0, geometric mean over a "
          "method's settings; bars are standard deviations over seeds. Left of "
          "the line is better than TopK.",
        ),
        _summary(compared),
      ],
    ),
    page.Section("Frontiers", blocks),
    page.Section("Every setting", [_table(points)]),
  ], drawn


def against_reference(
  points: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
  """Every method on every site against TopK at the L0 that it has there.

  Returns:
    A record for each site and method: log_ratio, the mean over seeds of the
    mean over settings of log FVU - log FVU of TopK with that seed, whose curve
    is followed in log L0; log_ratio_sd over seeds; settings, how many are
    inside TopK's range; and the means over those of dead, over_parameters,
    over_flops and over_seconds, the last three over TopK's. None where no
    setting is inside.
  """
  found = []
  for site in dict.fromkeys(p["site"] for p in points):
    here = [p for p in points if p["site"] == site and p["status"] == "ok"]
    of = lambda method, here=here: [p for p in here if p["method"] == method]
    reference = of(REFERENCE)
    for method in dict.fromkeys(p["method"] for p in here):
      ratios: dict[int, list[float]] = {}
      inside = []
      for p in of(method):
        same = [r for r in reference if r["seed"] == p["seed"]]
        if not same:
          continue
        there = comparison.log_fvu_at(
          [r["l0"] for r in same], [r["fvu"] for r in same], p["l0"]
        )
        if np.isfinite(there):
          inside.append(p)
          ratio = float(np.log(p["fvu"])) - there
          ratios.setdefault(p["seed"], []).append(ratio)
      over = partial(_over, inside, reference)
      each = [float(np.mean(r)) for r in ratios.values()]
      found.append(
        {
          "site": site,
          "method": method,
          "log_ratio": float(np.mean(each)) if each else None,
          "log_ratio_sd": float(np.std(each, ddof=len(each) > 1))
          if each
          else None,
          "settings": len({(p["k"], p["coefficient"]) for p in inside}),
          "dead": _mean([p["dead"] for p in inside]),
          "over_parameters": over("parameters"),
          "over_flops": over("encode_flops"),
          "over_seconds": over("seconds"),
        }
      )
  return found


def _over(points, base, name: str) -> float | None:
  """The mean of a field over that of other points."""
  mine, theirs = (_mean([p[name] for p in of]) for of in (points, base))
  return mine / theirs if mine is not None and theirs else None


def _ratios(compared: Sequence[Mapping[str, Any]]) -> Any:
  """The figure of `against_reference`, best on the first site first."""
  rows = []
  for c in _ordered(compared):
    if c["log_ratio"] is not None and c["method"] != REFERENCE:
      ends = [c["log_ratio"] + s * c["log_ratio_sd"] for s in (0, -1, 1)]
      rows.append((c["method"], *(float(np.exp(v)) for v in ends), c["site"]))
  return curves.intervals(
    rows, "FVU over TopK's at the same L0", legend="site", at=1.0
  )


def _summary(compared: Sequence[Mapping[str, Any]]) -> page.Table:
  """A line a method, a group of columns a site."""
  sites = list(dict.fromkeys(c["site"] for c in compared))
  lines: dict[str, dict[str, Any]] = {}
  for c in _ordered(compared):
    i = sites.index(c["site"])
    line = lines.setdefault(
      c["method"],
      {
        "method": c["method"],
        "paper": catalogue.METHODS[c["method"]].paper,
        "over_parameters": c["over_parameters"],
        "over_flops": c["over_flops"],
        "over_seconds": c["over_seconds"],
      },
    )
    if c["log_ratio"] is not None:
      line[f"ratio_{i}"] = float(np.exp(c["log_ratio"]))
      line[f"sd_{i}"] = c["log_ratio_sd"]
    line[f"dead_{i}"] = c["dead"]
  columns = {"method": ("Method", ""), "paper": ("arXiv", "")}
  for i, site in enumerate(sites):
    columns |= {
      f"ratio_{i}": (site, ".3f"),
      f"sd_{i}": ("± SD", ".3f"),
      f"dead_{i}": ("Dead", ".3f"),
    }
  columns |= {
    "over_parameters": ("Parameters", ".2f"),
    "over_flops": ("FLOPs to encode", ".2f"),
    "over_seconds": ("Seconds to train", ".2f"),
  }
  return study.table(
    list(lines.values()),
    columns,
    "FVU over TopK's at the L0 that a method has on each site, geometric mean "
    "over its settings inside TopK's range of L0; SD of the ratio's logarithm "
    "over seeds. Parameters, FLOPs and seconds are over TopK's, on the first "
    "site. A method without numbers had no L0 in that range.",
  )


def _ordered(compared):
  """By the ratio on the first site; methods without one last."""
  first = compared[0]["site"]
  known = {
    c["method"]: c["log_ratio"]
    for c in compared
    if c["site"] == first and c["log_ratio"] is not None
  }
  return sorted(compared, key=lambda c: known.get(c["method"], np.inf))


def _by_family(points, name: str):
  reference = [p for p in points if p["method"] == REFERENCE]
  panels = {}
  for family in dict.fromkeys(p["family"] for p in points):
    mine = [p for p in points if p["family"] == family]
    others = [] if any(p in mine for p in reference) else reference
    panels[family] = curves.by_arm([*others, *mine], "l0", name)
  return panels


def _table(points) -> page.Table:
  """Means over seeds of every method, site and setting."""
  groups: dict[tuple, list[Mapping[str, Any]]] = {}
  for p in points:
    key = tuple(p[name] for name in ("site", "method", "k", "coefficient"))
    groups.setdefault(key, []).append(p)
  rows = []
  for (site, method, k, coefficient), of in groups.items():
    mean = lambda name, of=of: _mean([p.get(name) for p in of])
    rows.append(
      {
        "site": site,
        "method": method,
        "setting": f"k {k}" if k else f"× {coefficient:g}",
        "seeds": len(of),
        "fvu_sd": float(np.std([p["fvu"] for p in of], ddof=len(of) > 1)),
        **{
          name: mean(name)
          for name in (
            "l0",
            "fvu",
            "dead",
            "parameters",
            "encode_flops",
            "seconds",
          )
        },
      }
    )
  return study.table(
    rows,
    {
      "site": ("Site", ""),
      "method": ("Method", ""),
      "setting": ("Setting", ""),
      "l0": ("L0", ".1f"),
      "fvu": ("FVU", ".4f"),
      "fvu_sd": ("± SD", ".4f"),
      "dead": ("Dead", ".3f"),
      "parameters": ("Parameters", ",.0f"),
      "encode_flops": ("FLOPs to encode a row", ",.0f"),
      "seconds": ("Seconds to train", ".1f"),
      "seeds": ("Seeds", "d"),
    },
    "Means over seeds on held-out rows, in the units of the model.",
  )


def _mean(values) -> float | None:
  good = [v for v in values if v is not None]
  return float(np.mean(good)) if good else None
