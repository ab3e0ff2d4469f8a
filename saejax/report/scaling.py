"""The report of a scaling run: results, plots and the page, in one folder.

results.json results.csv
loss_against_n.png loss_against_k.png residuals.png training_curves.png
density.png
report.html
"""

import os
import pathlib
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from saejax import durable
from saejax.evals import scaling_law
from saejax.report import axes as look
from saejax.report import page, plots, results, scaling_page

PAGE = "report.html"

Records = Sequence[Mapping[str, Any]]

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
  title: str = "Scaling laws of sparse autoencoders",
  command: str | None = None,
) -> None:
  """Writes the report: the numbers first, then the plots and the page.

  Args:
    found: the result of `results.collect`.
    fit: the law of found["fit"], or None.
    folder: folder of the run.
    metrics: records of metrics.jsonl (`log.read`), by n.
    title: title of the page.
    command: command that repeats the run; by default with the folder's
      run.flags.

  Raises:
    InputError: matplotlib or jinja2 is not installed (results.json and
      results.csv are written nevertheless), or the disk is full.
  """
  folder = pathlib.Path(folder)
  results.write(found, folder)
  curves, label = training_curves(metrics or {})
  drawn = draw(found["points"], fit, curves, label)
  for name, png in drawn.items():
    durable.write_file(folder / f"{name}.png", png, field="run_dir")
  command = command or (
    "python experiments/scaling.py"
    f" --flagfile={shlex.quote(str(folder / 'run.flags'))}"
  )
  page.write(
    folder / PAGE,
    title,
    scaling_page.sections(found, fit, drawn, command),
    subtitle=scaling_page.subtitle(found),
  )


def draw(
  points: plots.Points,
  fit: scaling_law.Fit | None,
  curves: Mapping[int, Mapping[tuple[int, int], plots.Curve]],
  label: str,
) -> dict[str, bytes]:
  """Draws the plots for which there are data.

  Args:
    points: records of SAEs.
    fit: the law, or None.
    curves: training curves by (k, seed), by n.
    label: label of the training curves' values.

  Returns:
    PNGs by name.
  """
  drawn = {}
  good = plots.good(points)
  if good:
    drawn["loss_against_n"] = look.png(plots.loss_against_n(good, fit))
  if good and min(p["k"] for p in good) >= 1:
    drawn["loss_against_k"] = look.png(plots.loss_against_k(good, fit))
  if fit is not None:
    drawn["residuals"] = look.png(plots.residuals(fit))
  if curves:
    figure = plots.training_curves(curves, label=label)
    drawn["training_curves"] = look.png(figure)
  if any(p.get("density") for p in good):
    drawn["density"] = look.png(plots.density(good))
  return drawn


def training_curves(
  metrics: Mapping[int, Records],
) -> tuple[dict[int, dict[tuple[int, int], plots.Curve]], str]:
  """Extracts the training curves of a run.

  Args:
    metrics: records of metrics.jsonl, by n; members are called k8-seed0.

  Returns:
    (curves by (k, seed), by n; label of their values).
  """
  training = {
    n: [r for r in records if r["kind"] == "train"]
    for n, records in metrics.items()
  }
  recorded = {
    name
    for records in training.values()
    for record in records[:1]
    for scalars in record["members"].values()
    for name in scalars
  }
  name = next((name for name in _CURVES if name in recorded), None)
  if name is None:
    return {}, ""
  curves: dict[int, dict[tuple[int, int], plots.Curve]] = {}
  for n, records in training.items():
    for member in records[0]["members"] if records else ():
      tokens = np.array([r["tokens"] for r in records], float)
      values = [r["members"].get(member, {}).get(name) for r in records]
      y = np.array([np.nan if v is None else v for v in values], float)
      curves.setdefault(n, {})[_member(member)] = (tokens, y)
  return curves, _CURVES[name]


def _member(name: str) -> tuple[int, int]:
  k, _, seed = name.partition("-seed")
  return int(k.removeprefix("k").partition("-")[0]), int(seed or 0)
