"""The metadata that depend on the address of the repository; see setup.cfg.

On PyPI links and pictures have to be absolute. With an address, those of README.md
point into the repository; without one, links are plain text and pictures are left
out.
"""

import configparser
import pathlib
import re

import setuptools

ROOT = pathlib.Path(__file__).resolve().parent
RELATIVE = re.compile(r"(!?)\[([^\]]*)\]\((?![a-z]+:|#)([^)]+)\)")


def repository() -> str:
  """Returns the address in setup.cfg, "" where none is set."""
  config = configparser.ConfigParser()
  config.read(ROOT / "setup.cfg")
  return config["saejax"]["repository"].strip().rstrip("/")


def description(readme: str, address: str) -> str:
  """Returns a README without relative links.

  Args:
    readme: its Markdown.
    address: of the repository; "" for none.
  """

  def absolute(match: re.Match[str]) -> str:
    picture, label, path = match.groups()
    if not address:
      return "" if picture else label
    kind = "raw" if picture else "blob"
    return f"{picture}[{label}]({address}/{kind}/main/{path})"

  return re.sub(r"\n{3,}", "\n\n", RELATIVE.sub(absolute, readme))


def urls(address: str) -> dict[str, str]:
  """Returns the project's URLs; none without an address.

  Args:
    address: of the repository; "" for none.
  """
  if not address:
    return {}
  return {
    "Source": address,
    "Documentation": f"{address}/blob/main/docs/index.md",
    "Changelog": f"{address}/blob/main/CHANGELOG.md",
    "Issues": f"{address}/issues",
  }


if __name__ == "__main__":
  setuptools.setup(
    long_description=description(
      (ROOT / "README.md").read_text(encoding="utf-8"), repository()
    ),
    project_urls=urls(repository()),
  )
