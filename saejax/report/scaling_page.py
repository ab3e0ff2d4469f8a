"""Sections of the page of a scaling run."""

from collections.abc import Mapping, Sequence
from typing import Any

from saejax import terminal
from saejax.evals import scaling_law
from saejax.report import (
  downstream,
  drawing,
  forms,
  law_page,
  notes,
  page,
  plots,
)


def sections(
  found: Mapping[str, Any],
  fit: scaling_law.Fit | None,
  drawn: Mapping[str, drawing.Plot],
  command: str,
  features: Sequence[page.Block] = (),
) -> list[page.Section]:
  """Returns the sections of the page.

  There is none about a law where none was looked for.

  Args:
    found: content of results.json.
    fit: the law, or None.
    drawn: plots by name.
    command: command that repeats the run.
    features: blocks about some latents.
  """
  points = found["points"]
  made = [page.Section("Result", _result(found, fit, drawn))]
  if in_model := downstream.blocks(found, drawn):
    made.append(page.Section("Loss in the model", in_model))
  if features:
    made.append(page.Section("Some latents", features))
  if fit is not None or found.get("fit_reason"):
    law = law_page.blocks(found, fit, drawn)
    made.append(page.Section("The fitted law", law))
  return [
    *made,
    page.Section("All SAEs", _every(points)),
    page.Section("Training and densities", _training(points, drawn)),
    page.Section("Settings", _run(found, command)),
    page.Section("Definitions", [_definitions(found)]),
  ]


def subtitle(found: Mapping[str, Any]) -> str:
  """Describes the grid in one sentence.

  Args:
    found: content of results.json.
  """
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
    blocks.append(page.Note(f"Left out of all plots and the fit: {names}."))
  if not points:
    return [*blocks, page.Note("No SAE finished with a finite loss.")]
  blocks += notes.toy(points) + notes.dead(points) + forms.notes(points)
  blocks += [_numbers(points, fit), *_curves(points, fit, drawn)]
  return blocks + downstream.offer(found)


def _numbers(points, fit) -> page.Numbers:
  """Returns the main numbers, first the extrapolation error of a law."""
  best = min(points, key=lambda p: p["nmse"])
  numbers = [] if fit is None else [law_page.headline(fit)]
  numbers.append(
    (
      f"{best['nmse']:.3f}",
      f"lowest held-out normalised MSE (n = {best['n']:,}, k = {best['k']:,})",
    )
  )
  dead = [p["dead"] for p in points if p.get("dead") is not None]
  if dead:
    numbers.append(
      (f"{100 * max(dead):.1f} %", "largest share of dead latents of an SAE")
    )
  return page.Numbers(numbers)


def _curves(points, fit, drawn) -> list[page.Block]:
  shown = (
    "Lines: the fitted law. Shaded: 95 % predictive band for a new SAE, from"
    f" {len(fit.samples):,} bootstrap resamples over cells (n, k)."
    if fit is not None
    else "Lines join the measured points; no law was fitted."
  )
  blocks: list[page.Block] = [
    page.figure(
      drawn[f"loss_against_{across}"],
      f"Held-out normalised MSE against {across} on log axes, one curve per"
      f" {each}. " + _trend(points, across, each),
      f"Held-out loss against {across}, one curve per {each}. {shown}",
    )
    for across, each in (("n", "k"), ("k", "n"))
    if f"loss_against_{across}" in drawn
  ]
  if "frontier" in drawn:
    blocks.append(
      page.figure(
        drawn["frontier"],
        "Held-out normalised MSE against L0 on log axes, one curve per n, with"
        " the frontier. " + _trend(points, "l0", "n"),
        "Held-out loss against L0, the cost of a description in active latents."
        " Compare SAEs at equal L0: further down is better. The frontier has what"
        " can be had at this size.",
      )
    )
  return blocks


def _trend(points, across: str, each: str) -> str:
  """Describes the ends of each curve."""
  ends = []
  for value in sorted({p[each] for p in points}):
    mine = [p for p in points if p[each] == value and p.get(across)]
    if not mine:
      continue
    low, high = (f(mine, key=lambda p: p[across]) for f in (min, max))
    ends.append(
      f"{each} = {value:,}: {low['nmse']:.3f} at {across} = {low[across]:,.4g},"
      f" {high['nmse']:.3f} at {high[across]:,.4g}"
    )
  return "; ".join(ends) + "."


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
    name: column
    for name, column in columns.items()
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
      "Metrics on held-out rows. Time is that of training this SAE.",
    )
  ]


def _training(points, drawn) -> list[page.Block]:
  blocks: list[page.Block] = []
  if "training_curves" in drawn:
    blocks.append(
      page.figure(
        drawn["training_curves"],
        "Training loss against tokens, one panel per n and one curve per k.",
        "Loss of single training batches, at the steps that were recorded, which"
        " is why it is rough. An SAE whose curve falls at the end was not trained"
        " to convergence.",
      )
    )
  if "held_out_curves" in drawn:
    blocks.append(
      page.figure(
        drawn["held_out_curves"],
        "Held-out loss against training tokens, one panel per n and one curve per"
        " k.",
        "Loss of the training form on a sample of the held-out rows"
        " (train.eval_rows), every train.eval_steps steps. Where it rises while"
        " the training loss falls, the SAE fits its training rows.",
      )
    )
  elif "training_curves" in drawn:
    blocks.append(
      page.Prose(
        "No held-out loss was recorded during training, so that only batches of"
        " training rows are drawn."
      )
    )
  if "density" in drawn:
    dead = [100 * p["dead"] for p in plots.good(points)]
    blocks.append(
      page.figure(
        drawn["density"],
        "Histogram of the log density of latents, one panel per n and one line"
        f" per k; between {min(dead):.1f} and {max(dead):.1f} % of latents never"
        " fire.",
        f"Density of latents on held-out rows. The bars at the left are the dead"
        f" latents, which fire on none ({min(dead):.1f} to {max(dead):.1f} %)."
        " Bins are at least a quarter of a decade wide and end between whole"
        " numbers of rows; heights are per quarter of a decade.",
      )
    )
  return blocks or [page.Prose("There are no training metrics.")]


def _run(found, command: str) -> list[page.Block]:
  blocks: list[page.Block] = [
    page.Prose("This command repeats the run with the same settings:"),
    page.Code(command),
  ]
  if found.get("seconds"):
    spent = terminal.spent(found["seconds"])
    blocks.append(page.Prose(f"Time up to the plots: {spent}."))
  if found.get("data"):
    blocks.append(page.facts("Data.", found["data"]))
  environment = dict(found["environment"])
  if environment.get("memory_bytes"):
    environment["memory_bytes"] = terminal.size(environment["memory_bytes"])
  flags = page.facts("Settings, by flag.", found["config"])
  count = f"Every flag ({len(flags.rows):,})"
  machine = page.facts("Environment.", environment)
  return [
    *blocks,
    page.Details(count, [flags]),
    page.Details("Environment", [machine]),
  ]


def _definitions(found) -> page.Table:
  rows = [
    ("n", "latents of an SAE"),
    ("k", "active latents per token; the others are zero"),
    ("row", "the activation vector of one token"),
    (
      "nmse, L",
      "normalised MSE: Σ|x − x̂|² / Σ|x − m|² over held-out rows, with m the mean"
      " of the training rows, in the frame of the prep; 1 for an SAE that always"
      " returns m",
    ),
    ("FVU", "nmse with the mean of the held-out rows in place of m"),
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
      "extrapolation error",
      "mean of |log(predicted / measured)| over the SAEs of the largest n,"
      " predicted by the law fitted to smaller n, as a percentage",
    ),
    (
      "95 % band",
      "percentiles 2.5 to 97.5 of the bootstrap's predictions with residuals"
      " added, both widened for the six fitted parameters and by Student's t",
    ),
    *downstream.definitions(found),
    ("time", "wall-clock seconds of training, without harvest and evaluation"),
  ]
  columns = [
    page.Column("Term", right=False),
    page.Column("Meaning", right=False),
  ]
  return page.Table(columns, rows, "Terms used on this page, with their units.")
