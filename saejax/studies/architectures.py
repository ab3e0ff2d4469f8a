"""Every method on the same activations: error against L0, dead latents, cost."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

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
  return [
    page.Section("Frontiers", blocks),
    page.Section("One table", [_table(points)]),
  ], drawn


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
