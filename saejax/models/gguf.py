"""Reads GGUF files, the container of llama.cpp: metadata and tensors.

A file is little-endian and has, in this order,
  "GGUF", version (uint32), number of tensors and of settings (uint64);
  settings: key, type, value; a string is its length (uint64) and UTF-8, an
    array its type (uint32), length (uint64) and values;
  tensors: name, number of dimensions (uint32), dimensions (uint64, the fastest
    first), type (uint32), offset (uint64) from the start of the data;
  data: tensors one after the other, each aligned.

The file is memory-mapped; a tensor is converted to float32 when it is read. Every
length and offset is checked against the size of the file before it is used.

References:
  ggml, docs/gguf.md, versions 2 and 3.
"""

import dataclasses
import functools
import pathlib
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from saejax import errors
from saejax.models import gguf_types, hub

TOKENS = "tokenizer.ggml.tokens"
MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_DIMENSIONS = 4  # as in ggml
_STRING, _ARRAY, _BOOL = 8, 9, 7
# Types of values in the metadata: number -> format of struct.
_SCALARS = {
  0: "B",
  1: "b",
  2: "H",
  3: "h",
  4: "I",
  5: "i",
  6: "f",
  _BOOL: "?",
  10: "Q",
  11: "q",
  12: "d",
}
# Bytes of the smallest setting (key, type, value) and tensor (no dimensions).
_MIN_SETTING = 8 + 4 + 1
_MIN_TENSOR = 8 + 4 + 4 + 8


class Tensor(NamedTuple):
  """The place of a tensor.

  Attributes:
    kind: its type.
    shape: its shape, the fastest dimension last.
    start: its first byte in the file.
    size: its number of bytes.
  """

  kind: gguf_types.Kind
  shape: tuple[int, ...]
  start: int
  size: int


@dataclasses.dataclass(frozen=True, eq=False)
class File:
  """A GGUF file, built by `read`.

  Attributes:
    path: path of the file.
    metadata: settings by key: numbers, strings, and lists of them.
    tensors: places of the tensors by name, in the order of the file.
    data: all bytes, memory-mapped.
  """

  path: pathlib.Path
  metadata: Mapping[str, Any]
  tensors: Mapping[str, Tensor]
  data: np.ndarray = dataclasses.field(repr=False)

  def get_slice(self, name: str) -> "Slices":
    """Returns a tensor, which is converted to float32 when it is read.

    Args:
      name: name of the tensor.
    """
    return Slices(self.data, self.tensors[name])

  def refusal(self, rule: str, remedy: str) -> errors.InputError:
    """Returns the error for this file.

    Args:
      rule: the violated rule.
      remedy: how to correct it.
    """
    return errors.InputError(hub.FIELD, self.path, rule, remedy)


@dataclasses.dataclass(frozen=True, eq=False)
class Slices:
  """A tensor that is read by slices.

  Attributes:
    data: all bytes of the file.
    tensor: its place.
  """

  data: np.ndarray
  tensor: Tensor

  def get_shape(self) -> tuple[int, ...]:
    """Returns the shape."""
    return self.tensor.shape

  def __getitem__(self, index: slice | tuple[slice, ...]) -> np.ndarray:
    """Returns a part as float32; no other blocks are read.

    Args:
      index: a slice per axis; absent ones are whole.
    """
    kind, shape, start, size = self.tensor
    index = index if isinstance(index, tuple) else (index,)
    index += (slice(None),) * (len(shape) - len(index))
    first, stop, _ = index[-1].indices(shape[-1])
    blocks = slice(first // kind.values, -(-stop // kind.values))
    raw = self.data[start : start + size]
    raw = raw.reshape(*shape[:-1], -1, kind.bytes)[(*index[:-1], blocks)]
    values = kind.decode(np.ascontiguousarray(raw).reshape(-1, kind.bytes))
    values = values.reshape(*raw.shape[:-2], -1)
    offset = blocks.start * kind.values
    return values[..., first - offset : stop - offset]


def read(path: str | pathlib.Path) -> File:
  """Reads the metadata and the places of the tensors of a file.

  Args:
    path: path of the file.

  Raises:
    InputError: the file cannot be read, is no GGUF file of a known version, is
      truncated, has a tensor of a type that is not implemented, or its sizes
      and offsets do not agree with its length.
  """
  path = pathlib.Path(path)
  try:
    size = path.stat().st_size
    # An empty file cannot be mapped, and has no magic either.
    data = np.memmap(path, np.uint8, "r") if size else np.zeros(0, np.uint8)
  except OSError as error:
    raise hub.unreadable(path, error) from error
  cursor = _Cursor(path, data)
  if bytes(data[:4]) != MAGIC:
    rule = f"must be a GGUF file, but starts with {bytes(data[:4])!r}"
    raise cursor.refusal(rule)
  cursor.at = 4
  version = cursor.number("I", "version")
  if version not in VERSIONS:
    raise cursor.refusal(
      f"must be little-endian GGUF of version {VERSIONS[0]} or {VERSIONS[1]}, "
      f"has version {version}",
      "convert the model again with a recent llama.cpp",
    )
  tensors = cursor.number("Q", "number of tensors")
  settings = cursor.number("Q", "number of settings")
  cursor.check(settings, _MIN_SETTING, "settings")
  metadata = _unique(cursor, "setting", settings, _setting)
  cursor.check(tensors, _MIN_TENSOR, "tensors")
  named = _unique(cursor, "tensor", tensors, _tensor)
  return File(path, metadata, _placed(cursor, metadata, named), data)


class _Cursor:
  """Reads a file from front to back and refuses to pass its end."""

  def __init__(self, path: pathlib.Path, data: np.ndarray):
    self.path, self.data, self.at = path, memoryview(data), 0

  def refusal(
    self, rule: str, remedy: str = "download the file again"
  ) -> errors.InputError:
    return errors.InputError(hub.FIELD, self.path, rule, remedy)

  def check(self, count: int, size: int, what: str) -> None:
    """Refuses `count` items of at least `size` bytes that the file cannot hold."""
    left = len(self.data) - self.at
    if count * size > left:
      raise self.refusal(
        f"must be complete: {count} {what} at byte {self.at} take at least "
        f"{count * size} bytes, and {left} are left"
      )

  def take(self, size: int, what: str) -> memoryview:
    self.check(size, 1, f"bytes of the {what}")
    self.at += size
    return self.data[self.at - size : self.at]

  def number(self, code: str, what: str) -> Any:
    code = f"<{code}"
    (value,) = struct.unpack(code, self.take(struct.calcsize(code), what))
    return value

  def string(self, what: str) -> str:
    raw = self.take(self.number("Q", what), what)
    try:
      return str(raw, "utf-8")
    except UnicodeDecodeError as error:
      raise self.refusal(
        f"must have text in UTF-8, and the {what} before byte {self.at} is not"
      ) from error


def _unique(cursor, what, count, one) -> dict[str, Any]:
  """Reads named items; a name that comes twice is refused."""
  found: dict[str, Any] = {}
  for _ in range(count):
    name = cursor.string(f"name of a {what}")
    if name in found:
      raise cursor.refusal(f"must have each {what} once, has {name!r} twice")
    found[name] = one(cursor, name)
  return found


# --- metadata ----------------------------------------------------------------


def _setting(cursor: _Cursor, key: str) -> Any:
  kind = cursor.number("I", key)
  if kind != _ARRAY:
    return _value(cursor, kind, key)
  kind, count = cursor.number("I", key), cursor.number("Q", key)
  if kind == _STRING:
    cursor.check(count, 8, f"strings of {key}")
    return [cursor.string(key) for _ in range(count)]
  code = _scalar(cursor, kind, key)
  cursor.check(count, struct.calcsize(f"<{code}"), f"numbers of {key}")
  raw = cursor.take(count * struct.calcsize(f"<{code}"), key)
  return list(struct.unpack(f"<{count}{code}", raw))


def _value(cursor: _Cursor, kind: int, key: str) -> Any:
  if kind == _STRING:
    return cursor.string(key)
  return cursor.number(_scalar(cursor, kind, key), key)


def _scalar(cursor: _Cursor, kind: int, key: str) -> str:
  if kind not in _SCALARS:
    rule = f"must have metadata of known types, and {key} has type {kind}"
    raise cursor.refusal(rule)
  return _SCALARS[kind]


# --- tensors -----------------------------------------------------------------


def _tensor(
  cursor: _Cursor, name: str
) -> tuple[gguf_types.Kind, tuple[int, ...], int]:
  """Returns type, shape and offset of a tensor."""
  count = cursor.number("I", name)
  if not 1 <= count <= MAX_DIMENSIONS:
    rule = f"{name} must have 1 to {MAX_DIMENSIONS} dimensions, has {count}"
    raise cursor.refusal(rule)
  shape = tuple(cursor.number("Q", name) for _ in range(count))[::-1]
  number = cursor.number("I", name)
  if number not in gguf_types.KINDS:
    known = ", ".join(kind.name for kind in gguf_types.KINDS.values())
    raise cursor.refusal(
      f"{name} must have one of the types {known}, has "
      f"{gguf_types.OTHERS.get(number, 'type')} ({number})",
      "use a file in one of these types",
    )
  kind = gguf_types.KINDS[number]
  if not all(shape) or shape[-1] % kind.values:
    raise cursor.refusal(
      f"{name} of type {kind.name} must have rows of a multiple of "
      f"{kind.values} values, has shape {list(shape)}"
    )
  return kind, shape, cursor.number("Q", name)


def _placed(
  cursor: _Cursor, metadata: Mapping[str, Any], named: Mapping[str, Any]
) -> dict[str, Tensor]:
  """Returns the places of the tensors.

  As in llama.cpp, they follow each other without gaps but for alignment. The
  file ends with the last of them, or its alignment.
  """
  alignment = metadata.get("general.alignment", 32)
  if type(alignment) is not int or alignment < 1 or alignment & alignment - 1:
    rule = f"general.alignment must be a power of two, is {alignment!r}"
    raise cursor.refusal(rule)
  data = _aligned(cursor.at, alignment)
  length, at, end = len(cursor.data), 0, data
  placed = {}
  for name, (kind, shape, offset) in named.items():
    # Python's integers: a product of dimensions does not overflow.
    values = functools.reduce(int.__mul__, shape)
    size = values // kind.values * kind.bytes
    if offset != at:
      raise cursor.refusal(
        f"{name} must follow the tensor before it at offset {at}, is at {offset}"
      )
    end = data + at + size
    if end > length:
      raise cursor.refusal(
        f"must be complete: {name} {list(shape)} ends at byte {end} of {length}"
      )
    placed[name] = Tensor(kind, shape, data + at, size)
    at = _aligned(at + size, alignment)
  if length > data + at:
    raise cursor.refusal(
      f"must end with its last tensor, at byte {end}, has {length} bytes"
    )
  return placed


def _aligned(at: int, alignment: int) -> int:
  return -(-at // alignment) * alignment
