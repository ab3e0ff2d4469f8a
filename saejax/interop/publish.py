"""Uploads SAEs with a model card that is made from their files."""

import json
import pathlib
from typing import Any

from saejax.interop import hub, names
from saejax.sae import files as sae_files

CERTIFICATE = "certificate.json"


def push_to_hub(
  folder: str | pathlib.Path, name: str, *, private: bool = False
) -> str:
  """Uploads an SAE with a model card, and returns its address.

  Args:
    folder: a saved SAE, or the output of `convert`.
    name: ORG/REPO[@REVISION][/PATH].
    private: whether a new repository is private.

  Raises:
    InputError: the folder has no SAE that can be read, or the upload fails.
  """
  repo, _, path = hub.split(name.removeprefix(hub.PREFIX))
  text = card(folder, "/".join(filter(None, [repo, path])))
  return hub.upload(folder, name, text, private=private)


def card(folder: str | pathlib.Path, place: str) -> str:
  """Returns the model card of an SAE.

  Args:
    folder: a saved SAE, or the output of `convert`.
    place: ORG/REPO[/PATH] where it will be.

  Raises:
    InputError: the folder has no SAE that can be read.
  """
  found = names.read(str(folder))
  record, about = found.record, {}
  if (pathlib.Path(folder) / sae_files.STRUCTURE).is_file():
    about = sae_files.about(folder)
  shape = f"{record.d} -> {record.n} -> {record.d_out}"
  facts: dict[str, Any] = {
    "format": found.format,
    "widths": shape,
    "activation": type(record.kind).__name__,
    "normalisation of rows": record.prep.kind,
    **record.site.known(),
    **{k: v for k, v in about.items() if isinstance(v, int | float | str)},
  }
  lines = [
    "---",
    "library_name: saejax",
    "tags:",
    "- sparse-autoencoder",
    "- interpretability",
    "---",
    f"# Sparse autoencoder {place}",
    "",
    "| | |",
    "|---|---|",
    *(f"| {name} | {_text(value)} |" for name, value in facts.items()),
    "",
    "```python",
    "import saejax",
    f'sae = saejax.load("hf:{place}")',
    "z = sae.encode(x)  # rows of the site",
    "```",
  ]
  certificate = pathlib.Path(folder, CERTIFICATE)
  if certificate.is_file():
    lines += ["", "Parity with the source of the conversion:", "", "```json"]
    lines += [json.dumps(json.loads(certificate.read_text()), indent=2), "```"]
  return "\n".join(lines) + "\n"


def _text(value: Any) -> str:
  return f"{value:.6g}" if isinstance(value, float) else str(value)
