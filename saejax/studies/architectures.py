"""Compares all methods on the same activations, at several L0, with seeds.

    python experiments/architectures.py \\
      --flagfile=experiments/flags/architectures.flags

The run folder gets results.json (with "summary": every method against TopK at
equal L0), results.csv, plots and report.html: one table and figure of all
methods, then the frontiers of each site. A stopped run is resumed by the same
command.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from saejax import checks
from saejax.data.harvest import HarvestConfig
from saejax.errors import InputError
from saejax.evals import cost, frontier
from saejax.report import curves, extras, page, study
from saejax.runs import folder as run_folder
from saejax.studies import arms, scores, short_runs
from saejax.training.config import TrainConfig

REFERENCE = "topk"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Settings of the study."""

  run_dir: str = "runs/architectures"  # folder of this run
  harvest: HarvestConfig = HarvestConfig()  # of the first site
  more_sites: tuple[str, ...] = ()  # model:layer of others, same corpus
  train: TrainConfig = TrainConfig()
  seeds: int = 3  # SAEs of each arm, paired across arms by seed
  methods: tuple[str, ...] = tuple(short_runs.VARIANTS)  # in studies.short_runs
  expansion: float = 2.0  # latents over width of the rows
  k: tuple[int, ...] = (
    8,
    16,
    32,
  )  # active latents per row, where a method has a k

  def __post_init__(self):
    arms.check(self.train)
    checks.at_least(self, 1, "seeds")
    checks.positive(self, "expansion")
    checks.distinct(self, "k")
    if not self.methods or len(set(self.methods)) < len(self.methods):
      raise InputError(
        "methods",
        ",".join(self.methods),
        "must be different names",
        "give one or more, separated by commas",
      )
    for name in self.methods:
      if name not in short_runs.VARIANTS:
        raise InputError(
          "methods",
          name,
          f"must be among {', '.join(short_runs.VARIANTS)}",
          "leave it out",
        )
    for site in self.more_sites:
      if not site.rpartition(":")[2].isdecimal():
        raise InputError(
          "more_sites", site, "must be model:layer", "such as gpt2:6"
        )


def main(config: Config) -> None:
  """Trains every method on every site and writes the report.

  Args:
    config: settings of the study.
  """
  extras.check()
  sites = [config.harvest]
  for site in config.more_sites:
    model, _, layer = site.rpartition(":")
    sites.append(
      dataclasses.replace(config.harvest, model=model, layer=int(layer))
    )
  with run_folder.opened(config.run_dir, config) as folder:
    points, data = [], {}
    for site in sites:
      rows = scores.with_scores(arms.harvested(site))
      name = arms.label(rows)
      data[name] = rows.about
      points += arms.run(
        folder,
        all_arms(
          rows,
          config.train,
          names=config.methods,
          n=round(config.expansion * rows.d),
          ks=config.k,
          site=name,
        ),
        rows,
        config.train,
        seeds=config.seeds,
        measure=measure,
      )
    study.write(
      folder,
      sections(points),
      config=config,
      points=points,
      data=data,
      title="Methods on the same activations",
      script="experiments/architectures.py",
      summary=frontier.against(points, REFERENCE),
    )


def all_arms(
  rows: arms.Rows,
  config: TrainConfig,
  *,
  names: Sequence[str],
  n: int,
  ks: tuple[int, ...],
  site: str,
) -> list[arms.Arm]:
  """An arm for each method of `short_runs` on one site.

  Args:
    rows: rows of the site.
    config: how arms are trained.
    names: methods, keys of `short_runs.VARIANTS`.
    n: latents.
    ks: active latents per row, for methods that have a k.
    site: name of the site, which the arms' names begin with.
  """
  options, made = arms.options(config, rows), []
  for name in names:
    variant = short_runs.VARIANTS[name]
    made.append(
      arms.Arm(
        name=f"{site} {name}",
        make=partial(variant.make, d=rows.d, n=n, options=options),
        n=n,
        k=ks if variant.sweeps == short_runs.K else (0,),
        coefficients=variant.coefficients,
        rate=variant.method.rate,
        facts={"method": name, "family": variant.method.family, "site": site},
      )
    )
  return made


def measure(trained: arms.Trained) -> list[dict[str, Any]]:
  """Size and cost of each SAE in the inference form, see `evals.cost`.

  Args:
    trained: the SAEs of an arm and their held-out rows.
  """
  rows = trained.rows.held_out
  return [dict(cost.cost(sae, rows)) for sae in trained.saes]


def sections(
  points: Sequence[Mapping[str, Any]],
) -> tuple[list[page.Section], dict[str, Any]]:
  """The sections of the page, and its plots by name.

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
  compared = frontier.against(points, REFERENCE)
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


def _ratios(compared: Sequence[Mapping[str, Any]]) -> Any:
  """The figure of `evals.frontier`, best on the first site first."""
  rows = []
  for c in _ordered(compared):
    if c["log_ratio"] is not None and c["method"] != REFERENCE:
      ends = [c["log_ratio"] + s * c["log_ratio_sd"] for s in (0, -1, 1)]
      rows.append((c["method"], *(float(np.exp(v)) for v in ends), c["site"]))
  return curves.intervals(
    rows, "FVU over TopK's at the same L0", legend="site", at=1.0
  )


def _summary(compared: Sequence[Mapping[str, Any]]) -> page.Table:
  """A table with a row per method and a group of columns per site."""
  sites = list(dict.fromkeys(c["site"] for c in compared))
  lines: dict[str, dict[str, Any]] = {}
  for c in _ordered(compared):
    i = sites.index(c["site"])
    line = lines.setdefault(
      c["method"],
      {
        "method": c["method"],
        "paper": short_runs.VARIANTS[c["method"]].method.paper,
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
  """Sorts by the ratio on the first site; methods without one come last."""
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
    mean = lambda name, of=of: frontier.mean([p.get(name) for p in of])
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
      "encode_flops": ("FLOPs to encode one row", ",.0f"),
      "seconds": ("Seconds to train", ".1f"),
      "seeds": ("Seeds", "d"),
    },
    "Means over seeds on held-out rows, in the units of the model.",
  )
