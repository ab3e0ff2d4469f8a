"""Reads files of `torch.save` without PyTorch and without running their code.

A file is, in the form since PyTorch 1.6, a zip archive with the pickle of the
object (data.pkl) and a member per storage, not compressed; before, four pickles
(magic number, version, facts about the machine, object), a pickle of the keys
of the storages, and the storages, each after its number of values.

Pickles are data here, see `torch_pickle`. Sizes are checked against the file
before they are used; arrays are views of the file, which is memory-mapped.

References:
  PyTorch, torch/serialization.py (_legacy_save, _save).
"""

import functools
import io
import mmap
import pathlib
import struct
import zipfile
import zlib
from typing import IO, Any, cast

import numpy as np

from saejax.errors import InputError
from saejax.models import torch_pickle
from saejax.models.torch_pickle import Damaged

MAGIC = 0x1950A86A20F9469CFC6C
VERSION = 1001
_REMEDY = "download the file again, or save its weights as safetensors"


def read(
  path: str | pathlib.Path, *, namespaces: bool = False, field: str = "path"
) -> Any:
  """Reads the object in a file of `torch.save`.

  Args:
    path: the file, .pt or .pth.
    namespaces: whether argparse.Namespace is allowed; it becomes
      `torch_pickle.Attributes`.
    field: the setting that errors name.

  Returns:
    The object, of dicts, lists, tuples, texts and numbers, with NumPy arrays,
    which cannot be written to, for tensors and parameters.

  Raises:
    InputError: the file cannot be read, is in neither form, is truncated or
      compressed, has a class or instruction that is not allowed, or its sizes
      contradict each other or its length.
  """
  known = torch_pickle.KNOWN
  if namespaces:
    known |= {torch_pickle.NAMESPACE}
  path = pathlib.Path(path)
  try:
    with open(path, "rb") as file:
      if not path.stat().st_size:
        raise Damaged("must not be empty")
      data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return (_zipped if data[:4] == b"PK\3\4" else _in_line)(data, known)
  except OSError as error:
    rule = f"must be readable ({error.strerror or error})"
    raise InputError(field, path, rule, "correct the path") from error
  except Damaged as error:
    raise InputError(field, path, str(error), _REMEDY) from error


# --- the two forms -----------------------------------------------------------

_BAD_ZIP = (
  zipfile.BadZipFile,
  ValueError,  # a place outside the map
  NotImplementedError,  # a later version of the format
  struct.error,
)


def _zipped(data: mmap.mmap, known: frozenset[str]) -> Any:
  """Reads the zip form."""
  try:
    # The map reads no further than its end, whatever size is asked of it.
    with zipfile.ZipFile(cast(IO[bytes], data)) as archive:
      infos = archive.infolist()
  except _BAD_ZIP as error:
    raise Damaged(f"must be a complete zip archive ({error})") from error
  members = {info.filename: info for info in infos}
  if len(members) < len(infos):
    raise Damaged("must have each member of the archive once")
  _check_sizes(members, len(data))
  pickles = [name for name in members if name.endswith("/data.pkl")]
  if len(pickles) != 1:
    raise Damaged(f"must have one member data.pkl, has {len(pickles)}")
  folder = pickles[0].removesuffix("data.pkl")
  order = members.get(f"{folder}byteorder")
  if order is not None and bytes(_member(data, order)) != b"little":
    raise Damaged("must be little-endian")

  @functools.cache  # tensors may share a storage, and checksums take time
  def find(key: str, dtype: np.dtype, count: int) -> np.ndarray:
    info = members.get(f"{folder}data/{key}")
    if info is None:
      raise Damaged(f"must have the storage {key!r}, which a tensor uses")
    if info.file_size != count * dtype.itemsize:
      raise Damaged(
        f"storage {key!r} must have {count} values of {dtype}, has "
        f"{info.file_size} bytes"
      )
    return np.frombuffer(_member(data, info), dtype)

  content = bytes(_member(data, members[pickles[0]]))
  return torch_pickle.Machine(io.BytesIO(content), known, find).run()


def _check_sizes(members: dict[str, zipfile.ZipInfo], length: int) -> None:
  """Refuses compressed members, and more bytes than the file has."""
  for name, info in members.items():
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
      raise Damaged(
        f"must have no compressed or encrypted member; {name!r} is "
        f"{info.compress_size} bytes and declares {info.file_size}"
      )
  total = sum(info.file_size for info in members.values())
  if total > length:
    raise Damaged(f"declares {total} bytes of members in a file of {length}")


def _member(data: mmap.mmap, info: zipfile.ZipInfo) -> memoryview:
  """Returns the bytes of a member that is not compressed."""
  at, name = info.header_offset, info.filename
  header = data[at : at + 30]
  if len(header) < 30 or header[:4] != b"PK\3\4":
    raise Damaged(f"must have {name!r} where the archive says, byte {at}")
  start = at + 30 + sum(struct.unpack("<HH", header[26:30]))
  found = memoryview(data)[start : start + info.file_size]
  if len(found) < info.file_size or zlib.crc32(found) != info.CRC:
    raise Damaged(f"must have {name!r} undamaged; its checksum differs")
  return found


def _in_line(data: mmap.mmap, known: frozenset[str]) -> Any:
  """Reads the form before PyTorch 1.6."""
  if data[:2] != b"\x80\x02":
    start = bytes(data[:4])
    raise Damaged(f"must be a file of torch.save, but starts with {start!r}")
  declared: dict[str, tuple[np.dtype, int]] = {}

  def note(key: str, dtype: np.dtype, count: int) -> np.ndarray:
    if declared.setdefault(key, (dtype, count)) != (dtype, count):
      raise Damaged(f"must have one size and type of the storage {key!r}")
    # Without values; their place is known after the object.
    return np.broadcast_to(np.zeros((), dtype), (count,))

  def part(find: torch_pickle.Find) -> Any:
    return torch_pickle.Machine(data, known, find).run()

  magic = part(note)
  if magic != MAGIC or part(note) != VERSION:
    raise Damaged(f"must have the magic number and version {VERSION} of torch")
  about = part(note)
  if not isinstance(about, dict) or about.get("little_endian") is not True:
    raise Damaged("must be little-endian")
  start = data.tell()
  part(note)
  keys = part(note)
  named = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
  if not named or sorted(keys) != sorted(declared):
    raise Damaged("must list each storage that a tensor uses, and no other")
  places = _storages(data, keys, declared)
  data.seek(start)
  return part(lambda key, dtype, count: places[key])


def _storages(
  data: mmap.mmap, keys: list[str], declared: dict[str, tuple[np.dtype, int]]
) -> dict[str, np.ndarray]:
  """Returns the storages that follow in the file, by key."""
  places, at = {}, data.tell()
  for key in keys:
    dtype, count = declared[key]
    stop = at + 8 + count * dtype.itemsize
    if stop > len(data):
      raise Damaged(
        f"must be complete: storage {key!r} ends at byte {stop} of {len(data)}"
      )
    (stored,) = struct.unpack("<q", data[at : at + 8])
    if stored != count:
      raise Damaged(f"storage {key!r} must have {count} values, has {stored}")
    places[key] = np.frombuffer(data, dtype, count, at + 8)
    at = stop
  if at != len(data):
    raise Damaged(f"must end with its storages, at byte {at} of {len(data)}")
  return places
