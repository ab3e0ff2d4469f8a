"""Figures as SVG in a page: wide and narrow, in light and dark, with their values.

A figure is drawn twice, for a desk and for a phone, and the page shows one of the
two. Colours become CSS variables, so that a dark page has colours that contrast as
much with its paper. The values of named curves are beside the figure as JSON, for
the script of the page, which shows them on hover.
"""

import dataclasses
import io
import json
import re
from typing import Any

import numpy as np

from saejax.report import axes as look
from saejax.report import extras

MOST_POINTS = 160  # of a curve, for hover
_VARIABLES = {look.PAPER: "paper", look.INK: "ink", look.SOFT: "soft"}
_VARIABLES |= {look.EDGE: "edge", look.GRID: "grid"}
_INKS = (0.259, 0.931)  # OKLab lightness of the ink, light and dark
_PALEST = 0.52  # of the colour that replaces white, on dark paper


@dataclasses.dataclass(frozen=True)
class Drawing:
  """A figure as SVG.

  Attributes:
    wide, narrow: the SVG elements.
    on_white: whether its colours must stay, since it has a picture.
    values: panels with the values of named curves, for JSON.
    title: its title, which is not in the SVG.
  """

  wide: str
  narrow: str
  on_white: bool
  values: dict[str, Any]
  title: str

  @property
  def json(self) -> str:
    """The values as JSON that may stand in a script element."""
    text = json.dumps(self.values, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("&", "\\u0026")


@dataclasses.dataclass(frozen=True)
class Plot:
  """A figure as PNG, for the folder, and as SVG, for the page."""

  png: bytes
  drawing: Drawing | None


def plot(made: Any, name: str) -> Plot:
  """Renders a figure in both forms.

  Args:
    made: a figure that a `styled` function drew.
    name: as for `draw`.
  """
  return Plot(look.png(made), draw(made, name))


def draw(made: Any, name: str) -> Drawing:
  """Draws a figure as SVG at both widths.

  Args:
    made: a figure that a `styled` function drew.
    name: starts the ids in the SVG, which are unique in a page.
  """
  svgs, boxes, values = [], [], {}
  for width in (look.WIDTH, look.NARROW):
    again = look.drawn_at(made, width)
    svgs.append(_svg(again, f"{name}{len(svgs)}"))
    boxes.append(_boxes(again))  # after drawing, which places the panels
    values = values or _values(again)
  for panel, *pair in zip(values["panels"], *boxes, strict=True):
    panel["boxes"] = pair
  values["panels"] = [p for p in values["panels"] if p["curves"]]
  on_white = any(axes.images for axes in made.axes)
  title = getattr(made, "title", "")
  return Drawing(svgs[0], svgs[1], on_white, values, title)


def _svg(made: Any, name: str) -> str:
  """The SVG element, with CSS variables for colours and the page's font."""
  matplotlib = extras.require("matplotlib")
  backend = extras.require("matplotlib.backends.backend_svg")
  out = io.StringIO()
  rules = {"svg.fonttype": "none", "svg.hashsalt": name}
  with look.in_style(), matplotlib.rc_context(rules):
    backend.FigureCanvasSVG(made)
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    made.savefig(out, format="svg", metadata=nothing, transparent=True)
  text = out.getvalue()
  text = text[text.index("<svg") :]
  text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.S)
  text = re.sub(r' (?:xmlns\S*|version)="[^"]*"', "", text)
  text = re.sub(
    r'(<svg) height="[^"]*" (.*?)width="[^"]*"', r"\1 \2", text, count=1
  )
  text = text.replace("xlink:href", "href")
  text = re.sub(r" font-family: [^;\"]*;", "", text)
  # Where no rule looks at them, ids are left out; others are of this figure.
  used = dict.fromkeys(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
  own = {id: f"{name}-{i}" for i, id in enumerate(used)}
  text = re.sub(
    r' id="([^"]*)"',
    lambda m: f' id="{own[m[1]]}"' if m[1] in own else "",
    text,
  )
  text = re.sub(r'(href="#|url\(#)([^")]+)', lambda m: m[1] + own[m[2]], text)
  text = re.sub(
    r"(fill|stroke|stop-color): (#[0-9a-f]{6})\b",
    lambda m: f"{m[1]}: var(--{variable(m[2])})",
    text,
  )
  return re.sub(r">\s+<", "><", text).strip()


def variable(colour: str) -> str:
  """Returns the name of the CSS variable of a colour, without the hyphens.

  Args:
    colour: such as "#1c2430".

  >>> variable("#1c2430"), variable("#440154")
  ('ink', 'k440154')
  """
  return _VARIABLES.get(colour, "k" + colour[1:])


def palette(text: str) -> tuple[str, str]:
  """Returns CSS that defines the colours of drawings, for light and for dark.

  Args:
    text: the page, or its figures.
  """
  names = sorted(set(re.findall(r"var\(--k([0-9a-f]{6})\)", text)))
  light = " ".join(f"--k{name}: #{name};" for name in names)
  other = " ".join(f"--k{name}: {dark('#' + name)};" for name in names)
  return light, other


def dark(colour: str) -> str:
  """Returns the colour that replaces another one on dark paper.

  Hue and chroma are kept and the order of lightness is reversed, so that what
  stands out from white paper stands out from dark paper.

  Args:
    colour: such as "#440154".

  References:
    Ottosson, A perceptual color space for image processing, 2020 (OKLab).
  """
  rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
  linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
  lab = _LAB @ np.cbrt(_LMS @ linear)
  slope = (_PALEST - _INKS[1]) / (1 - _INKS[0])
  lab[0] = min(_INKS[1] + slope * (lab[0] - _INKS[0]), 1)
  linear = np.linalg.solve(_LMS, np.linalg.solve(_LAB, lab) ** 3).clip(0, 1)
  rgb = np.where(
    linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055
  )
  return "#" + "".join(f"{round(255 * v):02x}" for v in rgb.clip(0, 1))


_LMS = np.array(
  [
    [0.4122214708, 0.5363325363, 0.0514459929],
    [0.2119034982, 0.6806995451, 0.1073969566],
    [0.0883024619, 0.2817188376, 0.6299787005],
  ]
)
_LAB = np.array(
  [
    [0.2104542553, 0.7936177850, -0.0040720468],
    [1.9779984951, -2.4285922050, 0.4505937099],
    [0.0259040371, 0.7827717662, -0.8086757660],
  ]
)


# --- values ------------------------------------------------------------------


def _shown(made: Any) -> list[Any]:
  return [axes for axes in made.axes if axes.get_visible()]


def _boxes(made: Any) -> list[list[float]]:
  """Of each panel in the SVG: left, top, width, height, limits of x and of y."""
  width, height = made.get_size_inches() * 72
  found = []
  for axes in _shown(made):
    box = axes.get_position()
    place = (
      box.x0 * width,
      (1 - box.y1) * height,
      box.width * width,
      box.height * height,
    )
    limits = (*axes.get_xlim(), *axes.get_ylim())
    found.append([_short(v) for v in (*place, *limits)])
  return found


def _values(made: Any) -> dict[str, Any]:
  """The named curves of each panel, with what their axes show."""
  return {
    "panels": [
      {
        "title": axes.get_title(),
        "x": axes.get_xlabel() or made.get_supxlabel(),
        "y": axes.get_ylabel() or made.get_supylabel(),
        "log": [axes.get_xscale() == "log", axes.get_yscale() == "log"],
        "curves": _curves(axes),
      }
      for axes in _shown(made)
    ]
  }


def _curves(axes: Any) -> list[dict[str, Any]]:
  found = []
  for artist in [*axes.lines, *axes.patches]:
    if not artist.get_gid():
      continue
    x, y = _points(artist, axes.get_xscale() == "log")
    ok = np.isfinite(x) & np.isfinite(y)
    x, y = x[ok], y[ok]
    step = -(-max(len(x), 1) // MOST_POINTS)
    # The last point is among those that are left.
    x, y = x[::-1][::step][::-1], y[::-1][::step][::-1]
    if len(x):
      found.append(
        {
          "name": artist.get_gid(),
          "x": [_short(v) for v in x],
          "y": [_short(v) for v in y],
        }
      )
  return found


def _points(artist: Any, log: bool) -> tuple[np.ndarray, np.ndarray]:
  """The points of a line, the middles of steps, or the top of a rectangle."""
  middle = lambda a, b: np.sqrt(a * b) if log else (a + b) / 2
  if hasattr(artist, "get_xydata"):
    return tuple(np.asarray(artist.get_xydata(), float).T)
  if hasattr(artist, "get_data"):
    steps = artist.get_data()
    edges = np.asarray(steps.edges, float)
    return middle(edges[1:], edges[:-1]), np.asarray(steps.values, float)
  left = np.array([artist.get_x()], float)
  height = np.array([artist.get_height()], float)
  return middle(left, left + artist.get_width()), height


def _short(value: float) -> float:
  short = float(f"{value:.5g}")
  return int(short) if short == int(short) else short
