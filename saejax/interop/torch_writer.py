"""Writes tensors as a file of `torch.save`, without PyTorch.

The file is the zip form since PyTorch 1.6: the pickle of a dict of tensors,
written instruction by instruction, and a member per tensor, not compressed.
`torch.load` reads it with its default, `weights_only=True`.

References:
  Python, pickletools; PyTorch, torch/serialization.py (_save).
"""

import pathlib
import struct
import zipfile
from collections.abc import Mapping

import numpy as np

ROOT = "archive"
_STORAGES = {
  np.dtype(np.float32): "FloatStorage",
  np.dtype(np.int32): "IntStorage",
  np.dtype(np.int64): "LongStorage",
}
_EMPTY_DICT = b"ccollections\nOrderedDict\n)R"


def write(
  path: str | pathlib.Path, values: Mapping[str, np.ndarray | str | dict]
) -> None:
  """Writes a dict of tensors.

  Args:
    path: the file.
    values: arrays of float32, int32 or int64; texts; or dicts of integers and
      texts.

  Raises:
    KeyError: an array has another dtype.
  """
  out = [b"\x80\x02}("]
  storages: list[np.ndarray] = []
  for key, value in values.items():
    out.append(_text(key))
    if isinstance(value, np.ndarray):
      out.append(_tensor(value, len(storages)))
      storages.append(value)
    else:
      out.append(_plain(value))
  out.append(b"u.")
  members = {
    "data.pkl": b"".join(out),
    "byteorder": b"little",
    "version": b"3\n",
  }
  with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
    for name, content in members.items():
      archive.writestr(_member(name), content)
    for i, array in enumerate(storages):
      with archive.open(_member(f"data/{i}"), "w", force_zip64=True) as member:
        flat = np.ascontiguousarray(array).reshape(-1)
        member.write(memoryview(flat.view(np.uint8)))


def _member(name: str) -> zipfile.ZipInfo:
  # A fixed time: the same weights are the same bytes.
  return zipfile.ZipInfo(f"{ROOT}/{name}", (1980, 1, 1, 0, 0, 0))


def _text(value: str) -> bytes:
  content = value.encode()
  return b"X" + struct.pack("<I", len(content)) + content


def _integer(value: int) -> bytes:
  if 0 <= value < 2**31:
    return b"J" + struct.pack("<i", value)
  content = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
  return b"\x8a" + bytes([len(content)]) + content


def _plain(value: str | int | dict) -> bytes:
  if isinstance(value, str):
    return _text(value)
  if isinstance(value, dict):
    items = b"".join(_text(k) + _plain(v) for k, v in value.items())
    return b"}(" + items + b"u"
  return _integer(value)


def _tensor(array: np.ndarray, number: int) -> bytes:
  """_rebuild_tensor_v2(storage, offset, size, stride, grad, hooks)."""
  storage = _STORAGES[array.dtype]
  strides, step = [], 1
  for size in reversed(array.shape):
    strides.append(step)
    step *= size
  sizes = lambda values: b"(" + b"".join(map(_integer, values)) + b"t"
  return b"".join(
    [
      b"ctorch._utils\n_rebuild_tensor_v2\n((",
      _text("storage"),
      f"ctorch\n{storage}\n".encode(),
      _text(str(number)),
      _text("cpu"),
      _integer(array.size),
      b"tQ",
      _integer(0),
      sizes(array.shape),
      sizes(reversed(strides)),
      b"\x89",
      _EMPTY_DICT,
      b"tR",
    ]
  )
