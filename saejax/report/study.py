"""The report of a study: results, plots and one page, in one folder."""

import os
import pathlib
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from saejax import durable, terminal
from saejax.report import axes as look
from saejax.report import page, results
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
    folder: of the run.
    parts: sections of the page, and the plots by file name without ending.
    config: a config dataclass.
    points: one record per SAE.
    data: facts about the rows.
    title: of the page.
    script: the script, for the command that repeats the run.
    **more: further fields of results.json.

  Raises:
    InputError: matplotlib or jinja2 is missing, or the disk is full.
  """
  folder = pathlib.Path(folder)
  sections, figures = parts
  found = results.collect(config=config, points=points, data=data)
  found.update(results.plain(more))
  results.write(found, folder)
  for name, made in figures.items():
    durable.write_file(folder / f"{name}.png", look.png(made), field="run_dir")
  command = f"python {script} --flagfile={shlex.quote(f'{folder}/run.flags')}"
  run = page.Section(
    "What was run",
    [
      page.Code(command),
      page.facts("Data", found["data"]),
      page.facts("Settings", found["config"]),
      page.facts("Environment", found["environment"]),
    ],
  )
  page.write(folder / PAGE, title, [*sections, run])
  terminal.say(f"report: {folder / PAGE}")


def figure(made: Any, alt: str, caption: str) -> page.Figure:
  """A plot as a block of the page."""
  return page.Figure(look.png(made), alt, caption)


def table(
  points: Sequence[Mapping[str, Any]],
  columns: Mapping[str, tuple[str, str]],
  caption: str,
) -> page.Table:
  """A table of points.

  Args:
    points: one row each.
    columns: key -> (heading, format), such as {"fvu": ("FVU", ".3f")}; an
      empty format leaves the value as it is.
    caption: printed above.
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
