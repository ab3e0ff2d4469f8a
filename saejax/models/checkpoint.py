"""Checkpoints: the small files and the tensors of a model, in one of two forms.

A checkpoint is a folder as transformers saves it, with safetensors, or a GGUF
file, whose metadata give the same small files.
"""

import collections.abc
import contextlib
import dataclasses
import functools
import json
import pathlib
import re
import tempfile
from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
import safetensors

from saejax import durable, errors
from saejax.models import (
  config_file,
  gguf,
  gguf_llama,
  gguf_tokenizer,
  hub,
)

CONFIG = "config.json"
TOKENIZER = hub.TOKENIZER_FILES[0]
MAX_RESPELLED = (
  0.01  # share of tokens that a tokenizer.json may spell otherwise
)
# Tensors that can be read: (open file, name in it) by name in transformers.
Sources: TypeAlias = dict[str, tuple["Handle", str]]
ARCHITECTURES = {gguf_llama.ARCHITECTURE: gguf_llama}


class Slices(Protocol):
  """A tensor that is read by slices of its axes."""

  def get_shape(self) -> Sequence[int]:
    """Returns the shape."""
    ...

  def __getitem__(self, index: Any, /) -> np.ndarray:
    """Reads a part.

    Args:
      index: a slice per axis; absent ones are whole.
    """
    ...


class Handle(Protocol):
  """An open file of tensors."""

  def get_slice(self, name: str, /) -> Slices:
    """Returns a tensor, unread.

    Args:
      name: name of the tensor in the file.
    """
    ...


class Checkpoint(Protocol):
  """A checkpoint; `at` opens one."""

  @property
  def path(self) -> pathlib.Path:
    """Folder or file of the checkpoint."""
    ...

  def config(self) -> config_file.ConfigFile:
    """Reads the settings of the model."""
    ...

  def has(self, name: str) -> bool:
    """Returns whether a small file exists.

    Args:
      name: name of the file, such as "tokenizer.json".
    """
    ...

  def where(self, name: str) -> pathlib.Path:
    """Returns the path of a small file, for errors.

    Args:
      name: name of the file.
    """
    ...

  def read_json(self, name: str) -> dict[str, Any]:
    """Reads the object in a JSON file.

    Args:
      name: name of the file.
    """
    ...

  def read_bytes(self, name: str) -> bytes:
    """Reads a small file.

    Args:
      name: name of the file.
    """
    ...

  def weights_hash(self) -> str:
    """Returns the SHA-256 (hex) of weights and settings."""
    ...

  def tokenizer_hash(self) -> str:
    """Returns the SHA-256 (hex) of the tokenizer's files."""
    ...

  def tensors(self) -> contextlib.AbstractContextManager[Sources]:
    """Opens the tensors; they can be read inside the block."""
    ...

  def saved(self) -> contextlib.AbstractContextManager[pathlib.Path]:
    """Gives a folder with the tokenizer's files, inside the block."""
    ...


def at(path: str | pathlib.Path) -> Checkpoint:
  """Opens the checkpoint at a path.

  Args:
    path: folder with safetensors, GGUF file, or folder with one GGUF file.

  Raises:
    InputError: a folder has several GGUF files and no safetensors.
  """
  path = pathlib.Path(path)
  if path.suffix == hub.GGUF and not path.is_dir():
    return Gguf(path)
  files = sorted(path.glob(f"*{hub.GGUF}"))
  if not files or any(path.glob("*.safetensors")):
    return Folder(path)
  if len(files) > 1:
    raise errors.InputError(
      hub.FIELD,
      path,
      f"must have safetensors or one {hub.GGUF} file, has {len(files)}",
      f"give the path of one, such as {files[0]}",
    )
  return Gguf(files[0])


@dataclasses.dataclass(frozen=True)
class Folder:
  """A folder with config.json, safetensors and tokenizer.json."""

  path: pathlib.Path

  def config(self) -> config_file.ConfigFile:
    return config_file.ConfigFile(self.path, self.read_json(CONFIG))

  def has(self, name: str) -> bool:
    return hub.is_there(self.path / name)

  def where(self, name: str) -> pathlib.Path:
    return self.path / name

  def read_json(self, name: str) -> dict[str, Any]:
    return hub.read_json(self.path / name)

  def read_bytes(self, name: str) -> bytes:
    return hub.read_bytes(self.path / name)

  def weights_hash(self) -> str:
    return hub.weights_hash(self.path)

  def tokenizer_hash(self) -> str:
    return hub.tokenizer_hash(self.path)

  @contextlib.contextmanager
  def tensors(self) -> collections.abc.Iterator[Sources]:
    sources = {}
    with contextlib.ExitStack() as stack:
      for file in hub.weight_files(self.path):
        try:
          handle = stack.enter_context(
            safetensors.safe_open(file, framework="numpy")
          )
          keys = handle.keys()
          sources |= {_modern(key): (handle, key) for key in keys}
        except Exception as error:  # safetensors raises several types
          raise hub.unreadable(file, error) from error
      yield sources

  @contextlib.contextmanager
  def saved(self) -> collections.abc.Iterator[pathlib.Path]:
    yield self.path


def _modern(key: str) -> str:
  # Early BERT checkpoints have these names for the parameters of LayerNorm.
  key = re.sub(r"\bLayerNorm\.gamma$", "LayerNorm.weight", key)
  return re.sub(r"\bLayerNorm\.beta$", "LayerNorm.bias", key)


@dataclasses.dataclass(frozen=True)
class Gguf:
  """A GGUF file, read once.

  A tokenizer.json beside it, with its tokenizer_config.json and
  special_tokens_map.json, takes the place of the tokenizer in the metadata.
  """

  path: pathlib.Path

  def config(self) -> config_file.ConfigFile:
    return config_file.ConfigFile(self.path, self.read_json(CONFIG), "metadata")

  def has(self, name: str) -> bool:
    return name in self._files or name in self._beside

  def where(self, name: str) -> pathlib.Path:
    return self._beside.get(name, self.path)

  def read_json(self, name: str) -> dict[str, Any]:
    if name not in self._beside:
      return self._files[name](self._file)
    found = hub.read_json(self._beside[name])
    if name == TOKENIZER:
      self._check_tokens(found)
    return found

  def read_bytes(self, name: str) -> bytes:
    found = self.read_json(name)
    if name in self._beside:
      return hub.read_bytes(self._beside[name])
    return json.dumps(found, ensure_ascii=False).encode()

  def weights_hash(self) -> str:
    try:
      return durable.checksum(self.path)[1]
    except OSError as error:
      raise hub.unreadable(self.path, error) from error

  def tokenizer_hash(self) -> str:
    names = [name for name in hub.TOKENIZER_FILES if self.has(name)]
    return durable.digest({name: self.read_json(name) for name in names})

  @contextlib.contextmanager
  def tensors(self) -> collections.abc.Iterator[Sources]:
    handle = self._family.Tensors(self._file)
    yield {name: (handle, name) for name in handle.names}

  @contextlib.contextmanager
  def saved(self) -> collections.abc.Iterator[pathlib.Path]:
    with tempfile.TemporaryDirectory() as folder:
      for name in filter(self.has, hub.TOKENIZER_FILES):
        pathlib.Path(folder, name).write_bytes(self.read_bytes(name))
      yield pathlib.Path(folder)

  @functools.cached_property
  def _file(self) -> gguf.File:
    return gguf.read(self.path)

  @property
  def _family(self):
    of_file = config_file.ConfigFile(self.path, self._file.metadata, "metadata")
    name = of_file.choice("general.architecture", ARCHITECTURES, "")
    return ARCHITECTURES[name]

  @property
  def _files(self) -> dict[str, collections.abc.Callable]:
    found = {CONFIG: self._family.settings}
    if self._beside:
      return found
    return found | {
      TOKENIZER: gguf_tokenizer.tokenizer,
      "tokenizer_config.json": gguf_tokenizer.settings,
    }

  @functools.cached_property
  def _beside(self) -> dict[str, pathlib.Path]:
    """The files of a tokenizer beside this one, by name."""
    files = {name: self.path.parent / name for name in hub.TOKENIZER_FILES}
    files = {name: file for name, file in files.items() if hub.is_there(file)}
    return files if TOKENIZER in files else {}

  def _check_tokens(self, found: dict[str, Any]) -> None:
    """Refuses the tokenizer.json of another model."""
    own = self._file.metadata.get(gguf.TOKENS)
    model = found.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(own, list) or not isinstance(vocab, dict):
      return  # nothing to compare
    own = dict(enumerate(own))
    wrong = sum(own.get(i) != token for token, i in vocab.items())
    # Converters spell a few tokens anew, such as those of several blanks.
    if wrong > MAX_RESPELLED * len(vocab):
      raise errors.InputError(
        hub.FIELD,
        self._beside[TOKENIZER],
        f"must have the tokens of {self.path.name}, which are others for "
        f"{wrong:,} of {len(vocab):,} ids",
        "put the tokenizer.json of this model there, or remove it",
      )
