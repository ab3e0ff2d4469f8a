"""The report of a study: results, plots and one page, in one folder."""

import os
import pathlib
import re
import shlex
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from saejax import durable, terminal
from saejax.report import axes as look
from saejax.report import drawing, page, results
from saejax.report.scaling import PAGE


def write(
  folder: str | os.PathLike[str],
  parts: tuple[Sequence[page.Section], Mapping[str, Any]],
  *,
  config: Any,
  points: Sequence[Mapping[str, Any]],
  data: Mapping[str, Any],
  title: str,
  script: str,
  **more: Any,
) -> None:
  """Writes results.json, results.csv, the plots and report.html.

  Args:
    folder: folder of the run.
    parts: sections of the page, and plots by file name without suffix.
    config: a config dataclass.
    points: one record per SAE.
    data: facts about the rows.
    title: title of the page.
    script: path of the script, for the command that repeats the run.
    **more: further fields of results.json.

  Raises:
    InputError: matplotlib or jinja2 is not installed, or the disk is full.
  """
  folder = pathlib.Path(folder)
  sections, figures = parts
  content = results.collect(config=config, points=points, data=data)
  content.update(results.plain(more))
  results.write(content, folder)
  for name, drawn in figures.items():
    durable.write_file(folder / f"{name}.png", look.png(drawn), field="run_dir")
  command = f"python {script} --flagfile={shlex.quote(f'{folder}/run.flags')}"
  run = page.Section(
    "Settings",
    [
      page.Code(command),
      page.facts("Data", content["data"]),
      page.Details("Every flag", [page.facts("Settings", content["config"])]),
      page.Details(
        "Environment", [page.facts("Environment", content["environment"])]
      ),
    ],
  )
  page.write(folder / PAGE, title, [*sections, run])
  terminal.say(f"report: {folder / PAGE}")


def figure(made: Any, alt: str, caption: str) -> page.Figure:
  """Returns a plot as a block of the page.

  A figure without a title gets the first sentence of its caption as one.

  Args:
    made: the matplotlib figure, which a `styled` function drew.
    alt: text alternative for screen readers.
    caption: text below the figure.
  """
  title = re.split(r"[.;:] ", caption, maxsplit=1)[0].rstrip(".")
  look.titled(made, title)
  name = f"f{zlib.crc32(f'{alt} {caption}'.encode()):x}"
  return page.Figure(b"", alt, caption, drawing.draw(made, name))


def table(
  points: Sequence[Mapping[str, Any]],
  columns: Mapping[str, tuple[str, str]],
  caption: str,
) -> page.Table:
  """Returns a table with one row per point.

  Args:
    points: records of SAEs.
    columns: key -> (heading, format), such as {"fvu": ("FVU", ".3f")}; with an
      empty format a value is shown by `page.text`.
    caption: text above the table.
  """

  def cell(value: Any, form: str) -> str:
    if value is None:
      return "–"
    return page.signed(format(value, form)) if form else page.text(value)

  return page.Table(
    [page.Column(head, right=bool(form)) for head, form in columns.values()],
    [
      [cell(p.get(key), form) for key, (_, form) in columns.items()]
      for p in points
    ],
    caption,
  )
