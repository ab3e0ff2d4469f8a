"""A self-contained HTML page to compare two SAEs: summary, pairs, families.

The data are those of `evals.compared`, embedded as JSON and drawn by a script in
the page. The page asks nothing of the network, and forbids itself to.
"""

import os
from collections.abc import Mapping
from typing import Any

from saejax.report import data_page, feature_page, json_schema


def schema() -> dict[str, Any]:
  """The JSON schema of the data; its examples are those of `feature_page`."""
  found = data_page.schema("compare_page.schema.json")
  found["$defs"]["example"] = feature_page.schema()["$defs"]["example"]
  return found


def validate(data: Mapping[str, Any]) -> None:
  """Checks the data of a page.

  Args:
    data: the data.

  Raises:
    ValueError: they do not match the schema, or an entry is of a latent that is
      not there; names the place.
  """
  json_schema.check(data, schema())
  match = data["match"]
  for name in ("counts", "null"):
    if len(match[name]) != len(match["edges"]) - 1:
      raise ValueError(f"$.match.{name} must have one less items than edges")
  known = {}
  for side, cards in data["latents"].items():
    known[side] = {card["latent"] for card in cards}
    for i, card in enumerate(cards):
      at = f"$.latents.{side}[{i}].examples"
      data_page.check_examples(card["examples"], at)
  for i, item in enumerate(data["items"]):
    side, other = (item["side"], "b" if item["side"] == "a" else "a")
    named = [(side, item["latent"])]
    named += [(other, member["latent"]) for member in item["members"]]
    for where, latent in named:
      if latent not in known[where]:
        raise ValueError(f"$.items[{i}]: {where} has no latent {latent}")


def render(data: Mapping[str, Any], title: str) -> str:
  """Renders the page as HTML that needs no other file.

  Args:
    data: the data, see `schema`.
    title: title of the page.

  Raises:
    InputError: jinja2 is not installed.
    ValueError: the data do not match the schema.
  """
  validate(data)
  return data_page.render(
    "compare_page.html",
    data,
    title,
    styles=["feature_page.css", "compare_page.css"],
    scripts=["latents.js", "compare_page.js"],
  )


def write(
  path: str | os.PathLike[str], data: Mapping[str, Any], title: str
) -> None:
  """Renders the page into a file, atomically.

  Args:
    path: the file.
    data, title: as for `render`.

  Raises:
    InputError: jinja2 is not installed, or the file cannot be written.
    ValueError: the data do not match the schema.
  """
  data_page.write(path, render(data, title))
