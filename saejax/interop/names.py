"""Names of published SAEs: a path, `hf:ORG/REPO/PATH`, `sae-lens:RELEASE/ID`."""

import dataclasses
import functools
import importlib.util
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from saejax.errors import InputError
from saejax.interop import formats, hub, native
from saejax.interop.files import Files
from saejax.interop.formats import Forward, Hints
from saejax.interop.record import FIELD, Record
from saejax.sae import files as sae_files
from saejax.sae.sae import SAE

SAELENS = "sae-lens:"
NATIVE = "saejax"
# Loaders in SAELens' registry -> formats; None is SAELens' own files.
_LOADERS = {
  None: "saelens",
  "sae_lens": "saelens",
  "connor_rob_hook_z": "hook_z",
  "deepseek_r1": "deepseek_r1",
  "dictionary_learning_1": "dictionary_learning",
  "gemma_2": "gemma_scope",
  "gemma_2_transcoder": "gemma_scope",
  "gemma_3": "gemma_scope_2",
  "goodfire": "goodfire",
  "llama_scope": "llama_scope",
  "llama_scope_r1_distill": "llama_scope_r1",
  "mwhanna_transcoder": "circuit_tracer",
  "qwen_scope": "qwen_scope",
  "sparsify": "sparsify",
}


@dataclasses.dataclass(frozen=True)
class Found:
  """Published weights that were read.

  Attributes:
    record: the record.
    format: name of the format.
    files: the files.
    hints: what the files leave out.
  """

  record: Record
  format: str
  files: Files
  hints: Hints

  def forward(self) -> Forward:
    """Returns the forward pass of their authors."""
    return module(self.format).forward(self.files, self.hints)


def module(format: str) -> Any:
  """Returns a format, or saejax's own.

  Args:
    format: its name.

  Raises:
    InputError: there is no such format.
  """
  return native if format == NATIVE else formats.get(format)


def load(
  name: str | os.PathLike[str],
  *,
  format: str | None = None,
  k: int | None = None,
  scale: float | None = None,
  parts: Mapping[str, type] | None = None,
) -> SAE:
  """Loads an SAE: one that saejax saved, or published weights.

  Args:
    name: a folder or file; `hf:ORG/REPO[@REVISION]/PATH` on the Hugging Face
      Hub; or `sae-lens:RELEASE/ID`, looked up in an installed sae-lens.
    format: format of the files; by default the one that they match.
    k: active latents per row, where the files leave it out.
    scale: factor of x in training that is not folded, where it is in no file.
    parts: classes of parts defined outside saejax, by their name in the file.

  Raises:
    InputError: there is no such SAE, its files are damaged or contradict each
      other, or saejax has no form of it.
  """
  there = pathlib.Path(name).expanduser().exists()
  if not there and not str(name).startswith((hub.PREFIX, SAELENS)):
    return sae_files.load(name, parts=parts)  # its error
  files, format, hints, shown = _located(name, format, k, scale)
  if format == NATIVE:  # as it is, also where it has no record
    return sae_files.load(files.folder, parts=parts)
  return _record(files, format, hints, shown).to_sae()


def read(
  name: str | os.PathLike[str],
  *,
  format: str | None = None,
  k: int | None = None,
  scale: float | None = None,
) -> Found:
  """Reads published weights, or an SAE that saejax saved, as a record.

  Args:
    name, format, k, scale: as for `load`.

  Raises:
    InputError: as for `load`.
  """
  files, format, hints, shown = _located(name, format, k, scale)
  return Found(_record(files, format, hints, shown), format, files, hints)


def _located(
  name: str | os.PathLike[str],
  format: str | None,
  k: int | None,
  scale: float | None,
) -> tuple[Files, str, Hints, str]:
  """The files, their format, what they leave out, and their name to show."""
  name, hints = str(name), Hints(scale=scale, k=k)
  if name.startswith(SAELENS):
    name, found, hints = _registered(name)
    format = format or found
    scale = hints.scale if scale is None else scale
    hints = dataclasses.replace(hints, k=k, scale=scale)
  if name.startswith(hub.PREFIX):
    shown = name.removeprefix(hub.PREFIX)
    files = Files(hub.download(shown), shown)
  else:
    files = Files(name)
    shown = files.only or files.folder.absolute().name  # no path of a machine
  if format is None:
    format = NATIVE if native.matches(files) else formats.detect(files)
  return files, format, hints, shown


def _record(files: Files, format: str, hints: Hints, shown: str) -> Record:
  reader = module(format)
  try:
    record = reader.read(files, hints)
  except InputError:
    raise
  except (
    OSError,
    KeyError,
    ValueError,
    TypeError,
    AttributeError,
    ArithmeticError,
  ) as error:
    what = f"the setting {error}" if isinstance(error, KeyError) else str(error)
    rule = f"must be complete files of the format {format} ({what})"
    remedy = "name another format, or download the files again"
    raise InputError(FIELD, files.name, rule, remedy) from error
  source = dataclasses.replace(record.source, name=shown)
  return record.replace(source=source)


# --- the registry of SAELens -------------------------------------------------


def _registered(name: str) -> tuple[str, str, Hints]:
  """The hub's name, the format and the hints of RELEASE/ID."""
  release, _, sae_id = name.removeprefix(SAELENS).partition("/")
  registry = _registry()
  if release not in registry:
    close = [known for known in registry if release[:8] in known][:6]
    rule = f"must be a release in the registry of sae-lens; {release!r} is not"
    remedy = f"such as {', '.join(close)}" if close else "upgrade sae-lens"
    raise InputError(FIELD, name, rule, remedy)
  entry = registry[release]
  saes = {str(sae["id"]): sae for sae in entry["saes"]}
  if sae_id not in saes:
    some = ", ".join(list(saes)[:4])
    rule = f"must be an id of the release {release}, such as {some}"
    raise InputError(FIELD, name, rule, "correct the id")
  sae, loader = saes[sae_id], entry.get("conversion_func")
  if loader not in _LOADERS:
    rule = f"is read by SAELens' loader {loader}, of which saejax has no form"
    raise InputError(FIELD, name, rule, "choose an SAE or transcoder")
  overrides = entry.get("config_overrides") or {}
  site = {
    "model": overrides.get("model_name"),
    "hook": overrides.get("hook_name"),
  }
  site["dataset"] = overrides.get("dataset_path")
  hints = Hints(
    scale=sae.get("norm_scaling_factor"),
    site={key: value for key, value in site.items() if value is not None},
  )
  place = f"{hub.PREFIX}{entry['repo_id']}/{sae['path']}".rstrip("/.")
  return place, _LOADERS[loader], hints


@functools.cache
def _registry() -> dict[str, Any]:
  """The releases in the installed sae-lens, of which no code is run."""
  spec = importlib.util.find_spec("sae_lens")
  file = "pretrained_saes.yaml"
  where = spec.submodule_search_locations if spec else None
  if not where or not (path := pathlib.Path(where[0], file)).is_file():
    rule = "needs the registry of sae-lens, which is not installed"
    remedy = "pip install --no-deps sae-lens, or name the files by hf:"
    raise InputError(FIELD, SAELENS, rule, remedy)
  return Files(path.parent).yaml(file)
