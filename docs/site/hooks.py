"""Pages of the site that are made from other files, and entries of nav with a *."""

import pathlib
from typing import Any

import entries  # noqa: F401  by its name for args.py, which has no path to it
import nav
import pages
import recipes
import tutorials
from mkdocs.structure.files import File, Files

ROOT = pathlib.Path(__file__).resolve().parents[2]


def on_config(config: Any) -> Any:
  """Links to the repository, if setup.cfg has its address, at the foot of pages.

  Not as `repo_url`, for which pages ask the host for numbers of stars.
  """
  if address := pages.repository(ROOT):
    link = {"icon": "material/source-repository", "link": address}
    config.extra["social"] = [link]
  return config


def on_files(files: Files, config: Any) -> Files:
  """Adds the pages, and names all of them in nav."""
  for source in (pages, recipes, tutorials):
    for path, text in source.made(ROOT).items():
      files.append(File.generated(config, path, content=text))
  for path, place in pages.copied(ROOT).items():
    files.append(File.generated(config, path, abs_src_path=str(place)))
  known = [f.src_uri for f in files.documentation_pages()]
  config.nav = nav.expanded(config.nav, known)
  return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
  """Rewrites the links of a page to files that the site has as pages."""
  return nav.linked(markdown, page.file.src_uri)
