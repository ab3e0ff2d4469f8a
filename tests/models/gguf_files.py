"""GGUF files for tests: the golden one, and others made from its parts."""

import functools
import pathlib
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.numpy

from saejax.models import gguf, gguf_types
from tests.models import golden

GOLDEN = golden.FILES / "gguf_llama.gguf"
_CODES = {float: (6, "f"), bool: (7, "?"), int: (4, "I")}


@functools.cache
def expected() -> dict[str, np.ndarray]:
  """What the packages gguf and transformers read in the golden file."""
  return safetensors.numpy.load_file(GOLDEN.with_suffix(".safetensors"))


@functools.cache
def blocks() -> dict[str, np.ndarray]:
  """Random blocks of 256 values, and what the package gguf reads in them."""
  return safetensors.numpy.load_file(golden.FILES / "gguf_blocks.safetensors")


def parts() -> tuple[dict[str, Any], dict[str, tuple]]:
  """Metadata, and (number of the type, shape, bytes) of each tensor."""
  file = gguf.read(GOLDEN)
  numbers = {kind.name: number for number, kind in gguf_types.KINDS.items()}
  tensors = {
    name: (
      numbers[t.kind.name],
      t.shape,
      file.data[t.start : t.start + t.size].tobytes(),
    )
    for name, t in file.tensors.items()
  }
  return dict(file.metadata), tensors


def write(
  path: pathlib.Path,
  *,
  settings: Mapping[str, Any] | None = None,
  tensors: Mapping[str, tuple | None] | None = None,
  version: int = 3,
  counts: tuple[int, int] | None = None,
  shift: int = 0,
) -> pathlib.Path:
  """Writes the golden file with changes.

  Args:
    path: the file.
    settings: changes of metadata; None removes one.
    tensors: changes of tensors, (type, shape, bytes); None removes one.
    version: version in the header.
    counts: numbers of tensors and settings in the header, where not the true
      ones.
    shift: added to the offset of every tensor but the first.
  """
  own, named = parts()
  own = {k: v for k, v in (own | dict(settings or {})).items() if v is not None}
  named |= dict(tensors or {})
  named = {k: v for k, v in named.items() if v is not None}
  head = [gguf.MAGIC, struct.pack("<I", version)]
  head.append(struct.pack("<QQ", *(counts or (len(named), len(own)))))
  for key, value in own.items():
    kind, content = _value(value)
    head += [_string(key), struct.pack("<I", kind), content]
  data = b""
  for i, (name, (kind, shape, content)) in enumerate(named.items()):
    head += [_string(name), struct.pack("<I", len(shape))]
    head += [struct.pack("<Q", size) for size in reversed(shape)]
    head.append(struct.pack("<IQ", kind, len(data) + (shift if i else 0)))
    data += content + bytes(-len(content) % 32)
  found = b"".join(head)
  path.write_bytes(found + bytes(-len(found) % 32) + data)
  return path


def _string(text: str | bytes) -> bytes:
  raw = text.encode() if isinstance(text, str) else text
  return struct.pack("<Q", len(raw)) + raw


def _value(value: Any) -> tuple[int, bytes]:
  if isinstance(value, str | bytes):
    return 8, _string(value)
  if isinstance(value, list):
    kind = _value(value[0])[0] if value else 4
    content = b"".join(_value(one)[1] for one in value)
    return 9, struct.pack("<IQ", kind, len(value)) + content
  kind, code = _CODES[type(value)]
  return kind, struct.pack(f"<{code}", value)
