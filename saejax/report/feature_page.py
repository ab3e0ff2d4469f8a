"""A self-contained HTML page to look at latents: text, histograms, neighbours.

The data are those of `features.cards`, embedded as JSON and drawn by a script in
the page. The page asks nothing of the network, and forbids itself to. Notes stay
in the browser.
"""

import importlib.resources
import itertools
import json
import os
from collections.abc import Mapping
from typing import Any

from saejax import durable, machine
from saejax.report import extras, json_schema

_HERE = importlib.resources.files("saejax.report")
# Fields of data, and of cards, that are there with a store.
_OF_STORE = ("rows", "per_octave", "lowest")
_OF_ROWS = ("count", "density", "mean", "max", "histogram", "together")
# Text of tokens must not end the script element, or open a comment in it.
_ESCAPED = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"})


def schema() -> dict[str, Any]:
  """The JSON schema of the data."""
  return json.loads(_text("feature_page.schema.json"))


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
    for j, example in enumerate(card["examples"]):
      at = f"$.latents[{i}].examples[{j}]"
      length = len(example["tokens"])
      for name in ("values", "attribution"):
        if len(example.get(name, example["tokens"])) != length:
          raise ValueError(f"{at} must have as many {name} as tokens")
      if example["at"] >= length:
        raise ValueError(f"{at}.at must be below {length}")
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
  jinja2 = extras.require("jinja2")
  markup = extras.require("markupsafe").Markup
  content = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
  environment = jinja2.Environment(
    autoescape=True, undefined=jinja2.StrictUndefined
  )
  return environment.from_string(_text("feature_page.html")).render(
    title=title,
    css=markup(_text("feature_page.css") + _text("prompt_view.css")),
    script=markup(_text("prompt_view.js") + _text("feature_page.js")),
    data=markup(content.translate(_ESCAPED)),
    footer=f"Written by saejax {machine.version()}.",
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
  page = render(data, title).encode("utf-8", "replace")
  durable.write_file(path, page, field="write")


def _text(name: str) -> str:
  return (_HERE / name).read_text("utf-8")
