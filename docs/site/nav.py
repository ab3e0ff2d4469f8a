"""Entries of nav with a *, which stand for the pages that match them."""

import fnmatch
import pathlib
import re
from typing import Any

DOCS = pathlib.Path(__file__).resolve().parents[1]
# Files beside docs/ -> their pages.
ROOT_PAGES = {
  "benchmarks/README.md": "performance.md",
  "benchmarks/results/": "results/",
  "README.md": "index.md",
  "CHANGELOG.md": "changelog.md",
  "CONTRIBUTING.md": "contributing.md",
}


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


def linked(text: str, path: str) -> str:
  """Returns a page with links to the pages of what it links to in the checkout.

  What has no page keeps its words, without a link.

  Args:
    text: its Markdown.
    path: its path in the site.
  """
  if path.startswith("tutorials/"):  # scripts
    text = re.sub(r"\]\(([\w-]+)\.py\)", r"](\1.md)", text)
  up = "../" * path.count("/")
  for file, page in ROOT_PAGES.items():
    text = text.replace(f"]({up}../{file}", f"]({up}{page}")
  outside = rf"\[([^\]]*)\]\({re.escape(up)}\.\./[^)]*\)"
  return re.sub(outside, r"\1", text)
