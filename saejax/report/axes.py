"""Style of all figures: palette, sizes and ticks.

A figure is 7.2 inches wide, the width of the report, so that its text has the
size of the page's text. For the screen of a phone it is drawn again, 3.7 inches
wide, with panels below each other and the legend at the foot. Ordered values
(k, n) have colours of viridis, whose order is visible in every kind of colour
vision and in grey, and distinct markers.
"""

import contextvars
import functools
import io
import math
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from saejax.report import extras

WIDTH, NARROW = 7.2, 3.7  # inches
DPI = 160
PAPER = "#ffffff"
INK = "#1c2430"
SOFT = "#5a6472"
EDGE, GRID = "#98a2ae", "#e4e8ec"
MARKERS = "osD^vph<>H"
DASHES = ("-", (0, (5, 1.5)), (0, (2.5, 1)), (0, (6, 1.5, 1.5, 1.5)))

_STYLE = {
  "font.family": "sans-serif",
  "font.sans-serif": ["DejaVu Sans"],
  "font.size": 9,
  "axes.titlesize": 9.5,
  "axes.titleweight": "bold",
  "axes.labelsize": 9.5,
  "axes.labelcolor": INK,
  "axes.edgecolor": EDGE,
  "axes.linewidth": 0.8,
  "axes.spines.top": False,
  "axes.spines.right": False,
  "axes.grid": True,
  "axes.axisbelow": True,
  "grid.color": GRID,
  "grid.linewidth": 0.7,
  "xtick.color": SOFT,
  "ytick.color": SOFT,
  "xtick.labelsize": 8.5,
  "ytick.labelsize": 8.5,
  "text.color": INK,
  "legend.frameon": False,
  "legend.fontsize": 8.5,
  "lines.linewidth": 1.6,
  "lines.markersize": 5,
}


_WIDTH = contextvars.ContextVar("width", default=WIDTH)


def styled(draw: Callable[..., Any]) -> Callable[..., Any]:
  """Decorates a function that draws a figure to use the style of this file.

  The figure can be drawn again at another width, see `drawn_at`.

  Args:
    draw: the function.
  """

  @functools.wraps(draw)
  def draw_styled(*arguments: Any, **keywords: Any) -> Any:
    with in_style():
      made = draw(*arguments, **keywords)
    made.again = functools.partial(draw_styled, *arguments, **keywords)
    return made

  return draw_styled


def in_style() -> Any:
  """Returns the context in which the style of this file applies."""
  return extras.require("matplotlib").rc_context(_STYLE)


def drawn_at(made: Any, width: float) -> Any:
  """Draws a figure again at another width.

  Args:
    made: a figure that a `styled` function drew.
    width: width in inches.
  """
  token = _WIDTH.set(width)
  try:
    return made.again()
  finally:
    _WIDTH.reset(token)


def is_narrow() -> bool:
  """Returns whether a figure is being drawn for the screen of a phone."""
  return _WIDTH.get() < WIDTH


def figure(height: float, rows: int = 1, columns: int = 1, **keywords: Any):
  """Creates a figure of the page's width.

  Args:
    height: height in inches.
    rows, columns: numbers of panels.
    **keywords: arguments of `Figure.subplots`, such as sharey.

  Returns:
    (figure, axes [rows, columns]).

  Raises:
    InputError: matplotlib is not installed.
  """
  figures = extras.require("matplotlib.figure")
  made = figures.Figure(figsize=(_WIDTH.get(), height), layout="constrained")
  return made, made.subplots(rows, columns, squeeze=False, **keywords)


def panels(
  count: int, *, height: float, most: int = 2, more: float = 0, **keywords: Any
):
  """Creates a figure of several panels, below each other if it is narrow.

  Args:
    count: number of panels.
    height: height of a row of panels, in inches.
    most: maximum number of panels side by side.
    more: further height of the figure, in inches.
    **keywords: arguments of `Figure.subplots`.

  Returns:
    (figure, the axes of the panels).
  """
  columns = max(1, min(count, 1 if is_narrow() else most))
  rows = -(-max(count, 1) // columns)
  made, grid = figure(more + height * rows, rows, columns, **keywords)
  axes = list(grid.ravel())
  for extra in axes[count:]:
    extra.set_visible(False)
  return made, axes[: max(count, 1)]


def named(artist: Any, name: str) -> Any:
  """Names a curve or bars, so that the page shows their values on hover.

  Args:
    artist: a line, steps or a rectangle.
    name: such as "k = 8".

  Returns:
    The artist.
  """
  artist.set_gid(name)
  return artist


def titled(made: Any, title: str) -> Any:
  """Gives a figure a title, unless it has one.

  The title is drawn in the PNG; a page sets it above the figure.

  Args:
    made: the figure.
    title: its title.

  Returns:
    The figure.
  """
  made.title = getattr(made, "title", "") or title
  return made


def explained(axes: Any, text: str) -> None:
  """Writes above a panel what its marks, lines and bands are.

  Args:
    axes: the panel.
    text: the explanation.
  """
  axes.set_title(
    textwrap.fill(text, 44 if is_narrow() else 88),
    loc="left",
    fontsize=8.5,
    weight="normal",
    color=SOFT,
  )


def png(made: Any) -> bytes:
  """Renders a figure with its title as PNG; equal figures give equal bytes.

  Args:
    made: the figure.
  """
  backend = extras.require("matplotlib.backends.backend_agg")
  out = io.BytesIO()
  with in_style():
    if title := getattr(made, "title", ""):
      made.suptitle(
        textwrap.fill(title, 88), x=0.01, ha="left", fontsize=10, weight="bold"
      )
    backend.FigureCanvasAgg(made)
    made.savefig(out, format="png", dpi=DPI, metadata={"Software": None})
  return out.getvalue()


def styles(values: Sequence[float]) -> dict[float, dict[str, Any]]:
  """Returns the colour and marker of each of several ordered values.

  Args:
    values: the values, such as all k of a run.
  """
  viridis = extras.require("matplotlib").colormaps["viridis"]
  ordered = sorted(set(values))
  last = max(len(ordered) - 1, 1)
  return {
    value: {
      # The bright end of the palette is hard to see on white.
      "color": viridis(0.84 * i / last),
      "marker": MARKERS[i % len(MARKERS)],
    }
    for i, value in enumerate(ordered)
  }


def log_scale(axis: Any, low: float, high: float, *, at=None) -> None:
  """Sets a log scale with plain numbers at round ticks.

  Args:
    axis: `axes.xaxis` or `axes.yaxis`.
    low, high: limits, positive.
    at: ticks; four to eight round numbers by default.
  """
  ticker = extras.require("matplotlib.ticker")
  name = axis.axis_name
  getattr(axis.axes, f"set_{name}scale")("log")
  getattr(axis.axes, f"set_{name}lim")(low, high)
  ticks = list(at) if at is not None else round_ticks(low, high)
  axis.set_major_locator(ticker.FixedLocator(ticks))
  axis.set_minor_locator(ticker.NullLocator())
  axis.set_major_formatter(ticker.FuncFormatter(lambda v, _: number(v)))


def round_ticks(low: float, high: float, most: int = 8) -> list[float]:
  """Returns round numbers between low and high, nearly even on a log axis.

  Args:
    low, high: limits, positive.
    most: maximum number of ticks.

  >>> round_ticks(0.13, 0.52)
  [0.15, 0.2, 0.3, 0.4, 0.5]
  >>> round_ticks(1, 10000)
  [1.0, 10.0, 100.0, 1000.0, 10000.0]
  """
  sets = (
    (1.0,),
    (1.0, 3.0),
    (1.0, 2.0, 5.0),
    (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0),
    (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 7.0, 8.0),
    tuple(i / 10 for i in range(10, 100, 2)),
    tuple(i / 20 for i in range(20, 200)),
  )
  decades = range(math.floor(math.log10(low)), math.floor(math.log10(high)) + 1)
  best: list[float] = []
  for steps in sets:
    ticks = [
      float(f"{step * 10.0**decade:.6g}")
      for decade in decades
      for step in steps
    ]
    ticks = [t for t in ticks if low * (1 - 1e-9) <= t <= high * (1 + 1e-9)]
    if len(ticks) > most:
      return best if len(best) > 2 else ticks[:: -(-len(ticks) // most)]
    best = ticks
    if len(best) >= 4:
      break
  return best if len(best) > 2 else _even_ticks(low, high)


def _even_ticks(low: float, high: float) -> list[float]:
  """Returns equidistant round numbers, for a narrow, nearly linear log axis."""
  step = 10.0 ** math.floor(math.log10((high - low) / 2))
  step *= next(f for f in (5, 2, 1) if (high - low) / (f * step) >= 2)
  first, last = math.ceil(low / step), math.floor(high / step)
  return [float(f"{i * step:.10g}") for i in range(first, last + 1)]


def sizes(values: Sequence[float], most: int = 9) -> list[float]:
  """Returns ticks at the values themselves, thinned out if there are many.

  Args:
    values: the values.
    most: maximum number of ticks.

  >>> sizes([4, 8, 4, 16])
  [4, 8, 16]
  """
  ordered = sorted(set(values))
  return ordered[:: -(-len(ordered) // most)]


def number(value: float) -> str:
  """Formats a number of an axis: 0.15, 4,096, 2M.

  Args:
    value: the number.

  >>> [number(v) for v in (0.15, 8, 4096, 2_000_000, 1_500_000, 1e-5)]
  ['0.15', '8', '4,096', '2M', '1.5M', '0.00001']
  """
  if abs(value) >= 1e6:
    return f"{value / 1e6:.4g}M"
  if abs(value) >= 1:
    return f"{value:,.6g}" if value != int(value) else f"{int(value):,}"
  if 0 < abs(value) < 1e-5:
    return f"{value:g}"
  return f"{value:.6f}".rstrip("0").rstrip(".") if value else "0"


def padded(values: Sequence[float], share: float = 0.06) -> tuple[float, float]:
  """Returns limits of a log axis with a margin on both sides.

  Args:
    values: positive values on the axis.
    share: margin relative to the range of the values.
  """
  low, high = math.log(min(values)), math.log(max(values))
  air = share * max(high - low, 0.2)
  return math.exp(low - air), math.exp(high + air)


def legend(made: Any, panels: Sequence[Any], title: str) -> None:
  """Draws one legend for all panels: to their right, or below if narrow.

  Args:
    made: the figure.
    panels: axes of the panels.
    title: title of the legend.
  """
  handles: dict[str, Any] = {}
  for axes in panels:
    for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
      handles.setdefault(label, handle)
  if not handles:
    return
  place: dict[str, Any] = {"loc": "outside right upper"}
  if is_narrow():  # an entry is a mark of 0.5 inches and characters of 0.075
    wide = 0.5 + 0.075 * max(map(len, handles))
    columns = min(len(handles), max(1, int(NARROW / wide)))
    place = {"loc": "outside lower center", "ncols": columns}
  made.legend(
    handles.values(),
    handles.keys(),
    title=title,
    alignment="left",
    title_fontsize=9,
    **place,
  )
