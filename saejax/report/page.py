"""Renders a self-contained HTML page of prose, numbers, tables and figures.

The content is given as blocks; the layout is in page.html and page.css. All text
is escaped. In prose, captions and cells, text between backticks is code, and
Greek letters may have subscripts (β_k). The page is read without its script,
page.js, which sorts tables and shows the values of curves.
"""

import base64
import dataclasses
import importlib.resources
import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar

from saejax import durable, machine
from saejax.report import drawing as drawings
from saejax.report import extras


@dataclasses.dataclass(frozen=True)
class Prose:
  """Paragraphs, separated by blank lines."""

  text: str
  kind: ClassVar[str] = "prose"

  @property
  def paragraphs(self) -> list[str]:
    """The paragraphs, on one line each."""
    return [" ".join(p.split()) for p in self.text.split("\n\n") if p.strip()]


@dataclasses.dataclass(frozen=True)
class Heading:
  """A heading within a section."""

  text: str
  kind: ClassVar[str] = "heading"


@dataclasses.dataclass(frozen=True)
class Note:
  """A highlighted paragraph."""

  text: str
  kind: ClassVar[str] = "note"


@dataclasses.dataclass(frozen=True)
class Equation:
  """A formula in plain text."""

  text: str
  kind: ClassVar[str] = "equation"


@dataclasses.dataclass(frozen=True)
class Code:
  """Commands or program text, verbatim."""

  text: str
  kind: ClassVar[str] = "code"


@dataclasses.dataclass(frozen=True)
class Numbers:
  """The main numbers, as (value, label)."""

  items: Sequence[tuple[str, str]]
  kind: ClassVar[str] = "numbers"


@dataclasses.dataclass(frozen=True)
class Figure:
  """A figure.

  Attributes:
    png: the figure as PNG; shown where there is no drawing.
    alt: text alternative for screen readers.
    caption: text below the figure.
    drawing: the figure as SVG, with its title.
  """

  png: bytes
  alt: str
  caption: str
  drawing: drawings.Drawing | None = None
  kind: ClassVar[str] = "figure"

  @property
  def base64(self) -> str:
    """The PNG in base64."""
    return base64.b64encode(self.png).decode()


@dataclasses.dataclass(frozen=True)
class Column:
  """A column of a table.

  Attributes:
    name: heading.
    unit: unit of the values.
    right: whether to align right, as numbers are.
  """

  name: str
  unit: str = ""
  right: bool = True


@dataclasses.dataclass(frozen=True)
class Table:
  """A table of formatted cells.

  Attributes:
    columns: the columns.
    rows: cells per row, as text.
    caption: text above the table.
  """

  columns: Sequence[Column]
  rows: Sequence[Sequence[str]]
  caption: str
  kind: ClassVar[str] = "table"


@dataclasses.dataclass(frozen=True)
class Details:
  """Blocks that are folded until they are asked for.

  Attributes:
    title: what is inside.
    blocks: the blocks.
  """

  title: str
  blocks: "Sequence[Block]"
  kind: ClassVar[str] = "details"


@dataclasses.dataclass(frozen=True)
class Cards:
  """Cards of latents with examples; see `cards_page`.

  Attributes:
    items: the cards, as `cards_page.Card`.
  """

  items: Sequence[Any]
  kind: ClassVar[str] = "cards"


Block = (
  Prose
  | Heading
  | Note
  | Equation
  | Code
  | Numbers
  | Figure
  | Table
  | Details
  | Cards
)


@dataclasses.dataclass(frozen=True)
class Section:
  """A titled part of the page."""

  title: str
  blocks: Sequence[Block]


def figure(plot: drawings.Plot, alt: str, caption: str) -> Figure:
  """Returns a plot as a block of the page.

  Args:
    plot: the plot.
    alt: text alternative for screen readers.
    caption: text below the figure.
  """
  return Figure(plot.png, alt, caption, plot.drawing)


def facts(caption: str, values: dict[str, Any]) -> Table:
  """Returns a table of names and values; nested names are joined by dots.

  Args:
    caption: caption of the table.
    values: the values, possibly nested.
  """
  columns = [Column("Name", right=False), Column("Value", right=False)]
  rows = [(f"`{name}`", value) for name, value in flat(values)]
  return Table(columns, rows, caption)


def flat(values: dict[str, Any], prefix: str = ""):
  """Yields (dotted name, text) of every value in nested mappings.

  Args:
    values: the mapping.
    prefix: prefix of the names.

  >>> list(flat({"a": {"b": 1}}))
  [('a.b', '1')]
  """
  for name, value in values.items():
    if isinstance(value, dict):
      yield from flat(value, f"{prefix}{name}.")
    else:
      yield f"{prefix}{name}", text(value)


def text(value: Any) -> str:
  """Formats a value for reading.

  Args:
    value: the value.

  >>> [text(v) for v in (None, True, 4096, 0.25, [4, 8], "a")]
  ['not set', 'yes', '4,096', '0.25', '4, 8', 'a']
  """
  if value is None or value == "":
    return "not set"
  if isinstance(value, bool):
    return "yes" if value else "no"
  if isinstance(value, int):
    return f"{value:,}"
  if isinstance(value, float):
    return f"{value:.6g}"
  if isinstance(value, (list, tuple)):
    return ", ".join(map(text, value)) or "none"
  return str(value)


def signed(value: str) -> str:
  """Replaces the hyphen of a formatted number by a minus sign.

  Args:
    value: the formatted number.

  >>> signed("-0.5"), signed("1e-05")
  ('−0.5', '1e-05')
  """
  return "−" + value[1:] if value.startswith("-") else value


def render(
  title: str,
  sections: Sequence[Section],
  *,
  subtitle: str = "",
  footer: str = "",
) -> str:
  """Renders the page as HTML that needs no other file.

  Args:
    title: title of the page.
    sections: the sections.
    subtitle: line below the title.
    footer: line at the end; the version of saejax by default.

  Raises:
    InputError: jinja2 is not installed.
  """
  jinja2 = extras.require("jinja2")
  here = importlib.resources.files("saejax.report")
  environment = jinja2.Environment(
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  environment.filters["inline"] = inline
  environment.globals["zip"] = lambda a, b: zip(a, b, strict=True)
  markup = extras.require("markupsafe").Markup
  environment.filters["markup"] = markup
  file = lambda name: (here / name).read_text("utf-8")
  template = environment.from_string(file("page.html"))
  figures = "".join(_svgs(b for section in sections for b in section.blocks))
  light, dark = drawings.palette(figures)
  css = file("page.css").replace("/* light */", light)
  return template.render(
    title=title,
    subtitle=subtitle,
    sections=sections,
    css=markup(css.replace("/* dark */", dark)),
    script=markup(file("page.js")),
    footer=footer or f"Written by saejax {machine.version()}.",
  )


def _svgs(blocks: Iterable[Block]) -> Iterator[str]:
  """Yields the drawings among blocks."""
  for block in blocks:
    if isinstance(block, Details):
      yield from _svgs(block.blocks)
    elif isinstance(block, Figure) and block.drawing:
      yield block.drawing.wide + block.drawing.narrow


def write(path: pathlib.Path, *arguments: Any, **keywords: Any) -> None:
  """Renders a page into a file, atomically.

  Args:
    path: the file.
    *arguments, **keywords: arguments of `render`.

  Raises:
    InputError: jinja2 is not installed, or the file cannot be written.
  """
  page = render(*arguments, **keywords).encode("utf-8")
  durable.write_file(path, page, field="run_dir")


def inline(value: str) -> Any:
  """Escapes text, and marks up code between backticks and subscripts.

  Args:
    value: the text.
  """
  markupsafe = extras.require("markupsafe")
  parts = str(value).split("`")
  if len(parts) % 2 == 0:  # an unpaired backtick
    return markupsafe.escape(value)
  markup = []
  for i, part in enumerate(parts):
    safe = str(markupsafe.escape(part))
    if i % 2:
      markup.append(f"<code>{safe}</code>")
    else:
      safe = re.sub(r"([α-ω])_(\w+)", r"\1<sub>\2</sub>", safe)
      markup.append(re.sub(r"\b(\w) = (?=\d)", "\\1\u00a0=\u00a0", safe))
  return markupsafe.Markup("".join(markup))
