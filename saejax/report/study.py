"""The report of a study: results, plots and one page, in one folder."""

import os
import pathlib
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from saejax.report import axes as look
from saejax.report import page, results
from saejax.report.scaling import PAGE


def write(
  found: Mapping[str, Any],
  folder: str | os.PathLike[str],
  *,
  title: str,
  script: str,
  sections: Sequence[page.Section],
  figures: Mapping[str, Any],
) -> None:
  """Writes results.json, results.csv, the plots and report.html.

  Args:
    found: what `results.collect` returned.
    folder: of the run.
    title: of the page.
    script: that made it, for the command that repeats it.
    sections: what the page says; `figure` makes their pictures.
    figures: the plots by file name without ending, to be kept as PNG too.

  Raises:
    InputError: matplotlib or jinja2 is missing, or the disk is full.
  """
  folder = pathlib.Path(folder)
  results.write(found, folder)
  for name, made in figures.items():
    results.write_file(folder / f"{name}.png", look.png(made))
  command = f"python {script} --flagfile={shlex.quote(f'{folder}/run.flags')}"
  run = page.Section(
    "What was run",
    [
      page.Code(command),
      page.facts("Data", dict(found["data"])),
      page.facts("Settings", dict(found["config"])),
      page.facts("Environment", dict(found["environment"])),
    ],
  )
  page.write(folder / PAGE, title, [*sections, run])


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
