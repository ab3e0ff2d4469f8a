"""Entries of nav with a *, which stand for the pages that match them."""

import fnmatch
import pathlib
from typing import Any

DOCS = pathlib.Path(__file__).resolve().parents[1]


def expanded(nav: list[Any], known: list[str]) -> list[Any]:
  """Returns nav with the pages that its entries with a * stand for.

  Args:
    nav: as in mkdocs.yml.
    known: paths of all pages.
  """
  free = set(known) - set(named(nav))

  def fill(entries: list[Any]) -> list[Any]:
    found = []
    for entry in entries:
      if isinstance(entry, dict):
        ((title, inside),) = entry.items()
        filled = inside if isinstance(inside, str) else fill(inside)
        found += [{title: filled}] if filled else []
      elif "*" in entry:
        fits = lambda p, entry=entry: (
          p.count("/") == entry.count("/") and fnmatch.fnmatch(p, entry)
        )
        taken = sorted(filter(fits, free), key=order)
        free.difference_update(taken)
        found += taken
      else:
        found.append(entry)
    return found

  return fill(nav)


def named(nav: list[Any]) -> list[str]:
  """Lists the paths in nav, without those that have a *.

  Args:
    nav: as in mkdocs.yml.
  """
  found = []
  for entry in nav:
    inside = next(iter(entry.values())) if isinstance(entry, dict) else entry
    found += [inside] if isinstance(inside, str) else named(inside)
  return [path for path in found if "*" not in path]


def order(path: str) -> tuple[Any, ...]:
  """Sorts pages of a folder: the index first, tutorials as their README has them.

  Args:
    path: path in the site.
  """
  name = pathlib.PurePosixPath(path)
  if name.stem in ("index", "README"):
    return (0,)
  readme = DOCS / name.parent / "README.md"
  text = readme.read_text() if name.parent.name and readme.exists() else ""
  where = text.find(name.stem)
  return (1, where if where >= 0 else len(text), path)
