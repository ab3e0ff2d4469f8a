"""Sections of the report of a scaling run."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from saejax import terminal
from saejax.evals import scaling_law
from saejax.report import forms, page, plots

_SYMBOLS = {
  "alpha": "α",
  "beta_k": "β_k",
  "beta_n": "β_n",
  "gamma": "γ",
  "zeta": "ζ",
  "eta": "η",
}
EQUATION = (
  "L(n, k) = exp(α + β_k log k + β_n log n + γ log n log k) + exp(ζ + η log k)"
)


def sections(
  found: Mapping[str, Any],
  fit: scaling_law.Fit | None,
  drawn: Mapping[str, bytes],
  command: str,
) -> list[page.Section]:
  """The sections of the page.

  Args:
    found: content of results.json.
    fit: the law, None where there is none.
    drawn: the plots by name, as PNG.
    command: what repeats the run.
  """
  points = found["points"]
  return [
    page.Section("Result", _result(found, fit, drawn)),
    page.Section("The fitted law", _law(found, fit, drawn)),
    page.Section("Every SAE", _every(points)),
    page.Section("Training and use of latents", _training(points, drawn)),
    page.Section("What was run", _run(found, command)),
    page.Section("Definitions", [_definitions()]),
  ]


def subtitle(found: Mapping[str, Any]) -> str:
  """The grid in one sentence."""
  points = found["points"]
  ns, ks = (sorted({int(p[v]) for p in points}) for v in ("n", "k"))
  seeds = len({p.get("seed") for p in points})
  return (
    f"{len(points)} sparse autoencoders: n = {_list(ns)}; k = {_list(ks)};"
    f" {seeds} seed{'s' * (seeds != 1)} each."
  )


def _list(values: Sequence[int]) -> str:
  return ", ".join(f"{v:,}" for v in values) or "none"


def _result(found, fit, drawn) -> list[page.Block]:
  points = plots.good(found["points"])
  blocks: list[page.Block] = []
  failed = [p for p in found["points"] if p not in points]
  if failed:
    names = "; ".join(
      f"n = {p['n']:,}, k = {p['k']:,}, seed {p.get('seed', 0)}"
      f" ({p.get('status') or 'no loss'})"
      for p in failed
    )
    blocks.append(page.Note(f"Left out of every plot and of the fit: {names}."))
  if not points:
    return [*blocks, page.Note("No SAE finished with a finite loss.")]
  blocks += forms.notes(points)
  best = min(points, key=lambda p: p["nmse"])
  numbers = [
    (
      f"{best['nmse']:.3f}",
      f"lowest held-out normalised MSE (n = {best['n']:,}, k = {best['k']:,})",
    )
  ]
  if fit is not None:
    if fit.r2 is not None:
      numbers.append((f"{fit.r2:.4f}", "R² of the fitted law, on log L"))
    if fit.holdout is not None:
      numbers.append(
        (
          f"{100 * fit.holdout.error:.1f} %",
          f"mean error in predicting n = {fit.holdout.n:,} from smaller n",
        )
      )
  dead = [p["dead"] for p in points if p.get("dead") is not None]
  if dead:
    numbers.append(
      (f"{100 * max(dead):.1f} %", "most dead latents in any of the SAEs")
    )
  blocks.append(page.Numbers(numbers))
  shown = (
    "Lines: the fitted law. Shaded: 95 % predictive band for one more SAE, from"
    f" {len(fit.samples):,} bootstrap resamples over {fit.resampled}."
    if fit is not None
    else "Lines join the measured points; no law was fitted."
  )
  for across, each in (("n", "k"), ("k", "n")):
    if f"loss_against_{across}" not in drawn:
      continue
    blocks.append(
      page.Figure(
        drawn[f"loss_against_{across}"],
        f"Held-out normalised MSE against {across} on log axes, a curve for"
        f" each {each}. " + _trend(points, across, each),
        f"Held-out loss against {across}, for each {each}. {shown}",
      )
    )
  return blocks


def _trend(points, across: str, each: str) -> str:
  """The ends of each curve in words."""
  said = []
  for value in sorted({p[each] for p in points}):
    mine = [p for p in points if p[each] == value]
    low, high = (f(mine, key=lambda p: p[across]) for f in (min, max))
    said.append(
      f"{each} = {value:,}: {low['nmse']:.3f} at {across} = {low[across]:,},"
      f" {high['nmse']:.3f} at {high[across]:,}"
    )
  return "; ".join(said) + "."


def _law(found, fit, drawn) -> list[page.Block]:
  if fit is None:
    reason = found.get("fit_reason") or "no fit was requested"
    return [page.Note(f"No law was fitted: {reason}.")]
  intervals = fit.intervals()
  rows = [
    (
      _SYMBOLS[name],
      _fixed(value),
      " to ".join(map(_fixed, intervals[name])) if name in intervals else "–",
    )
    for name, value in zip(scaling_law.PARAMETERS, fit.parameters, strict=True)
  ]
  cells = len(fit.grid.cells()[0].n)
  blocks: list[page.Block] = [
    page.Equation(EQUATION),
    page.Prose(
      f"""L is the held-out normalised MSE; the second term is the loss that
      more latents do not remove. Robust least squares on log L over
      {len(fit.grid.loss):,} SAEs in {cells:,} cells (n, k); logarithms are
      natural. On small grids many values of the six parameters give nearly the
      same surface: rely on the curves and their bands, not on single
      parameters. {_floor(fit)}"""
    ),
    page.Table(
      [
        page.Column("Parameter", right=False),
        page.Column("Value"),
        page.Column("95 % interval"),
      ],
      rows,
      f"Parameters, with percentile intervals of {len(fit.samples):,} bootstrap"
      f" resamples over {fit.resampled}.",
    ),
  ]
  percent = 100 * np.expm1(fit.residuals)
  blocks.append(
    page.Figure(
      drawn["residuals"],
      "Residuals of the fit in per cent against n and against k; the largest"
      f" is {np.abs(percent).max():.2f} %, the root mean square"
      f" {np.sqrt(np.mean(percent**2)):.2f} %.",
      "(measured − fitted) / fitted loss. Root mean square"
      f" {np.sqrt(np.mean(percent**2)):.2f} %, largest"
      f" {np.abs(percent).max():.2f} %. Points are shifted sideways a little.",
    )
  )
  blocks += _extrapolation(fit)
  blocks += _single(fit)
  if fit.grid.dropped:
    rows = [
      (f"{d['n']:,}", f"{d['k']:,}", str(d["seed"]), d["reason"])
      for d in fit.grid.dropped
    ]
    columns = [page.Column(c) for c in ("n", "k", "Seed")]
    columns.append(page.Column("Reason", right=False))
    blocks.append(page.Table(columns, rows, "SAEs that were not fitted."))
  return blocks


def _fixed(value: float) -> str:
  return page.signed(f"{value:.4f}")


def _floor(fit) -> str:
  """The second term's share of the loss at the largest n, as a sentence."""
  n = fit.grid.n.max()
  ks = np.unique(fit.grid.k)
  floor = np.exp(fit.parameters[4] + fit.parameters[5] * np.log(ks))
  share = floor / fit.predict(n, ks)
  if share.max() < 0.01:
    return "On this grid the irreducible loss is indistinguishable from zero."
  low, high = (f"{100 * v:.0f}" for v in (share.min(), share.max()))
  return (
    f"At n = {int(n):,} the second term is"
    f" {low if low == high else f'{low} to {high}'} % of the fitted loss."
  )


def _extrapolation(fit) -> list[page.Block]:
  heading = page.Heading("Extrapolation")
  if fit.holdout is None:
    return [heading, page.Prose(f"Not tried: {fit.holdout_reason}.")]
  rows = [
    (
      f"{c['k']:,}",
      f"{c['loss']:.4f}",
      f"{c['predicted']:.4f}",
      page.signed(f"{100 * np.expm1(c['error']):+.2f}"),
    )
    for c in fit.holdout.cells
  ]
  columns = [
    page.Column("k"),
    page.Column("Measured", "nmse"),
    page.Column("Predicted", "nmse"),
    page.Column("Error", "%"),
  ]
  return [
    heading,
    page.Table(
      columns,
      rows,
      f"Loss at n = {fit.holdout.n:,}, predicted by a law fitted without it. Mean"
      f" |log(predicted / measured)| is {fit.holdout.error:.4f}.",
    ),
  ]


def _single(fit) -> list[page.Block]:
  blocks: list[page.Block] = []
  for laws, v, o in ((fit.over_n, "n", "k"), (fit.over_k, "k", "n")):
    if not laws:
      continue
    floor = any(law.c is not None for law in laws)
    columns = [
      page.Column(o),
      page.Column("a"),
      page.Column("b", f"exponent of {v}"),
      *([page.Column("exp(c)", "nmse")] if floor else []),
      page.Column("R²", "on log L"),
    ]
    rows = [
      (
        f"{law.at:,}",
        _fixed(law.a),
        _fixed(law.b),
        *([_irreducible(law)] if floor else []),
        "–" if law.r2 is None else f"{law.r2:.5f}",
      )
      for law in laws
    ]
    form = f"exp(a + b log {v})" + (" + exp(c)" if floor else "")
    blocks.append(
      page.Table(columns, rows, f"L against {v} alone, at each {o}: {form}.")
    )
  return [page.Heading("One variable at a time"), *blocks] if blocks else []


def _irreducible(law) -> str:
  if law.c is None:
    return "not fitted"
  return f"{np.exp(law.c):.4f}" if np.exp(law.c) >= 5e-5 else "≈ 0"


def _every(points) -> list[page.Block]:
  columns = {
    "n": (page.Column("n"), "{:,}"),
    "k": (page.Column("k"), "{:,}"),
    "seed": (page.Column("Seed"), "{}"),
    "learning_rate": (page.Column("Learning rate"), "{:.3g}"),
    "nmse": (page.Column("nmse"), "{:.4f}"),
    "fvu": (page.Column("FVU"), "{:.4f}"),
    "l0": (page.Column("L0", "per row"), "{:.2f}"),
    **forms.COLUMNS,
    "dead": (page.Column("Dead", "%"), "{:.2f}"),
    "cosine": (page.Column("Cosine"), "{:.4f}"),
    "tokens": (page.Column("Tokens"), "{:,}"),
    "seconds": (page.Column("Time", "s"), "{:,.1f}"),
    "status": (page.Column("Status", right=False), "{}"),
  }
  used = {
    name: made
    for name, made in columns.items()
    if any(p.get(name) is not None for p in points)
  }
  if all((p.get("status") or "ok") == "ok" for p in points):
    used.pop("status", None)
  rows = []
  for p in sorted(points, key=lambda p: (p["n"], p["k"], p.get("seed") or 0)):
    cells = []
    for name, (_, form) in used.items():
      value = p.get(name)
      if value is not None and name == "dead":
        value = 100 * value
      cells.append("–" if value is None else form.format(value))
    rows.append(cells)
  return [
    page.Table(
      [column for column, _ in used.values()],
      rows,
      "Measured on held-out rows; time is of training this SAE alone.",
    )
  ]


def _training(points, drawn) -> list[page.Block]:
  blocks: list[page.Block] = []
  if "training_curves" in drawn:
    blocks.append(
      page.Figure(
        drawn["training_curves"],
        "Training loss against tokens, a panel for each n and a curve for each"
        " k; every curve falls steeply at first and then flattens.",
        "Training loss of each batch recorded. A curve that is still falling"
        " at its end was not trained to convergence.",
      )
    )
  if "density" in drawn:
    dead = [100 * p["dead"] for p in plots.good(points)]
    blocks.append(
      page.Figure(
        drawn["density"],
        "Histogram of log density of latents, a panel for each n and a line"
        f" for each k; between {min(dead):.1f} and {max(dead):.1f} % of latents"
        " never fire.",
        "How often latents fire on held-out rows, in bins of a quarter of a"
        f" decade. Latents that never fire ({min(dead):.1f} to"
        f" {max(dead):.1f} %) are in no bin.",
      )
    )
  return blocks or [page.Prose("No training metrics were found.")]


def _run(found, command: str) -> list[page.Block]:
  blocks: list[page.Block] = [
    page.Prose("To repeat this run, with every setting as it was:"),
    page.Code(command),
  ]
  if found.get("data"):
    blocks.append(page.facts("Data.", found["data"]))
  blocks.append(page.facts("Settings; each is a flag.", found["config"]))
  environment = dict(found["environment"])
  if environment.get("memory_bytes"):
    environment["memory_bytes"] = terminal.size(environment["memory_bytes"])
  blocks.append(page.facts("Environment.", environment))
  return blocks


def _definitions() -> page.Table:
  rows = [
    ("n", "latents of an SAE"),
    ("k", "active latents per row; the others are zero"),
    ("row", "the activation vector of one token"),
    (
      "nmse, L",
      "normalised MSE: Σ|x − x̂|² / Σ|x − m|² over held-out rows, with m the mean"
      " of the training rows, in the frame of the prep; a share, 1 for an SAE"
      " that always answers m",
    ),
    ("FVU", "the same with the mean of the held-out rows in place of m"),
    ("L0", "mean over rows of the number of latents that are not zero"),
    forms.DEFINITION,
    ("dead", "share of latents that are zero on every held-out row"),
    ("cosine", "mean over rows of the cosine of x and x̂, in [−1, 1]"),
    ("density", "share of held-out rows on which a latent is not zero"),
    (
      "R²",
      "1 − Σ(log L − log L_fit)² / Σ(log L − mean log L)², over means of seeds",
    ),
    (
      "95 % band",
      "percentiles 2.5 to 97.5 of the bootstrap's predictions with residuals"
      " added",
    ),
    ("time", "wall-clock seconds of training, without harvest and evaluation"),
  ]
  columns = [
    page.Column("Word", right=False),
    page.Column("Meaning", right=False),
  ]
  return page.Table(columns, rows, "Words used on this page, with their units.")
