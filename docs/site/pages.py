"""Pages of the site that are made from the code, results, scripts and texts.

Only the standard library is needed: the code is parsed, not imported.
"""

import ast
import configparser
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

# Where studies measure a recipe under another name (studies.short_runs).
VARIANTS = {
  "jumprelu_l0": "jumprelu",
  "jumprelu_target": "jumprelu",
  "mutual_choice_zipf": "batchtopk",
  "feature_choice_zipf": "feature_choice",
}
FAMILIES = {
  "row": "active latents per row",
  "penalised": "thresholds and penalties",
  "batch": "selection over a batch",
  "biases": "bias adaptation",
  "nested": "several reconstructions in the loss",
  "factored": "encoder and decoder",
  "budgets": "a budget for each row",
  "stochastic": "stochastic",
  "several": "several SAEs",
  "finetuned": "finetuning",
  "paired": "pairs of rows",
  "conditioned": "rows with a condition",
}
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
  "report",
  "runs",
  "studies",
)
CITED = re.compile(r"^\d{4}\.\d{4,5}$")  # number at arXiv


class Recipe(NamedTuple):
  """A method in the catalogue.

  Attributes:
    name: in the catalogue.
    module, function: where its function is.
    paper: number at arXiv, or a name.
    family: key of `FAMILIES`.
    sweeps: argument that changes L0; empty if there is none.
    summary: first line of the docstring.
    required: arguments without a default, besides the sizes.
  """

  name: str
  module: str
  function: str
  paper: str
  family: str
  sweeps: str
  summary: str
  required: tuple[str, ...]


def made(root: pathlib.Path) -> dict[str, str]:
  """Returns the text of each page by its path in the site.

  Args:
    root: the checkout.
  """
  return {
    **recipe_pages(root),
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


# --- recipes -----------------------------------------------------------------


def recipes(root: pathlib.Path) -> list[Recipe]:
  """Reads the catalogue of recipes.

  Args:
    root: the checkout.
  """
  folder = root / "saejax" / "recipes"
  (table,) = (
    node.value
    for node in ast.parse((folder / "catalogue.py").read_text()).body
    if isinstance(node, ast.AnnAssign)
    and ast.unparse(node.target) == "METHODS"
    and isinstance(node.value, ast.Dict)
  )
  found = []
  for key, line in zip(table.keys, table.values, strict=True):
    function, *words = line.args
    module, name = ast.unparse(function).split(".")
    code = ast.parse((folder / f"{module}.py").read_text())
    (node,) = (
      node
      for node in code.body
      if isinstance(node, ast.FunctionDef) and node.name == name
    )
    said = ast.get_docstring(node) or ""
    paper, family, sweeps = map(ast.literal_eval, words[:3])
    found.append(
      Recipe(
        name=ast.literal_eval(key),
        module=module,
        function=name,
        paper=paper,
        family=family,
        sweeps=sweeps,
        summary=said.splitlines()[0],
        required=tuple(_required(node.args)),
      )
    )
  return found


def _required(arguments: ast.arguments) -> Iterator[str]:
  """Yields the arguments without a default, but for d and n."""
  given = len(arguments.args) - len(arguments.defaults)
  names = [a.arg for a in arguments.args[:given]]
  pairs = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
  names += [a.arg for a, default in pairs if default is None]
  yield from (name for name in names if name not in ("d", "n"))


def tables(text: str) -> list[list[str]]:
  """Returns the tables of a Markdown text as lists of lines.

  Args:
    text: the text.
  """
  found = re.findall(r"(?:^\|.*\n?)+", text, re.MULTILINE)
  return [table.splitlines() for table in found]


def recipe_pages(root: pathlib.Path) -> dict[str, str]:
  """Makes a page for each recipe, and a table of all.

  Args:
    root: the checkout.
  """
  measured, claims = tables((root / "docs" / "methods.md").read_text())
  known = recipes(root)
  found = {"recipes/index.md": _recipe_table(known)}
  for recipe in known:
    found[f"recipes/{recipe.name}.md"] = "\n".join(
      [
        *_use(recipe),
        *_measured(recipe, measured),
        *_claims(recipe, claims),
      ]
    )
  return found


def _recipe_table(known: Sequence[Recipe]) -> str:
  lines = [
    "# Recipes",
    "",
    f"The {len(known)} methods of the catalogue, by what they vary. Boosting is the "
    "option `residual_of` of every recipe and a transcoder the option `target`; "
    "bagging merges the members of a run. [Results](../methods.md) compares them, "
    "and [a method of your own](../own-method.md) needs no registration.",
  ]
  for family, title in FAMILIES.items():
    lines += ["", f"## {title.capitalize()}", ""]
    lines += ["| recipe | | paper |", "|---|---|---|"]
    for r in known:
      if r.family == family:
        lines.append(
          f"| [{r.name}]({r.name}.md) | {_cell(r.summary)} | {_paper(r)} |"
        )
  return "\n".join([*lines, ""])


def _cell(text: str) -> str:
  return text.replace("|", "\\|").removesuffix(".")


def _paper(recipe: Recipe) -> str:
  if CITED.match(recipe.paper):
    return f"[arXiv:{recipe.paper}](https://arxiv.org/abs/{recipe.paper})"
  return recipe.paper


def _use(recipe: Recipe) -> list[str]:
  needed = [name for name in recipe.required if name != recipe.sweeps]
  given = ([recipe.sweeps] if recipe.sweeps else []) + needed
  python = "".join(f", {name}=..." for name in given)
  flags = "".join(f" --sae.{name}=..." for name in given)
  swept = f"L0 is set by `{recipe.sweeps}`. " if recipe.sweeps else ""
  return [
    f"# {recipe.name}",
    "",
    f"{recipe.summary} {swept}Varies: {FAMILIES[recipe.family]}. "
    f"Paper: {_paper(recipe)}.",
    "",
    "```python",
    f'sae, metrics = saejax.fit(rows, "{recipe.name}", n=...{python})',
    "```",
    "",
    "```sh",
    f"saejax train --sae.recipe={recipe.name} --sae.n=...{flags} \\",
    "  --store=... --held_out=...",
    "```",
    "",
    "## Definition",
    "",
    f"::: saejax.recipes.{recipe.module}.{recipe.function}",
    "",
  ]


def _measured(recipe: Recipe, table: Sequence[str]) -> list[str]:
  names = {recipe.name: recipe.name, **VARIANTS}
  rows = [
    row
    for row in table[2:]
    if names.get(row.split("|")[1].strip(" ²")) == recipe.name
  ]
  if not rows:
    return []
  return [
    "## Measured",
    "",
    "Ratio of held-out FVU to TopK's at equal held-out L0, and the share of dead "
    "latents, in short runs of small SAEs: [conditions and notes](../methods.md).",
    "",
    *table[:2],
    *rows,
    "",
  ]


def _claims(recipe: Recipe, table: Sequence[str]) -> list[str]:
  rows = [
    row
    for row in table[2:]
    if row.split("|")[1].split(":")[0].strip() == recipe.name
  ]
  if not rows:
    return [
      "No [claim of its paper](../methods.md#claims-of-the-papers) has been measured "
      "here.",
      "",
    ]
  return [
    "## Claims of the paper",
    "",
    "Effects are paired over seeds, with 95 % intervals; unless the claim is about "
    "another quantity they are differences of log FVU at equal held-out L0: "
    "[conditions](../methods.md#claims-of-the-papers).",
    "",
    *table[:2],
    *rows,
    "",
  ]


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
    "What `import saejax` offers. Everything is imported when it is first used. "
    "Subpackages are reached as `saejax.NAME`; names below them that are not "
    "listed here may change between minor versions.",
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
