"""One self-contained HTML page of prose, numbers, tables and figures.

What the page says is given as blocks; how it looks is in page.html and
page.css. All text is escaped. In prose, captions and cells, `code` between
backticks and subscripts after Greek letters (β_k) are set as such.
"""

import base64
import dataclasses
import importlib.resources
import pathlib
import re
from collections.abc import Sequence
from typing import Any, ClassVar

from saejax import durable, machine
from saejax.report import extras


@dataclasses.dataclass(frozen=True)
class Prose:
  """Paragraphs, separated by blank lines."""

  text: str
  kind: ClassVar[str] = "prose"

  @property
  def paragraphs(self) -> list[str]:
    return [" ".join(p.split()) for p in self.text.split("\n\n") if p.strip()]


@dataclasses.dataclass(frozen=True)
class Heading:
  """A heading inside a section."""

  text: str
  kind: ClassVar[str] = "heading"


@dataclasses.dataclass(frozen=True)
class Note:
  """A paragraph that must not be overlooked."""

  text: str
  kind: ClassVar[str] = "note"


@dataclasses.dataclass(frozen=True)
class Equation:
  """A formula in plain text."""

  text: str
  kind: ClassVar[str] = "equation"


@dataclasses.dataclass(frozen=True)
class Code:
  """Commands or program text, as they are."""

  text: str
  kind: ClassVar[str] = "code"


@dataclasses.dataclass(frozen=True)
class Numbers:
  """The few numbers that matter, as (value, label)."""

  items: Sequence[tuple[str, str]]
  kind: ClassVar[str] = "numbers"


@dataclasses.dataclass(frozen=True)
class Figure:
  """A picture.

  Attributes:
    png: its bytes.
    alt: what it shows, for those who cannot see it.
    caption: printed below.
  """

  png: bytes
  alt: str
  caption: str
  kind: ClassVar[str] = "figure"

  @property
  def base64(self) -> str:
    return base64.b64encode(self.png).decode()


@dataclasses.dataclass(frozen=True)
class Column:
  """A column of a table: its name, its unit, and whether it holds numbers."""

  name: str
  unit: str = ""
  right: bool = True


@dataclasses.dataclass(frozen=True)
class Table:
  """Rows of cells that are text already."""

  columns: Sequence[Column]
  rows: Sequence[Sequence[str]]
  caption: str
  kind: ClassVar[str] = "table"


Block = Prose | Heading | Note | Equation | Code | Numbers | Figure | Table


@dataclasses.dataclass(frozen=True)
class Section:
  """A titled part of the page."""

  title: str
  blocks: Sequence[Block]


def facts(caption: str, values: dict[str, Any]) -> Table:
  """A table of names and values from a mapping; nested names get dots."""
  columns = [Column("Name", right=False), Column("Value", right=False)]
  rows = [(f"`{name}`", value) for name, value in flat(values)]
  return Table(columns, rows, caption)


def flat(values: dict[str, Any], prefix: str = ""):
  """(dotted name, text) of every value in nested mappings."""
  for name, value in values.items():
    if isinstance(value, dict):
      yield from flat(value, f"{prefix}{name}.")
    else:
      yield f"{prefix}{name}", text(value)


def text(value: Any) -> str:
  """A value as a reader writes it.

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
  """A formatted number with a true minus sign.

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
  """The page as one HTML text that needs no other file.

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
  template = environment.from_string((here / "page.html").read_text("utf-8"))
  return template.render(
    title=title,
    subtitle=subtitle,
    sections=sections,
    css=markup((here / "page.css").read_text("utf-8")),
    footer=footer or f"Written by saejax {machine.version()}.",
  )


def write(path: pathlib.Path, *arguments: Any, **keywords: Any) -> None:
  """Renders into a file, replaced whole or not at all; see `render`."""
  page = render(*arguments, **keywords).encode("utf-8")
  durable.write_file(path, page, field="run_dir")


def inline(value: str) -> Any:
  """Escaped text with code between backticks and subscripts set."""
  markupsafe = extras.require("markupsafe")
  parts = str(value).split("`")
  if len(parts) % 2 == 0:  # a backtick of its own
    return markupsafe.escape(value)
  done = []
  for i, part in enumerate(parts):
    safe = str(markupsafe.escape(part))
    if i % 2:
      done.append(f"<code>{safe}</code>")
    else:
      safe = re.sub(r"([α-ω])_(\w+)", r"\1<sub>\2</sub>", safe)
      done.append(re.sub(r"\b(\w) = (?=\d)", "\\1\u00a0=\u00a0", safe))
  return markupsafe.Markup("".join(done))
