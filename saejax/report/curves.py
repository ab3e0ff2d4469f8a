"""Plots of studies: curves by name with error bars, heat maps, intervals.

Names (methods, arms) are not ordered, so they have the colours of Okabe and Ito,
which are distinct in every kind of colour vision, and distinct markers and line
styles.
"""

import itertools
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from saejax.report import axes as look

COLOURS = (
  "#0072B2",
  "#D55E00",
  "#009E73",
  "#CC79A7",
  "#E69F00",
  "#56B4E9",
  "#000000",
  "#7F6F00",
)


class Curve(NamedTuple):
  """Points of one name, with error bars if spreads are given.

  Attributes:
    x, y: coordinates.
    y_spread, x_spread: half lengths of the error bars.
    line: whether to join the points.
  """

  x: Sequence[float]
  y: Sequence[float]
  y_spread: Sequence[float] | None = None
  x_spread: Sequence[float] | None = None
  line: bool = True


class Axis(NamedTuple):
  """An axis of a plot.

  Attributes:
    label: label with the unit.
    log: whether the axis is logarithmic.
  """

  label: str
  log: bool = False


def over_seeds(
  points: Sequence[Mapping[str, Any]], x: str, y: str, *, by: Sequence[str]
) -> Curve:
  """Computes means and standard deviations over points that agree in `by`.

  Points without a number for x or y are left out.

  Args:
    points: records of SAEs.
    x, y: fields of the coordinates.
    by: fields that identify a setting, such as k.
  """
  groups: dict[tuple, list[tuple[float, float]]] = {}
  for p in points:
    if _number(p.get(x)) and _number(p.get(y)):
      key = tuple(p.get(name) for name in by)
      groups.setdefault(key, []).append((p[x], p[y]))
  cells = [np.array(g, float) for g in groups.values()]
  cells.sort(key=lambda g: g[:, 0].mean())
  mean = [g.mean(axis=0) for g in cells]
  spread = [g.std(axis=0, ddof=len(g) > 1) for g in cells]
  return Curve(
    [m[0] for m in mean],
    [m[1] for m in mean],
    y_spread=[s[1] for s in spread],
    x_spread=[s[0] for s in spread],
  )


def by_arm(
  points: Sequence[Mapping[str, Any]],
  x: str,
  y: str,
  *,
  by: Sequence[str] = ("k", "coefficient"),
) -> dict[str, Curve]:
  """Computes `over_seeds` for each arm, in the order of the points.

  Args:
    points: records of SAEs with the field "arm".
    x, y: fields of the coordinates.
    by: fields that identify a setting.
  """
  names = dict.fromkeys(p["arm"] for p in points)
  mine = {name: [p for p in points if p["arm"] == name] for name in names}
  curves = {name: over_seeds(of, x, y, by=by) for name, of in mine.items()}
  return {name: curve for name, curve in curves.items() if len(curve.x)}


@look.styled
def panels(
  drawn: Mapping[str, Mapping[str, Curve]],
  x: Axis,
  y: Axis | Sequence[Axis],
  *,
  height: float = 3.6,
  columns: int = 2,
  legend: str = "method",
) -> Any:
  """Draws one panel per title with one curve per name, and one legend.

  Args:
    drawn: title -> name -> curve.
    x: x axis of all panels.
    y: y axis of all panels, or one per panel.
    height: height of a row of panels, in inches.
    columns: maximum number of panels side by side.
    legend: title of the legend.
  """
  each = [y] * len(drawn) if isinstance(y, Axis) else list(y)
  made, flat = look.panels(len(drawn), height=height, most=columns)
  names = list(dict.fromkeys(n for curves in drawn.values() for n in curves))
  crowded = len(names) > 12  # then panels have separate styles and legends
  style = {name: _style(i) for i, name in enumerate(names)}
  for axes, (title, curves), axis in zip(
    flat, drawn.items(), each, strict=False
  ):
    if crowded:
      style = {name: _style(i) for i, name in enumerate(curves)}
    for name, curve in curves.items():
      bars = axes.errorbar(
        curve.x,
        curve.y,
        yerr=curve.y_spread,
        xerr=curve.x_spread,
        label=name,
        elinewidth=0.8,
        capsize=1.5,
        lw=1.3 if curve.line else 0,
        ms=4,
        **style[name],
      )
      look.named(bars.lines[0], name)
    axes.set_title(title)
    axes.set_xlabel(x.label)
    axes.set_ylabel(axis.label)
    _scale(axes.xaxis, x, [v for c in curves.values() for v in c.x])
    _scale(axes.yaxis, axis, [v for c in curves.values() for v in c.y])
    if crowded:
      axes.legend(fontsize=6.5, handlelength=1.5)
  if not crowded:
    look.legend(made, flat, legend)
  return made


@look.styled
def heat(
  drawn: Mapping[str, np.ndarray],
  x: tuple[str, Sequence[Any]],
  y: tuple[str, Sequence[Any]],
  label: str,
  *,
  height: float = 3.0,
  low: float = 0.0,
  high: float = 1.0,
) -> Any:
  """Draws one heat map per title, with the value in each cell.

  Args:
    drawn: title -> values [len(y values), len(x values)].
    x, y: (label, values) of the axes.
    label: label of the colour scale.
    height: height of a row of panels, in inches.
    low, high: ends of the colour scale.
  """
  made, flat = look.panels(len(drawn), height=height)
  image = None
  for axes, (title, values) in zip(flat, drawn.items(), strict=False):
    values = np.asarray(values, float)
    image = axes.imshow(
      values, vmin=low, vmax=high, cmap="viridis", aspect="auto", origin="lower"
    )
    for i, j in np.ndindex(values.shape):
      if np.isfinite(values[i, j]):
        bright = values[i, j] > low + 0.6 * (high - low)
        axes.text(
          j,
          i,
          f"{values[i, j]:.2f}",
          ha="center",
          va="center",
          fontsize=7.5,
          color="black" if bright else "white",
        )
    axes.grid(False)
    axes.set_xticks(range(len(x[1])), [str(v) for v in x[1]])
    axes.set_yticks(range(len(y[1])), [str(v) for v in y[1]])
    axes.set_xlabel(x[0])
    axes.set_ylabel(y[0])
    axes.set_title(title)
  made.colorbar(image, ax=flat, label=label, shrink=0.85)
  return made


@look.styled
def intervals(
  rows: Sequence[tuple[str, float, float, float, str]],
  label: str,
  *,
  groups: Mapping[str, str] | None = None,
  legend: str = "",
  at: float = 0.0,
) -> Any:
  """Draws effects with their intervals, one line per name, coloured by group.

  Intervals that contain `at` are dashed with a hollow mark: the sign of such an
  effect is not known.

  Args:
    rows: (name, effect, low, high, group), top to bottom.
    label: label of the effect.
    groups: colours by group, in the order of the legend; by default the groups
      of the rows.
    legend: title of the legend.
    at: value that means no effect.
  """
  if groups is None:
    present = dict.fromkeys(row[4] for row in rows)
    groups = dict(zip(present, itertools.cycle(COLOURS), strict=False))
  names = list(dict.fromkeys(row[0] for row in reversed(rows)))
  of = {name: [row for row in rows if row[0] == name] for name in names}
  # A line of text and an effect are 0.13 inches high.
  width = 20 if look.is_narrow() else 40
  labels = [textwrap.fill(name, width) for name in names]
  high = [
    max(label.count("\n") + 2, len(of[name]) + 1)
    for name, label in zip(names, labels, strict=True)
  ]
  made, grid = look.figure(0.9 + 0.13 * sum(high))
  axes = grid[0][0]
  for i, mine in enumerate(of.values()):
    for j, (_, effect, low, high, group) in enumerate(mine):
      y = i + 0.6 * ((len(mine) - 1) / 2 - j) / len(mine)
      contains = low <= at <= high
      dashes = (0, (3, 1.2)) if contains else "-"
      axes.plot([low, high], [y, y], color=groups[group], lw=1.6, ls=dashes)
      inside = look.PAPER if contains else groups[group]
      (mark,) = axes.plot([effect], [y], "o", color=groups[group], mfc=inside)
      mark.set_markersize(4.5)
      ends = f"{low:.3g} to {high:.3g}"
      look.named(mark, f"{names[i]}, {ends}" + f", contains {at:g}" * contains)
  for group, colour in groups.items():
    if any(row[4] == group for row in rows):
      axes.plot([], [], "o-", color=colour, ms=4.5, lw=1.6, label=group)
  if any(low <= at <= high for _, _, low, high, _ in rows):
    axes.plot(
      [],
      [],
      "o",
      color=look.SOFT,
      mfc=look.PAPER,
      ls=(0, (3, 1.2)),
      ms=4.5,
      label=f"interval contains {at:g}",
    )
  axes.axvline(at, color=look.SOFT, lw=1)
  axes.set_yticks(range(len(names)), labels, fontsize=7.5)
  axes.set_ylim(-0.7, len(names) - 0.3)
  axes.set_xlabel(label)
  look.legend(made, [axes], legend)
  return made


def _style(i: int) -> dict[str, Any]:
  return {
    "color": COLOURS[i % len(COLOURS)],
    "marker": look.MARKERS[(i + i // len(COLOURS)) % len(look.MARKERS)],
    "linestyle": look.DASHES[(i // len(COLOURS)) % len(look.DASHES)],
  }


def _scale(axis: Any, spec: Axis, values: Sequence[float]) -> None:
  good = [v for v in values if _number(v) and (v > 0 or not spec.log)]
  if spec.log and good:
    # Few round values are settings, such as sizes; measured ones are not round.
    few = sorted(set(good))
    chosen = len(few) <= 6 and all(float(f"{v:.3g}") == v for v in few)
    at = few if chosen else None
    look.log_scale(axis, *look.padded(good), at=at)


def _number(value: Any) -> bool:
  return isinstance(value, int | float | np.number) and math.isfinite(value)
