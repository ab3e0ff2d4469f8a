"""The page of a study of the error of SAEs; see `studies.dark_matter`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from saejax.evals.error import norm_prediction
from saejax.report import curves, page, study

EDITS = ("sae", "sae_linear", "sae_nonlinear", "zero")
COLUMNS = {
  "sae": ("SAE", ""),
  "n": ("n", "d"),
  "l0": ("L0", ".1f"),
  "fvu": ("FVU", ".4f"),
  "nonlinear_fvu": ("Nonlinear FVU", ".4f"),
  "linear_share": ("Linear share", ".3f"),
  "r2": ("R² of e on x", ".3f"),
}
PURSUIT = {
  "sae": ("SAE", ""),
  "pursuit_fvu": ("FVU", ".4f"),
  "pursuit_fvu_gain": ("Lower by", ".1%"),
  "pursuit_nonlinear_fvu": ("Nonlinear FVU", ".4f"),
  "pursuit_nonlinear_fvu_gain": ("lower by", ".1%"),
}
TITLES = {
  "x": "x",
  "reconstruction": "SAE(x)",
  "error": "error",
  "linear": "linear part",
  "nonlinear": "nonlinear part",
  "reconstruction_less_nonlinear": "SAE(x) − nonlinear",
}


def sections(
  points: Sequence[Mapping[str, Any]], over: Mapping[str, Any]
) -> tuple[list[page.Section], dict[str, Any]]:
  """The sections of the page, and its plots by name.

  Args:
    points: records of the SAEs.
    over: what was fitted over widths.
  """
  drawn, blocks = {}, [page.Equation("e = x − SAE(x) = x A + nonlinear")]
  blocks.append(
    page.Prose(
      "A is fitted by least squares without intercept on the rows of other "
      "documents. FVU divides the sum of squares by that of x about its mean. "
      "The linear share is the part of the squared error that x A explains; R² "
      "is about the mean of e, averaged over dimensions."
    )
  )
  if len({p["n"] for p in points}) > 1:
    drawn["widths"] = _over_widths(points)
    blocks.append(
      study.figure(
        drawn["widths"],
        "FVU and nonlinear FVU against the number of latents.",
        "Error and its nonlinear part over the number of latents; held-out rows.",
      )
    )
  blocks.append(study.table(points, COLUMNS, "Parts of the error."))
  found = [page.Section("The error and its parts", blocks)]
  if over["per_token"] or len(over) > 1:
    found.append(page.Section("Over widths", _widths(over)))
  found.append(page.Section("Norms", _norms(points)))
  if all("pursuit" in p for p in points):
    text = page.Prose(
      "Latents are found again for the same decoder by gradient pursuit, in each "
      "row as many as the SAE has active. What remains is not the encoder's fault."
    )
    table = study.table(points, PURSUIT, "With latents of gradient pursuit.")
    found.append(page.Section("Gradient pursuit", [text, table]))
  if any("model" in p for p in points):
    found.append(page.Section("In the model", [_models(points)]))
  return found, drawn


def _over_widths(points):
  ordered = sorted(points, key=lambda p: p["n"])
  half = lambda p, name: np.ptp(p[f"{name}_interval"]) / 2
  l0 = [p["l0"] for p in points]  # a line joins SAEs of one L0
  curve = lambda name: curves.Curve(
    [p["n"] for p in ordered],
    [p[name] for p in ordered],
    y_spread=[half(p, name) for p in ordered],
    line=max(l0) <= 1.1 * min(l0),
  )
  return curves.panels(
    {
      "Parts of the error": {
        "error": curve("fvu"),
        "nonlinear part": curve("nonlinear_fvu"),
      }
    },
    curves.Axis("latents n", log=True),
    curves.Axis("FVU", log=True),
    legend="part",
  )


def _widths(over: Mapping[str, Any]) -> list[page.Block]:
  blocks: list[page.Block] = []
  fits = {k: v for k, v in over.items() if k != "per_token"}
  if fits:
    blocks.append(
      page.Prose(
        "Slopes are of log FVU over log n; laws are FVU = c + a n^m. Numbers are "
        "the value and its 95 % interval over documents."
      )
    )
    blocks.append(page.facts("Fits", fits))
  if over["per_token"]:
    columns = {
      "small": ("Narrow SAE", ""),
      "big": ("Wide SAE", ""),
      "r2_": ("R² from its error", ".3f"),
      "with_": ("and its nonlinear part", ".3f"),
      "gain": ("Gain (%)", ".1f"),
    }
    rows = [
      {**p, "r2_": p["r2"][0], "with_": p["with_nonlinear"][0]}
      for p in over["per_token"]
    ]
    caption = "Norm of the wide SAE's error, predicted per token."
    blocks.append(study.table(rows, columns, caption))
  return blocks


def _norms(points) -> list[page.Block]:
  head = {"sae": ("SAE", "")}
  names = {v: (TITLES[v], ".3f") for v in norm_prediction.VECTORS}
  blocks: list[page.Block] = [
    page.Prose(
      "R² of squared norms, predicted linearly on held-out rows. If a vector is a "
      "sum of few nearly orthogonal features of nearly constant size, its squared "
      "norm is nearly linear in it."
    )
  ]
  for kind, caption in (
    ("from_x", "Predicted from x."),
    ("from_self", "Predicted from the vector itself: the norm test."),
    ("baselines", "Of the error, predicted from one number of the token."),
  ):
    rows = [
      {"sae": p["sae"], **{v: one[0] for v, one in p[kind].items()}}
      for p in points
    ]
    columns = head | names
    if kind == "baselines":
      known = [v for v in norm_prediction.BASELINES if v in rows[0]]
      columns = head | {v: (v, ".3f") for v in known}
    blocks.append(study.table(rows, columns, caption))
  return blocks


def _models(points) -> page.Table:
  columns = {"name": ("SAE", "")} | {
    "sae": ("SAE(x)", ".4f"),
    "sae_linear": ("+ linear", ".4f"),
    "sae_nonlinear": ("+ nonlinear", ".4f"),
    "zero": ("zeros", ".4f"),
  }
  rows = [
    {"name": p["sae"], **{e: p["model"][e]["ce_increase"] for e in EDITS}}
    for p in points
  ]
  return study.table(rows, columns, "Increase of the cross-entropy, in nats.")
