"""Pages of the recipes, made from the catalogue, docstrings and docs/methods.md.

Only the standard library is needed: the code is parsed, not imported.
"""

import ast
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


def every(root: pathlib.Path) -> list[Recipe]:
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


def made(root: pathlib.Path) -> dict[str, str]:
  """Makes a page for each recipe, and a table of all.

  Args:
    root: the checkout.
  """
  against, tested = tables((root / "docs" / "methods.md").read_text())
  known = every(root)
  found = {"recipes/index.md": _recipe_table(known)}
  for recipe in known:
    found[f"recipes/{recipe.name}.md"] = "\n".join(
      [
        *_use(recipe),
        *_measured(recipe, against),
        *_claims(recipe, tested),
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
    lines += ["", f"## {title[0].upper()}{title[1:]}", ""]
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


def _cells(row: str) -> list[str]:
  return [cell.strip() for cell in row.strip().strip("|").split("|")]


def measured(recipe: Recipe, table: Sequence[str]) -> list[list[str]]:
  """Returns the results of a recipe: variant, data, relative FVU, dead latents.

  Args:
    recipe: the recipe.
    table: the first table of docs/methods.md.
  """
  names = {recipe.name: recipe.name, **VARIANTS}
  head, found = _cells(table[0]), []
  for row in map(_cells, table[2:]):
    if names.get(row[0].strip(" ²")) == recipe.name:
      last = head.index("parameters")
      for i in range(2, last, 2):
        found.append([row[0], head[i], row[i], row[i + 1]])
  return found


def _measured(recipe: Recipe, table: Sequence[str]) -> list[str]:
  rows = measured(recipe, table)
  if not rows:
    return []
  return [
    "## Measured",
    "",
    "Held-out FVU divided by TopK's at equal held-out L0, ± the standard deviation "
    "of its logarithm over seeds, and the share of dead latents, in short runs of "
    "small SAEs: [conditions, notes and what they do not show](../methods.md).",
    "",
    "| | data | FVU / TopK's | dead |",
    "|---|---|---|---|",
    *("| " + " | ".join(row) + " |" for row in rows),
    "",
  ]


def claims(recipe: Recipe, table: Sequence[str]) -> list[list[str]]:
  """Returns the claims of a recipe: claim, data, effect, margin, verdict.

  Args:
    recipe: the recipe.
    table: the second table of docs/methods.md.
  """
  found = []
  for claim, _, data, effect, interval, margin, verdict in map(
    _cells, table[2:]
  ):
    name, _, text = claim.partition(": ")
    if name == recipe.name:
      found.append([text, data, f"{effect} {interval}", margin, verdict])
  return found


def _claims(recipe: Recipe, table: Sequence[str]) -> list[str]:
  rows = claims(recipe, table)
  if not rows:
    return [
      "No [claim of its paper](../methods.md#claims-of-the-papers) has been measured "
      "here.",
      "",
    ]
  return [
    "## Claims of the paper",
    "",
    "Effects are paired over seeds; unless the claim is about another quantity they "
    "are differences of log FVU at equal held-out L0: "
    "[conditions](../methods.md#claims-of-the-papers).",
    "",
    "| claim | data | effect, 95 % interval | margin | verdict |",
    "|---|---|---|---|---|",
    *("| " + " | ".join(row) + " |" for row in rows),
    "",
  ]
