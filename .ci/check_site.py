"""Checks the built site, and how README.md renders on PyPI.

No page, style sheet or script of the site makes a request to another host when it is
opened, and every page is there that nav has.
"""

import importlib.util
import pathlib
import re
import sys
from html.parser import HTMLParser
from typing import Any

import readme_renderer.markdown

REMOTE = re.compile(r"^(?:https?:)?//")
# What a browser follows by itself; others are links to be clicked.
LOADED = {
  "audio": ("src",),
  "iframe": ("src",),
  "img": ("src", "srcset"),
  "link": ("href",),
  "script": ("src",),
  "source": ("src", "srcset"),
  "video": ("src", "poster"),
}


class Page(HTMLParser):
  """What a page loads, and the pages that it links to."""

  def __init__(self, path: pathlib.Path):
    super().__init__()
    self.loads: list[str] = []
    self.feed(path.read_text(encoding="utf-8"))

  def handle_starttag(self, tag: str, attrs: Any) -> None:
    given = dict(attrs)
    self.loads += [given[a] for a in LOADED.get(tag, ()) if given.get(a)]


def remote(site: pathlib.Path) -> list[str]:
  """Lists what the files of a site load from other hosts.

  Args:
    site: its folder.
  """
  found = []
  for path in sorted(site.rglob("*")):
    loads: list[str] = []
    if path.suffix == ".html":
      loads = Page(path).loads
    elif path.suffix == ".css":
      text = path.read_text(encoding="utf-8")
      loads = re.findall(r"""(?:url\(|@import)\s*["']?([^"')\s]+)""", text)
    found += [f"{path}: {load}" for load in loads if REMOTE.match(load)]
  return found


def rendered(root: pathlib.Path) -> str:
  """Renders the package's description as PyPI does.

  Args:
    root: the checkout.
  """
  spec = importlib.util.spec_from_file_location("setup", root / "setup.py")
  assert spec and spec.loader
  setup = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(setup)
  readme = (root / "README.md").read_text(encoding="utf-8")
  text = setup.description(readme, setup.repository())
  html = readme_renderer.markdown.render(text)
  assert html, "README.md does not render"
  return html


def main(root: pathlib.Path) -> None:
  """Checks the site of a checkout.

  Args:
    root: the checkout.
  """
  site = root / ".build" / "site"
  pages = list(site.rglob("*.html"))
  assert len(pages) > 50, f"only {len(pages)} pages in {site}"
  found = remote(site)
  assert not found, "loaded from other hosts:\n" + "\n".join(found)
  html = rendered(root)
  broken = [
    target
    for target in re.findall(r'(?:src|href)="([^"]*)"', html)
    if not re.match(r"https?:|mailto:|#", target)
  ]
  assert not broken, f"relative in the description on PyPI: {broken}"
  size = sum(f.stat().st_size for f in site.rglob("*") if f.is_file())
  print(
    f"{len(pages)} pages, {size / 2**20:.1f} MiB, no request to other hosts"
  )


if __name__ == "__main__":
  main(pathlib.Path(sys.argv[1]).resolve())
