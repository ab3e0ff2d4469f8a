"""The report of a scaling run: results, plots and the page, in one folder.

results.json results.csv
loss_against_n.png loss_against_k.png frontier.png residuals.png
training_curves.png held_out_curves.png density.png downstream.png
report.html
"""

import os
import pathlib
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from saejax import durable
from saejax.evals import scaling_law
from saejax.report import (
  downstream,
  drawing,
  page,
  plots,
  results,
  scaling_page,
)

PAGE = "report.html"

Records = Sequence[Mapping[str, Any]]

_HELD_OUT = {
  "nmse": "held-out nmse (share of variance)",
  "fvu": "held-out FVU (share of variance)",
}
# Training curves show the first of these values that was recorded.
_CURVES = {
  "nmse": "nmse of the batch (share of variance)",
  "normalised_mse": "nmse of the batch (share of variance)",
  "mse": "MSE of the batch (frame of the prep)",
  "loss": "loss of the batch",
}


def write(
  found: Mapping[str, Any],
  fit: scaling_law.Fit | None,
  folder: str | os.PathLike[str],
  *,
  metrics: Mapping[int, Records] | None = None,
  features: Sequence[page.Block] = (),
  title: str = "Scaling laws of sparse autoencoders",
  command: str | None = None,
) -> None:
  """Writes the report: the numbers first, then the plots and the page.

  Args:
    found: the result of `results.collect`.
    fit: the law of found["fit"], or None.
    folder: folder of the run.
    metrics: records of metrics.jsonl (`log.read`), by n.
    features: blocks about some latents, see `cards_page`.
    title: title of the page.
    command: command that repeats the run; by default with the folder's
      run.flags.

  Raises:
    InputError: matplotlib or jinja2 is not installed (results.json and
      results.csv are written nevertheless), or the disk is full.
  """
  folder = pathlib.Path(folder)
  results.write(found, folder)
  plotted = draw(found["points"], fit, metrics or {})
  for name, plot in plotted.items():
    durable.write_file(folder / f"{name}.png", plot.png, field="run_dir")
  command = command or (
    "python experiments/scaling.py"
    f" --flagfile={shlex.quote(str(folder / 'run.flags'))}"
  )
  page.write(
    folder / PAGE,
    title,
    scaling_page.sections(found, fit, plotted, command, features),
    subtitle=scaling_page.subtitle(found),
  )


def draw(
  points: plots.Points,
  fit: scaling_law.Fit | None,
  metrics: Mapping[int, Records],
) -> dict[str, drawing.Plot]:
  """Draws the plots for which there are data.

  Args:
    points: records of SAEs.
    fit: the law, or None.
    metrics: records of metrics.jsonl, by n.

  Returns:
    Plots by name.
  """
  made: dict[str, Any] = {}
  good = plots.good(points)
  if good:
    made["loss_against_n"] = plots.loss_against_n(good, fit)
  if good and min(p["k"] for p in good) >= 1:
    made["loss_against_k"] = plots.loss_against_k(good, fit)
  if len([p for p in good if p.get("l0")]) > 1:
    made["frontier"] = plots.loss_against_l0(good)
  if fit is not None:
    made["residuals"] = plots.residuals(fit)
  curves, label = training_curves(metrics)
  if curves:
    made["training_curves"] = plots.training_curves(curves, label=label)
  curves, label = held_out_curves(metrics)
  if curves:
    made["held_out_curves"] = plots.training_curves(
      curves, label=label, title="Held-out loss during training"
    )
  if downstream.measured(good):
    made[downstream.FIGURE] = downstream.loss_against_n(good)
  if any(p.get("density") for p in good):
    made["density"] = plots.density(good)
  return {name: drawing.plot(figure, name) for name, figure in made.items()}


def training_curves(
  metrics: Mapping[int, Records],
) -> tuple[dict[int, dict[tuple[Any, int], plots.Curve]], str]:
  """Extracts the training curves of a run.

  Args:
    metrics: records of metrics.jsonl, by n; members are called k8-seed0.

  Returns:
    (curves by (k, seed), by n; label of their values). In place of k there is
    the name of the setting where a member's is not of k alone.
  """
  return _curves(metrics, "train", _CURVES)


def held_out_curves(
  metrics: Mapping[int, Records],
) -> tuple[dict[int, dict[tuple[Any, int], plots.Curve]], str]:
  """Extracts the curves of the loss on held-out rows.

  Args:
    metrics: records of metrics.jsonl, by n.

  Returns:
    As `training_curves`.
  """
  return _curves(metrics, "held_out", _HELD_OUT)


def _curves(metrics, kind: str, names: Mapping[str, str]):
  recorded = {
    n: [r for r in records if r["kind"] == kind]
    for n, records in metrics.items()
  }
  present = {
    name
    for records in recorded.values()
    for record in records[:1]
    for scalars in record["members"].values()
    for name, value in scalars.items()
    if not np.isnan(value)
  }
  name = next((name for name in names if name in present), None)
  if name is None:
    return {}, ""
  curves: dict[int, dict[tuple[Any, int], plots.Curve]] = {}
  for n, records in recorded.items():
    for member in records[0]["members"] if records else ():
      tokens = np.array([r["tokens"] for r in records], float)
      values = [r["members"].get(member, {}).get(name) for r in records]
      y = np.array([np.nan if v is None else v for v in values], float)
      curves.setdefault(n, {})[_member(member)] = (tokens, y)
  return curves, names[name]


def _member(name: str) -> tuple[Any, int]:
  setting, _, seed = name.rpartition("seed")
  setting = setting.removesuffix("-")
  if re.fullmatch(r"k\d+", setting):
    return int(setting[1:]), int(seed or 0)
  return setting or "SAE", int(seed or 0)
