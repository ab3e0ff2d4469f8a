"""Pages of the site that are made from the modules and from texts at the root.

Only the standard library is needed: the code is parsed, not imported.
"""

import ast
import configparser
import pathlib
import re

# Subpackages in the order of the road.
PACKAGES = (
  "models",
  "data",
  "data.store",
  "data.text",
  "sae",
  "interop",
  "training",
  "training.parts",
  "recipes",
  "features",
  "interventions",
  "evals",
  "evals.probing",
  "evals.spelling",
  "evals.words",
  "evals.error",
  "evals.spaces",
  "evals.dictionary",
  "evals.heads",
  "evals.control",
  "evals.autointerp",
  "evals.hypotheses",
  "evals.items",
  "evals.biology",
  "report",
  "runs",
  "plans",
  "studies",
)


def made(root: pathlib.Path) -> dict[str, str]:
  """Returns the text of each page by its path in the site.

  Args:
    root: the checkout.
  """
  return {
    **reference_pages(root),
    "performance.md": (root / "benchmarks" / "README.md").read_text(),
    "changelog.md": linked((root / "CHANGELOG.md").read_text()),
    "contributing.md": linked((root / "CONTRIBUTING.md").read_text()),
  }


def copied(root: pathlib.Path) -> dict[str, pathlib.Path]:
  """Returns files that pages link to, by their path in the site.

  Args:
    root: the checkout.
  """
  folder = root / "benchmarks" / "results"
  text = (root / "benchmarks" / "README.md").read_text()
  names = sorted(set(re.findall(r"\]\(results/([^)#]+)\)", text)))
  return {f"results/{name}": folder / name for name in names}


def linked(text: str) -> str:
  """Returns the text of a file at the root with links that fit the site.

  Args:
    text: its Markdown.
  """
  for old, new in (
    ("](docs/", "]("),
    ("](CHANGELOG.md", "](changelog.md"),
    ("](CONTRIBUTING.md", "](contributing.md"),
    ("](benchmarks/README.md", "](performance.md"),
  ):
    text = text.replace(old, new)
  return text


def repository(root: pathlib.Path) -> str:
  """Returns the address of the repository, or "" where none is set.

  Args:
    root: the checkout, whose setup.cfg has it in [saejax].
  """
  config = configparser.ConfigParser()
  config.read(root / "setup.cfg")
  return config.get("saejax", "repository", fallback="").strip().rstrip("/")


# --- reference ---------------------------------------------------------------


def names(root: pathlib.Path) -> dict[str, str]:
  """Returns the names that saejax offers, with the path of each.

  Args:
    root: the checkout.
  """
  code = ast.parse((root / "saejax" / "__init__.py").read_text())
  (table,) = (
    node.value
    for node in code.body
    if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_NAMES"
  )
  return {
    name: where.replace(":", ".") if ":" in where else f"{where}.{name}"
    for name, where in ast.literal_eval(table).items()
  }


def modules(root: pathlib.Path, package: str) -> dict[str, str]:
  """Returns the modules of a package with the first line of each.

  Args:
    root: the checkout.
    package: such as "data.text".
  """
  folder = root / "saejax" / package.replace(".", "/")
  return {
    path.stem: _first_line(path)
    for path in sorted(folder.glob("*.py"))
    if not path.stem.startswith("_")
  }


def _first_line(path: pathlib.Path) -> str:
  said = ast.get_docstring(ast.parse(path.read_text())) or ""
  return said.partition("\n\n")[0].replace("\n", " ")


def reference_pages(root: pathlib.Path) -> dict[str, str]:
  """Makes the page of saejax's own names and one for each subpackage.

  Args:
    root: the checkout.
  """
  found = {"reference/index.md": _names_page(root)}
  for package in PACKAGES:
    said = _first_line(
      root / "saejax" / package.replace(".", "/") / "__init__.py"
    )
    lines = [f"# saejax.{package}", "", said, ""]
    listed = modules(root, package)
    lines += ["| module | |", "|---|---|"]
    for name, first in listed.items():
      lines.append(f"| [{name}](#saejax.{package}.{name}) | {_cell(first)} |")
    for name in listed:
      lines += ["", f"::: saejax.{package}.{name}"]
      lines += ["    options:", "      heading_level: 2"]
    found[f"reference/{package}.md"] = "\n".join([*lines, ""])
  return found


def _names_page(root: pathlib.Path) -> str:
  offered = names(root)
  lines = [
    "# saejax",
    "",
    "What `import saejax` offers. Everything is imported when it is first used, and "
    "subpackages are reached as `saejax.NAME`. Before version 1 names in subpackages "
    "may change from one minor version to the next.",
    "",
    "| subpackage | |",
    "|---|---|",
  ]
  for package in PACKAGES:
    init = root / "saejax" / package.replace(".", "/") / "__init__.py"
    lines.append(
      f"| [saejax.{package}]({package}.md) | {_cell(_first_line(init))} |"
    )
  for name in sorted(offered, key=str.lower):
    lines += [
      "",
      f"::: saejax.{name}",
      "    options:",
      "      heading_level: 2",
    ]
  return "\n".join([*lines, ""])


def _cell(text: str) -> str:
  return text.replace("|", "\\|").removesuffix(".")
