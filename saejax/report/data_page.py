"""Self-contained HTML pages that draw data embedded as JSON.

A page asks nothing of the network, and forbids itself to. Its template, styles and
scripts are files of this folder; pages share `latents.js` and `feature_page.css`.
"""

import importlib.resources
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from saejax import durable, machine
from saejax.report import extras

_HERE = importlib.resources.files("saejax.report")
# Text of tokens must not end the script element, or open a comment in it.
_ESCAPED = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"})


def schema(name: str) -> dict[str, Any]:
  """A JSON schema of this folder.

  Args:
    name: name of the file.
  """
  return json.loads(_text(name))


def check_examples(examples: Sequence[Mapping[str, Any]], at: str) -> None:
  """Checks that examples have a value for each token, and their own token.

  Args:
    examples: examples as of `features.cards`, which match the schema.
    at: where they are in the data, for errors.

  Raises:
    ValueError: one does not; names the place.
  """
  for j, example in enumerate(examples):
    length = len(example["tokens"])
    for name in ("values", "attribution"):
      if len(example.get(name, example["tokens"])) != length:
        raise ValueError(f"{at}[{j}] must have as many {name} as tokens")
    if example["at"] >= length:
      raise ValueError(f"{at}[{j}].at must be below {length}")


def render(
  template: str,
  data: Mapping[str, Any],
  title: str,
  *,
  styles: Sequence[str],
  scripts: Sequence[str],
) -> str:
  """Renders a page as HTML that needs no other file.

  Args:
    template: name of the template.
    data: the data.
    title: title of the page.
    styles, scripts: names of the files, in order.

  Raises:
    InputError: jinja2 is not installed.
  """
  jinja2 = extras.require("jinja2")
  markup = extras.require("markupsafe").Markup
  content = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
  environment = jinja2.Environment(
    autoescape=True, undefined=jinja2.StrictUndefined
  )
  return environment.from_string(_text(template)).render(
    title=title,
    css=markup("".join(map(_text, styles))),
    script=markup("".join(map(_text, scripts))),
    data=markup(content.translate(_ESCAPED)),
    footer=f"Written by saejax {machine.version()}.",
  )


def write(path: str | os.PathLike[str], page: str) -> None:
  """Writes a page, atomically.

  Args:
    path: the file.
    page: its HTML.

  Raises:
    InputError: the file cannot be written.
  """
  durable.write_file(path, page.encode("utf-8", "replace"), field="write")


def _text(name: str) -> str:
  return (_HERE / name).read_text("utf-8")
