"""A self-contained HTML page to look at latents: text, histograms, neighbours.

The data are those of `features.cards`, embedded as JSON and drawn by a script in
the page. The page asks nothing of the network, and forbids itself to. Notes stay
in the browser.
"""

import itertools
import os
from collections.abc import Mapping
from typing import Any

from saejax.report import data_page, json_schema

# Fields of data, and of cards, that are there with a store.
_OF_STORE = ("rows", "per_octave", "lowest")
_OF_ROWS = ("count", "density", "mean", "max", "histogram", "together")


def schema() -> dict[str, Any]:
  """The JSON schema of the data."""
  return data_page.schema("feature_page.schema.json")


def validate(data: Mapping[str, Any]) -> None:
  """Checks the data of a page.

  Args:
    data: the data.

  Raises:
    ValueError: they do not match the schema; names the place.
  """
  json_schema.check(data, schema())
  if "store" in data:
    for name in _OF_STORE:
      if name not in data:
        raise ValueError(f"$.{name} is missing")
  for i, card in enumerate(data["latents"]):
    for name in _OF_ROWS if "store" in data else ():
      if name not in card:
        raise ValueError(f"$.latents[{i}].{name} is missing")
    data_page.check_examples(card["examples"], f"$.latents[{i}].examples")
  known = {card["latent"] for card in data["latents"]}
  for i, prompt in enumerate(data.get("prompts", ())):
    for name in ("rows", "latents"):
      if len(prompt[name]) != len(prompt["tokens"]):
        raise ValueError(f"$.prompts[{i}] must have as many {name} as tokens")
    for one in itertools.chain(*prompt["latents"]):
      if one["latent"] not in known:
        raise ValueError(f"$.prompts[{i}] has latent {one['latent']}, no card")


def render(data: Mapping[str, Any], title: str) -> str:
  """Renders the page as HTML that needs no other file.

  Args:
    data: the data, see `schema`.
    title: title of the page; notes belong to it.

  Raises:
    InputError: jinja2 is not installed.
    ValueError: the data do not match the schema.
  """
  validate(data)
  return data_page.render(
    "feature_page.html",
    data,
    title,
    styles=["feature_page.css", "prompt_view.css"],
    scripts=["latents.js", "prompt_view.js", "feature_page.js"],
  )


def write(
  path: str | os.PathLike[str], data: Mapping[str, Any], title: str
) -> None:
  """Renders the page into a file, atomically.

  Args:
    path: the file.
    data: the data, see `schema`.
    title: title of the page; notes belong to it.

  Raises:
    InputError: jinja2 is not installed, or the file cannot be written.
    ValueError: the data do not match the schema.
  """
  data_page.write(path, render(data, title))
