"""What the SAEs of a run cost the model in place of their site: figure and table.

Points have the measures of `studies.downstream.flat`; found["downstream"] has the
facts of the evaluation, or None where none was wanted.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from saejax.report import axes as look
from saejax.report import drawing, naming, page

Points = Sequence[Mapping[str, Any]]
FIGURE = "downstream"  # name of the plot
TOKENS = 16_384  # suggested
_CE, _COSINE = "ce_increase", "cosine_distance"
_LABELS = {
  _CE: "increase of cross-entropy (nats per token)",
  _COSINE: "1 − cosine of the embedding",
}
_TITLES = {
  _CE: "Cross-entropy that SAEs add to the model, against n and k",
  _COSINE: "Distance of embeddings with SAEs in the model, against n and k",
}
_LINES = {"pca": ("PCA", (0, (5, 2))), "random": ("random", (0, (1, 1.6)))}


def measured(points: Points) -> list[Mapping[str, Any]]:
  """Selects the points that were evaluated in the model.

  Args:
    points: records of SAEs.
  """
  return [p for p in points if p.get(_CE, p.get(_COSINE)) is not None]


@look.styled
def loss_against_n(points: Points) -> Any:
  """Draws the loss in the model against n, a curve per k, with the controls.

  The axis of losses is a log axis unless a loss is not positive: noise of few
  tokens can make an SAE better than the model.

  Args:
    points: records of SAEs, some of them measured.
  """
  points = measured(points)
  name = _measure(points)
  settings = naming.settings(points)
  styles = look.styles(settings)
  made, (row,) = look.figure(4.3)
  axes, shown = row[0], []
  for value in sorted(styles):
    mine = [p for p, own in zip(points, settings, strict=True) if own == value]
    style = styles[value]
    for kind, (label, dashes) in _LINES.items():
      x, y = _means(mine, f"{name}_{kind}")
      if len(x):
        (line,) = axes.plot(
          x, y, ls=dashes, lw=1.2, marker=".", ms=4, color=style["color"]
        )
        look.named(line, f"{naming.full(value)}, {label}")
        shown += y.tolist()
    x, y = _means(mine, name)
    (line,) = axes.plot(x, y, "-", label=naming.short(value), **style)
    look.named(line, naming.full(value))
    shown += y.tolist()
    ends = [
      (p["n"], p[f"{name}_low"], p[f"{name}_high"])
      for p in mine
      if p.get(f"{name}_low") is not None
    ]
    if ends:
      axes.vlines(*zip(*ends, strict=True), color=style["color"], lw=1)
      # On a log axis the part of a bar that is not positive is cut off.
      shown += [end for _, *pair in ends for end in pair if end > 0]
  xs = [p["n"] for p in points]
  ends = look.padded(xs, 0.05)
  if (mean := _level(points, "mean")) is not None:
    dashes = (0, (6, 1.5, 1, 1.5))
    (line,) = axes.plot(ends, [mean] * 2, ls=dashes, lw=1.2, color=look.SOFT)
    look.named(line, "the mean row")
    shown.append(mean)
  look.log_scale(axes.xaxis, *ends, at=look.sizes(xs))
  if min(shown) > 0:
    look.log_scale(axes.yaxis, *look.padded(shown))
  axes.set_xlabel("latents n")
  axes.set_ylabel(_LABELS[name])
  look.explained(axes, _legend(points, name))
  is_k = all(isinstance(value, int) for value in styles)
  look.legend(made, row, "k" if is_k else "setting")
  return look.titled(made, _TITLES[name])


def _legend(points: Points, name: str) -> str:
  bars = (
    " with 95 % intervals" if any(f"{name}_low" in p for p in points) else ""
  )
  pca = any(f"{name}_pca" in p for p in points)
  return (
    f"Solid: SAEs{bars}."
    + " Dashed: as many principal components." * pca
    + " Dotted: an untrained dictionary of equal n and k. Grey: the mean row."
  )


def _measure(points: Points) -> str:
  return _CE if _CE in points[0] else _COSINE


def _means(points: Points, name: str) -> tuple[np.ndarray, np.ndarray]:
  """n, and the mean over seeds of a measure, where there are values."""
  values: dict[int, list[float]] = {}
  for p in points:
    if p.get(name) is not None:
      values.setdefault(p["n"], []).append(p[name])
  ns = sorted(values)
  return np.array(ns, float), np.array([np.mean(values[n]) for n in ns])


def _level(points: Points, kind: str) -> float | None:
  """The loss of a control that is the same for all SAEs."""
  return points[0].get(f"{_measure(points)}_{kind}")


# --- page --------------------------------------------------------------------


def blocks(
  found: Mapping[str, Any], drawn: Mapping[str, drawing.Plot]
) -> list[page.Block]:
  """Returns the blocks of the section on the SAEs in the model.

  Args:
    found: content of results.json.
    drawn: plots by name.
  """
  points, facts = measured(found["points"]), found.get("downstream")
  if not points or not facts:
    return []
  name = _measure(points)
  made: list[page.Block] = [_numbers(points, name)]
  if FIGURE in drawn:
    alt = f"{_LABELS[name]} against n, one curve per k, with controls. "
    made.append(
      page.figure(
        drawn[FIGURE], alt + _trend(points, name), _caption(points, facts, name)
      )
    )
  return [*made, _table(points, name)]


def offer(found: Mapping[str, Any]) -> list[page.Block]:
  """Returns a line that names the flag, where a run could have been evaluated.

  Args:
    found: content of results.json.
  """
  if "downstream" not in found or found["downstream"]:
    return []
  return [
    page.Prose(
      "What the SAEs cost the model was not measured:"
      f" `--downstream_tokens={TOKENS}` adds it to this run without training"
      " again."
    )
  ]


def definitions(found: Mapping[str, Any]) -> list[tuple[str, str]]:
  """Returns the terms of the section with their meaning.

  Args:
    found: content of results.json.
  """
  points = measured(found["points"])
  if not points or not found.get("downstream"):
    return []
  if _measure(points) == _COSINE:
    rows = [
      (
        "1 − cosine",
        "mean over windows of 1 − cosine of the model's embedding and that with the"
        " SAE in place of the site",
      ),
      (
        "neighbours kept",
        "share of windows whose nearest other window, by cosine, stays the same",
      ),
    ]
  else:
    rows = [
      (
        "CE increase",
        "cross-entropy of the next token with the SAE in place of the site, less"
        " that of the model itself, in nats per token",
      ),
      (
        "recovered",
        "1 − CE increase / CE increase with zeros at the site; intervals are from"
        " documents drawn with replacement",
      ),
    ]
  return [
    *rows,
    (
      "controls",
      "in place of the site: zeros; the mean of training rows; PCA, the projection"
      " on as many principal components as the SAE has active latents; random, an"
      " untrained dictionary of equal n and as many active latents",
    ),
  ]


def _numbers(points: Points, name: str) -> page.Numbers:
  best = min(points, key=lambda p: p[name])
  where = (
    f"(n = {best['n']:,}" + f", k = {best['k']:,}" * (best["k"] >= 1) + ")"
  )
  if name == _COSINE:
    return page.Numbers(
      [
        (_number(best[name]), f"lowest 1 − cosine of the embedding {where}"),
        (_percent(best["neighbours_kept"]), "nearest neighbours kept by it"),
      ]
    )
  return page.Numbers(
    [
      (_number(best[name]), f"lowest increase of cross-entropy, nats {where}"),
      (_percent(best["ce_recovered"]), "of the loss recovered by it"),
    ]
  )


def _trend(points: Points, name: str) -> str:
  """Describes the ends of each curve."""
  settings, ends = naming.settings(points), []
  for value in sorted(set(settings)):
    x, y = _means(
      [p for p, own in zip(points, settings, strict=True) if own == value], name
    )
    ends.append(
      f"{naming.full(value)}: {_number(y[0])} at n = {x[0]:,.0f},"
      f" {_number(y[-1])} at {x[-1]:,.0f}"
    )
  return "; ".join(ends) + "."


def _caption(points: Points, facts: Mapping[str, Any], name: str) -> str:
  zero, mean = (_number(_level(points, kind)) for kind in ("zero", "mean"))
  if name == _COSINE:
    over = f"{facts['windows']:,} held-out windows"
    what = "Distance of the model's embedding with the SAE in place of its site"
    unit = ""
  else:
    D = facts["documents"]
    over = f"{facts['tokens']:,} held-out tokens of {D:,} document" + "s" * (
      D > 1
    )
    what = (
      "Cross-entropy with the SAE in place of its site, less that of the model"
      f" itself ({facts['clean']:.3f})"
    )
    unit = " nats"
  return (
    f"{what}, on {over}; further down is better. An SAE no better than PCA has"
    " learned nothing that the variance of the activations does not tell. The"
    f" mean row costs {mean}{unit}; zeros, which are not drawn, {zero}{unit}."
  )


def _table(points: Points, name: str) -> page.Table:
  second = "neighbours_kept" if name == _COSINE else "ce_recovered"
  heads = {
    _CE: page.Column("CE increase", "nats"),
    _COSINE: page.Column("1 − cosine"),
    "ce_recovered": page.Column("Recovered", "%"),
    "neighbours_kept": page.Column("Neighbours kept", "%"),
  }
  kinds = [k for k in ("pca", "random") if f"{name}_{k}" in points[0]]
  seeds = len({p.get("seed") for p in points}) > 1
  columns = [
    page.Column("n"),
    page.Column("Setting" if _other(points) else "k"),
  ]
  columns += [page.Column("Seed")] * seeds + [heads[name]]
  with_ends = any(f"{name}_low" in p for p in points)
  columns += [page.Column("95 % interval", heads[name].unit)] * with_ends
  columns += [heads[second]]
  columns += [page.Column("95 % interval", "%")] * with_ends
  for kind in kinds:
    label = _LINES[kind][0]
    columns.append(
      page.Column(f"{heads[name].name}, {label}", heads[name].unit)
    )
  rows = []
  labels = dict(zip(map(id, points), naming.settings(points), strict=True))
  for p in sorted(points, key=lambda p: (p["n"], p["k"], p.get("seed") or 0)):
    cells = [f"{p['n']:,}", naming.short(labels[id(p)])]
    cells += [str(p.get("seed", 0))] * seeds + [_number(p[name])]
    cells += [_ends(p, name, _number)] * with_ends
    cells += [_percent(p[second], "")]
    cells += [_ends(p, second, lambda v: _percent(v, ""))] * with_ends
    rows.append(cells + [_number(p.get(f"{name}_{kind}")) for kind in kinds])
  return page.Table(
    columns,
    rows,
    "SAEs in place of their site in the model, and controls of equal size.",
  )


def _other(points: Points) -> bool:
  return not all(isinstance(s, int) for s in naming.settings(points))


def _ends(point: Mapping[str, Any], name: str, form) -> str:
  low, high = (point.get(f"{name}_{end}") for end in ("low", "high"))
  return "–" if low is None else f"{form(low)} to {form(high)}"


def _number(value: float | None) -> str:
  """Three decimals, more for small values."""
  if value is None:
    return "–"
  digits = (
    3
    if abs(value) >= 0.1 or not value
    else 2 - math.floor(math.log10(abs(value)))
  )
  return page.signed(f"{value:.{min(digits, 7)}f}")


def _percent(value: float | None, unit: str = " %") -> str:
  return "–" if value is None else page.signed(f"{100 * value:.1f}") + unit
