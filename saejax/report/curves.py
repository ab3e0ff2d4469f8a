"""Plots of studies: curves by name with error bars, heat maps, intervals.

Names (methods, arms) have no order, so they take the colours of Okabe and Ito,
which differ in every kind of colour vision, and a marker and line style each.
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
  """Points of one name; error bars where there are spreads.

  Attributes:
    x, y: places.
    x_spread, y_spread: half lengths of the bars.
    line: whether the points are joined.
  """

  x: Sequence[float]
  y: Sequence[float]
  y_spread: Sequence[float] | None = None
  x_spread: Sequence[float] | None = None
  line: bool = True


class Axis(NamedTuple):
  """A label with its unit, and whether the axis is logarithmic."""

  label: str
  log: bool = False


def over_seeds(
  points: Sequence[Mapping[str, Any]], x: str, y: str, *, by: Sequence[str]
) -> Curve:
  """Means over the points that agree in `by`, with standard deviations.

  Points without a number for x or y are left out.
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
  """`over_seeds` of each arm, in the order of the points."""
  names = dict.fromkeys(p["arm"] for p in points)
  mine = {name: [p for p in points if p["arm"] == name] for name in names}
  found = {name: over_seeds(of, x, y, by=by) for name, of in mine.items()}
  return {name: curve for name, curve in found.items() if len(curve.x)}


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
  """A panel for each title, a curve for each name; one legend for all.

  Args:
    drawn: title -> name -> curve.
    x: of all panels.
    y: of all panels, or one for each.
    height: of a row of panels, in inches.
    columns: of panels.
    legend: its title.
  """
  columns = min(columns, len(drawn))
  rows = -(-len(drawn) // columns)
  each = [y] * len(drawn) if isinstance(y, Axis) else list(y)
  made, grid = look.figure(height * rows, rows, columns)
  names = list(dict.fromkeys(n for curves in drawn.values() for n in curves))
  crowded = (
    len(names) > 12
  )  # each panel then has styles and a legend of its own
  style = {name: _style(i) for i, name in enumerate(names)}
  flat = list(grid.ravel())
  for extra in flat[len(drawn) :]:
    extra.set_visible(False)
  for axes, (title, curves), axis in zip(
    flat, drawn.items(), each, strict=False
  ):
    if crowded:
      style = {name: _style(i) for i, name in enumerate(curves)}
    for name, curve in curves.items():
      axes.errorbar(
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
    axes.set_title(title)
    axes.set_xlabel(x.label)
    axes.set_ylabel(axis.label)
    _scale(axes.xaxis, x, [v for c in curves.values() for v in c.x])
    _scale(axes.yaxis, axis, [v for c in curves.values() for v in c.y])
    if crowded:
      axes.legend(fontsize=6.5, handlelength=1.5)
  if not crowded:
    look.legend(made, flat[: len(drawn)], legend)
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
  """Maps [y, x] of a value, one for each title, with the value in each cell.

  Args:
    drawn: title -> values [len(y values), len(x values)].
    x, y: label and values of the axes.
    label: of the colour.
    height: of a row of panels, in inches.
    low, high: ends of the colour scale.
  """
  columns = min(2, len(drawn))
  rows = -(-len(drawn) // columns)
  made, grid = look.figure(height * rows, rows, columns)
  flat, image = list(grid.ravel()), None
  for extra in flat[len(drawn) :]:
    extra.set_visible(False)
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
  made.colorbar(image, ax=flat[: len(drawn)], label=label, shrink=0.85)
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
  """Effects with their intervals, a line for each name, coloured by group.

  Args:
    rows: (name, effect, low, high, group), top to bottom.
    label: of the effect.
    groups: name -> colour, in the order of the legend; those of the rows by
      default.
    legend: its title.
    at: where no effect is.
  """
  if groups is None:
    present = dict.fromkeys(row[4] for row in rows)
    groups = dict(zip(present, itertools.cycle(COLOURS), strict=False))
  names = list(dict.fromkeys(row[0] for row in reversed(rows)))
  of = {name: [row for row in rows if row[0] == name] for name in names}
  # A line of text is 0.13 inches high, and so is a point.
  labels = [textwrap.fill(name, 40) for name in names]
  high = [
    max(label.count("\n") + 2, len(of[name]) + 1)
    for name, label in zip(names, labels, strict=True)
  ]
  made, grid = look.figure(0.9 + 0.13 * sum(high))
  axes = grid[0][0]
  for i, mine in enumerate(of.values()):
    for j, (_, effect, low, high, group) in enumerate(mine):
      y = i + 0.6 * ((len(mine) - 1) / 2 - j) / len(mine)
      axes.plot([low, high], [y, y], color=groups[group], lw=1.6)
      axes.plot([effect], [y], "o", color=groups[group], ms=4.5)
  for group, colour in groups.items():
    if any(row[4] == group for row in rows):
      axes.plot([], [], "o-", color=colour, ms=4.5, lw=1.6, label=group)
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


def _scale(axis: Any, wanted: Axis, values: Sequence[float]) -> None:
  good = [v for v in values if _number(v) and (v > 0 or not wanted.log)]
  if wanted.log and good:
    # Numbers that were chosen, such as sizes; measured ones are not round.
    few = sorted(set(good))
    chosen = len(few) <= 6 and all(float(f"{v:.3g}") == v for v in few)
    at = few if chosen else None
    look.log_scale(axis, *look.padded(good), at=at)


def _number(value: Any) -> bool:
  return isinstance(value, int | float | np.number) and math.isfinite(value)
