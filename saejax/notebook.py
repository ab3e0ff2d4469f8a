"""Small HTML tables for notebooks, as `_repr_html_` returns them.

They are self-contained, all text is escaped, and colours are the notebook's own
or translucent, so that they can be read on light and dark pages.
"""

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

_CELL = "text-align:left;vertical-align:top;padding:2px 8px"
_LINE = "border-bottom:1px solid rgba(128,128,128,.5)"
_MARK = "background:rgba(255,160,0,.4);color:inherit;font-weight:bold"
_MOST_TEXT = 300  # characters of a cell


class Marked(NamedTuple):
  """A text of which a part is marked."""

  before: str
  marked: str
  after: str


def facts(title: str, entries: Mapping[str, Any]) -> str:
  """Formats facts as lines of a name and a value; None and "" are left out.

  Args:
    title: heading.
    entries: values by name.

  >>> "<b>a &lt; b</b>" in facts("a < b", {"rows": 5})
  True
  """
  rows = [
    (name, value) for name, value in entries.items() if value not in (None, "")
  ]
  return _section(title, _table((), rows))


def table(
  title: str,
  head: Sequence[str],
  rows: Iterable[Sequence[Any]],
) -> str:
  """Formats a table.

  Args:
    title: heading.
    head: names of the columns.
    rows: cells: numbers, texts or `Marked`.
  """
  return _section(title, _table(head, rows))


def short(value: Any) -> str:
  """Metadata in a line: a mapping by its entries, without nested ones.

  Args:
    value: JSON value.

  >>> short({"layer": 3, "point": "resid_post", "sums": {"a": 1}, "d": None})
  'layer 3, point resid_post'
  """
  if not isinstance(value, Mapping):
    return str(value)
  plain = {
    name: v
    for name, v in value.items()
    if v is not None and not isinstance(v, Mapping | list | tuple)
  }
  return ", ".join(f"{name} {v}" for name, v in plain.items())


def _section(title: str, body: str) -> str:
  return f"<div><b>{html.escape(title)}</b>{body}</div>"


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
  cells = "".join(
    f'<th style="{_CELL};{_LINE}">{html.escape(name)}</th>' for name in head
  )
  lines = [f"<tr>{cells}</tr>"] if head else []
  for row in rows:
    cells = "".join(f'<td style="{_CELL}">{_cell(value)}</td>' for value in row)
    lines.append(f'<tr style="background:transparent">{cells}</tr>')
  style = "border-collapse:collapse;background:transparent;color:inherit"
  return f'<table style="{style}">{"".join(lines)}</table>'


def _cell(value: Any) -> str:
  if isinstance(value, Marked):
    before, marked, after = map(html.escape, value)
    mark = f'<mark style="{_MARK}">{marked}</mark>'
    return f'<span style="white-space:pre-wrap">{before}{mark}{after}</span>'
  if isinstance(value, bool):
    return str(value)
  if isinstance(value, int):
    return f"{value:,}"
  if isinstance(value, float):
    return f"{value:.4g}"
  text = str(value)
  cut = text if len(text) <= _MOST_TEXT else text[: _MOST_TEXT - 1] + "…"
  return html.escape(cut)
