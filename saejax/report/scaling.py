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

# Training curves show the first of these that was recorded.
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
  """Writes the whole report; numbers first, so that they are safe.

  Args:
    found: what `results.collect` returned.
    fit: the law behind found["fit"], None where there is none.
    folder: of the run.
    metrics: for each n the records of its metrics.jsonl (`log.read`).
    title: of the page.
    command: what repeats the run; by default with the folder's run.flags.

  Raises:
    InputError: matplotlib or jinja2 is missing (results.json and results.csv
      are written all the same), or the disk is full.
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
  """The plots for which there are data, by name, as PNG."""
  drawn = {}
  good = plots.good(points)
  if good:
    drawn["loss_against_n"] = look.png(plots.loss_against_n(good, fit))
  if good and min(p["k"] for p in good) >= 1:
    drawn["loss_against_k"] = look.png(plots.loss_against_k(good, fit))
  if fit is not None:
    drawn["residuals"] = look.png(plots.residuals(fit))
  if curves:
    made = plots.training_curves(curves, label=label)
    drawn["training_curves"] = look.png(made)
  if any(p.get("density") for p in good):
    drawn["density"] = look.png(plots.density(good))
  return drawn


def training_curves(
  metrics: Mapping[int, Records],
) -> tuple[dict[int, dict[tuple[int, int], plots.Curve]], str]:
  """The training curve of every (k, seed) at every n, and what it shows.

  Args:
    metrics: for each n its records; members are called k8-seed0 and so on.
  """
  kept = {
    n: [r for r in records if r["kind"] == "train"]
    for n, records in metrics.items()
  }
  recorded = {
    name
    for records in kept.values()
    for record in records[:1]
    for scalars in record["members"].values()
    for name in scalars
  }
  name = next((name for name in _CURVES if name in recorded), None)
  if name is None:
    return {}, ""
  curves: dict[int, dict[tuple[int, int], plots.Curve]] = {}
  for n, records in kept.items():
    for member in records[0]["members"] if records else ():
      tokens = np.array([r["tokens"] for r in records], float)
      values = [r["members"].get(member, {}).get(name) for r in records]
      y = np.array([np.nan if v is None else v for v in values], float)
      curves.setdefault(n, {})[_member(member)] = (tokens, y)
  return curves, _CURVES[name]


def _member(name: str) -> tuple[int, int]:
  k, _, seed = name.partition("-seed")
  return int(k.removeprefix("k").partition("-")[0]), int(seed or 0)
