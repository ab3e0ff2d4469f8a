"""Saves and loads a trained SAE: a folder of `sae.safetensors` and `sae.json`.

The JSON names each part and its static choices; the arrays are named by their
path in the pytree. Writing is atomic and durable: the folder appears whole or
not at all. The JSON carries checksums of the arrays and of itself, and reading
checks them: a changed byte that matters is an error that names its file.
"""

import contextlib
import dataclasses
import hashlib
import importlib
import os
import pathlib
import re
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors import numpy as safetensors

from saejax import durable
from saejax.errors import InputError
from saejax.sae import part, view
from saejax.sae.sae import SAE

ARRAYS = "sae.safetensors"
STRUCTURE = "sae.json"
VERSION = 2
# Status of an SAE whose loss was not finite in training, with the step after it.
DIVERGED = "diverged at step"

_REMEDY = "restore it from a copy, or save the SAE again"


def save(
  sae: SAE,
  folder: str | os.PathLike[str],
  *,
  about: Mapping[str, Any] | None = None,
) -> None:
  """Writes an SAE to `folder`, replacing an existing one.

  Args:
    sae: an SAE of concrete arrays.
    folder: created with its parents.
    about: JSON-serialisable metadata: model, site, metrics.

  Raises:
    InputError: the disk is full or the folder not writable; an existing SAE is
      unchanged.
  """
  folder = pathlib.Path(folder)
  arrays = {
    jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(sae)
  }
  draft = folder.with_name(f".{folder.name}.draft")
  with _writable(folder):
    folder.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(draft, ignore_errors=True)
    try:
      draft.mkdir()
      safetensors.save_file(arrays, draft / ARRAYS)
      durable.sync_file(draft / ARRAYS)
      structure = {
        "version": VERSION,
        "sae": describe(sae),
        "about": dict(about or {}),
        "files": {ARRAYS: list(durable.checksum(draft / ARRAYS))},
      }
      durable.write_sealed(draft / STRUCTURE, structure, field="sae")
    except BaseException:
      shutil.rmtree(draft, ignore_errors=True)
      raise
    before = folder.with_name(f".{folder.name}.before")
    shutil.rmtree(before, ignore_errors=True)
    if folder.exists():
      folder.rename(before)
    draft.rename(folder)
    durable.sync_folder(folder.parent)
    shutil.rmtree(before, ignore_errors=True)


@contextlib.contextmanager
def _writable(folder: pathlib.Path) -> Iterator[None]:
  """Turns disk errors into an InputError."""
  with durable.disk_errors(folder.parent, field="sae", what=folder.name):
    try:
      yield
    except SafetensorError as error:  # carries the OS error only as text
      code = re.search(r"os error (\d+)", str(error))
      if code is None:
        raise
      number = int(code[1])
      raise OSError(number, os.strerror(number)) from error


def load(
  folder: str | os.PathLike[str],
  *,
  parts: Mapping[str, type] | None = None,
) -> SAE:
  """Reads an SAE that `save` wrote.

  Args:
    folder: as given to `save`.
    parts: classes of parts defined outside saejax, by their name in the file.

  Raises:
    InputError: the folder holds no SAE, a damaged file, a file of a later
      version, or an unknown part.
  """
  with _readable(folder) as folder:
    structure = _structure(folder)
    path = folder / ARRAYS
    if list(durable.checksum(path)) != structure["files"][ARRAYS]:
      rule = f"must have the size and checksum that {STRUCTURE} gives"
      raise InputError("sae", path, rule, _REMEDY)
    arrays = safetensors.load_file(path)
    found = build(structure["sae"], arrays, "", parts or {})
    return view.with_about(found, structure["about"])


def loaded(sae: str | os.PathLike[str] | SAE, field: str) -> SAE:
  """Returns an SAE that was given as itself or as the folder it is saved in.

  Args:
    sae: the SAE or its folder.
    field: the setting that gave it, for errors.

  Raises:
    InputError: as for `load`.
  """
  if isinstance(sae, SAE):
    return sae
  if not isinstance(sae, str | os.PathLike):
    raise InputError(field, sae, "must be an SAE or its folder", "pass either")
  try:
    return load(sae)
  except InputError as error:
    raise error.renamed(field) from error


def about(folder: str | os.PathLike[str]) -> dict[str, Any]:
  """Reads the metadata saved with an SAE.

  Args:
    folder: folder given to `save`.

  Raises:
    InputError: as for `load`.
  """
  with _readable(folder) as folder:
    return _structure(folder)["about"]


def is_diverged(about: Mapping[str, Any]) -> bool:
  """Whether an SAE was frozen in training because its loss was not finite.

  Args:
    about: metadata of a saved SAE, or a point of a run, with its status.
  """
  return str(about.get("status", "")).startswith(DIVERGED)


def marked(name: str, about: Mapping[str, Any]) -> str:
  """Returns the name of an SAE's folder, marked where it diverged.

  Args:
    name: the name otherwise.
    about: its metadata, with its status.
  """
  return f"{name}-diverged" if is_diverged(about) else name


def content(folder: str | os.PathLike[str]) -> str:
  """SHA-256 of the parts and arrays of a saved SAE, its metadata left out.

  Args:
    folder: folder given to `save`.

  Raises:
    InputError: as for `load`.
  """
  with _readable(folder) as folder:
    structure = _structure(folder)
    return durable.digest([structure["sae"], structure["files"]])


def checksum(sae: SAE) -> str:
  """Checksum of the parts and arrays of an SAE.

  Args:
    sae: the SAE.
  """
  found = hashlib.sha256(repr(sae).encode())
  for path, leaf in jax.tree_util.tree_leaves_with_path(sae):
    found.update(jax.tree_util.keystr(path).encode())
    found.update(np.ascontiguousarray(leaf).tobytes())
  return found.hexdigest()


def _structure(folder: pathlib.Path) -> dict[str, Any]:
  path = folder / STRUCTURE
  if not path.is_file():
    raise InputError(
      "sae",
      folder,
      f"must be the folder of a saved SAE ({STRUCTURE} is not there)",
      "name a folder that saejax wrote, such as saes/... in a run folder",
    )
  structure = durable.read_json(path, field="sae", remedy=_REMEDY)
  version = structure.get("version")
  if version != VERSION:
    raise InputError(
      "sae",
      path,
      f"has format version {version}, this saejax reads {VERSION}",
      "install the saejax that wrote it, or save the SAE again",
    )
  return durable.read_sealed(path, field="sae", remedy=_REMEDY)


@contextlib.contextmanager
def _readable(folder: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
  """Turns the errors of a missing or damaged file into an InputError."""
  try:
    yield pathlib.Path(folder)
  except InputError:
    raise
  except (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    SafetensorError,
  ) as error:
    raise InputError(
      "sae",
      folder,
      f"must hold a complete {STRUCTURE} and {ARRAYS} ({error})",
      f"pass the folder of a saved SAE, or {_REMEDY}",
    ) from error


def describe(node: Any) -> dict[str, Any]:
  """Returns a part's class, static fields and sub-parts, without its arrays.

  Args:
    node: an SAE or a part of one, of arrays or shapes.
  """
  cls = type(node)
  static, children = {}, {}
  for field in dataclasses.fields(node):
    value = getattr(node, field.name)
    if field.name == part.CLASS:
      continue
    if value is None or not field.metadata.get("pytree_node", True):
      static[field.name] = value
    elif isinstance(value, tuple):
      children[field.name] = [describe(child) for child in value]
    elif dataclasses.is_dataclass(value):
      children[field.name] = describe(value)
  name = f"{cls.__module__}.{cls.__qualname__}"
  return {"part": name, "static": static, "parts": children}


def build(
  node: Mapping[str, Any],
  arrays: Mapping[str, Any],
  prefix: str,
  parts: Mapping[str, type],
) -> Any:
  """Builds what `describe` described.

  Args:
    node: the description.
    arrays: arrays by path.
    prefix: beginning of the paths of its arrays.
    parts: classes of parts defined outside saejax, by their name.

  Raises:
    InputError: a part is unknown.
    KeyError: an array is missing.
  """
  cls = _find(node["part"], parts)
  # JSON has no tuples, and static fields must be hashable.
  fields = {
    name: tuple(value) if isinstance(value, list) else value
    for name, value in node["static"].items()
  }
  for field in dataclasses.fields(cls):
    path = prefix + field.name
    if field.name in node["parts"]:
      child = node["parts"][field.name]
      if isinstance(child, list):
        fields[field.name] = tuple(
          build(one, arrays, f"{path}.{i}.", parts)
          for i, one in enumerate(child)
        )
      else:
        fields[field.name] = build(child, arrays, f"{path}.", parts)
    elif field.name not in fields and field.metadata.get("pytree_node", True):
      fields[field.name] = jnp.asarray(arrays[path])
  return cls(**fields)


def _find(name: str, parts: Mapping[str, type]) -> type:
  """The class of a part: one of saejax, or one passed by the caller.

  Other names are never imported: a file must not be able to run code.
  """
  if name in parts:
    return parts[name]
  module, _, cls = name.rpartition(".")
  if module.startswith("saejax.sae."):
    try:
      return getattr(importlib.import_module(module), cls)
    except (ImportError, AttributeError):
      pass
  raise InputError(
    "parts",
    name,
    "must be a part of this version of saejax or be passed by the caller",
    f"pass load(..., parts={{{name!r}: YourClass}})",
  )
