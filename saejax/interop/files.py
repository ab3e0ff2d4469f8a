"""The files of a published SAE: read strictly, and never run.

`Files` is a folder, or one file of it. Tensors come from safetensors, .npz and
.pt; every size is checked against the file before memory is taken, pickles are
data (`models.torch_file`), and weights must be finite floats of the shapes that
the format gives.
"""

import functools
import json
import pathlib
import struct
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from saejax import durable
from saejax.errors import InputError
from saejax.interop.record import FIELD
from saejax.models import torch_file

REMEDY = "download the file again"
TENSORS = (".safetensors", ".npz", ".pt", ".pth")
MAX_RATIO = 64  # bytes that a compressed byte of weights may stand for
_DTYPES = {
  "F64": np.dtype(np.float64),
  "F32": np.dtype(np.float32),
  "F16": np.dtype(np.float16),
  "BF16": np.dtype(ml_dtypes.bfloat16),
  "I64": np.dtype(np.int64),
  "I32": np.dtype(np.int32),
  "U8": np.dtype(np.uint8),
  "BOOL": np.dtype(np.bool_),
}
_FLOATS = {_DTYPES[name] for name in ("F64", "F32", "F16", "BF16")}


class Files:
  """The files of one SAE.

  Args:
    path: a folder, or one file with weights.
    name: repository and path that the files come from, from which some formats
      take the site; by default the path.

  Attributes:
    folder: the folder.
    only: name of the file, where one was given.
  """

  def __init__(self, path: str | pathlib.Path, name: str = ""):
    path = pathlib.Path(path).expanduser()
    self.folder = path if path.is_dir() else path.parent
    self.only = "" if path.is_dir() else path.name
    self.name = name or str(path.absolute())
    if not path.exists():
      rule = "must be a folder or file with the weights of an SAE (not there)"
      raise InputError(FIELD, path, rule, "correct the path")

  @functools.cached_property
  def names(self) -> list[str]:
    """Names of the files, of the weights only the given one."""
    found = sorted(p.name for p in self.folder.iterdir() if p.is_file())
    if not self.only:
      return found
    weights = lambda name: name.endswith(TENSORS) and name != self.only
    return [name for name in found if not weights(name)]

  def has(self, name: str) -> bool:
    """Returns whether a file exists.

    Args:
      name: its name, which may be in a folder below.
    """
    return name in self.names or (self.folder / name).is_file()

  def matching(self, suffixes: str | tuple[str, ...]) -> list[str]:
    """Names that end with a suffix.

    Args:
      suffixes: one or several.
    """
    return [name for name in self.names if name.endswith(suffixes)]

  def json(self, name: str) -> dict[str, Any]:
    """Reads the object in a JSON file.

    Args:
      name: the file.

    Raises:
      InputError: it is missing or damaged.
    """
    return durable.read_json(self.folder / name, field=FIELD, remedy=REMEDY)

  def yaml(self, name: str) -> dict[str, Any]:
    """Reads the mapping in a YAML file, with PyYAML's safe loader.

    Args:
      name: the file.

    Raises:
      InputError: it is damaged, or PyYAML is not installed.
    """
    path = self.folder / name
    try:
      import yaml
    except ImportError as error:
      rule, remedy = "needs PyYAML to be read", "pip install pyyaml"
      raise InputError(FIELD, path, rule, remedy) from error
    try:
      found = yaml.safe_load(path.read_text())
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
      rule = f"must be YAML ({str(error)[:100]})"
      raise InputError(FIELD, path, rule, REMEDY) from error
    if not isinstance(found, dict):
      raise InputError(FIELD, path, "must hold a mapping", REMEDY)
    return found

  def keys(self, name: str) -> set[str]:
    """Names of the tensors in a file, without reading them where possible.

    Args:
      name: the file.

    Raises:
      InputError: as for `tensors`.
    """
    if name.endswith(".safetensors"):
      return set(_header(self.folder / name)[0])
    if name.endswith(".npz"):
      return set(_members(self.folder / name))
    return set(self.tensors(name).arrays)

  def tensors(self, name: str) -> "Tensors":
    """Reads the tensors of a file, by name.

    Args:
      name: the file.

    Raises:
      InputError: it is damaged, or has something that is not data.
    """
    return Tensors(self.folder / name, self._arrays(name))

  def _arrays(self, name: str) -> dict[str, Any]:
    path = self.folder / name
    if name.endswith(".safetensors"):
      return _safetensors(path)
    if name.endswith(".npz"):
      return _npz(path)
    if not path.is_file():
      raise InputError(FIELD, path, "must exist", "correct the path")
    found = torch_file.read(path, field=FIELD)
    if not isinstance(found, dict):
      rule = f"must hold a dict of tensors, holds a {type(found).__name__}"
      raise InputError(FIELD, path, rule, "save the state_dict")
    return found


class Tensors:
  """Tensors of one file.

  Args:
    path: the file, for errors.
    arrays: tensors by name; other values may stand among them.
  """

  def __init__(self, path: pathlib.Path, arrays: Mapping[str, Any]):
    self.path, self.arrays = path, arrays

  def __contains__(self, key: str) -> bool:
    return key in self.arrays

  @property
  def dtype(self) -> str:
    """The dtype of the weights: that of the largest array."""
    arrays = [a for a in self.arrays.values() if isinstance(a, np.ndarray)]
    return str(max(arrays, key=lambda a: a.size).dtype) if arrays else ""

  def weights(
    self,
    shapes: Mapping[str, str],
    sizes: Mapping[str, int | None] | None = None,
    *,
    config: str = "the configuration",
  ) -> dict[str, np.ndarray]:
    """Checks tensors and returns them as float32.

    Args:
      shapes: the axes of each tensor, such as "n d"; "" for a scalar.
      sizes: sizes of axes that are known from elsewhere.
      config: where they are known from, for errors.

    Raises:
      InputError: a tensor is missing, has another shape, is no float or not
        finite.
    """
    known = {k: (v, config) for k, v in (sizes or {}).items() if v is not None}
    # Vectors first: they give sizes that no transposition hides.
    for key in sorted(shapes, key=lambda key: len(shapes[key].split())):
      self._check_shape(key, shapes[key].split(), known)
    return {key: self._floats(key) for key in shapes}

  def _check_shape(self, key: str, axes: list[str], known: dict) -> None:
    array = self.arrays.get(key)
    if not isinstance(array, np.ndarray):
      others = ", ".join(sorted(map(str, self.arrays))[:12])
      rule = f"must have the tensor {key!r}; it has {others or 'none'}"
      raise self._error(rule, "name its format, or " + REMEDY)
    for axis, size in zip(axes, array.shape, strict=False):
      known.setdefault(axis, (size, f"{key!r}"))
    want = [known[axis][0] if axis in known else "?" for axis in axes]
    if list(array.shape) != want:
      sources = [f"{a} by {known[a][1]}" for a in axes if a in known]
      turned = list(array.shape) == want[::-1]
      rule = (
        f"{key!r} must be [{', '.join(axes)}] = {want} ({'; '.join(sources)}), "
        f"is {list(array.shape)}" + ", transposed" * turned
      )
      raise self._error(rule, "name its format, or " + REMEDY)

  def _floats(self, key: str) -> np.ndarray:
    array = self.arrays[key]
    if array.dtype not in _FLOATS:
      rule = f"{key!r} must hold floats, holds {array.dtype}"
      raise self._error(rule, REMEDY)
    with np.errstate(over="ignore"):
      found = np.asarray(array, np.float32)
    if not np.all(np.isfinite(found)):
      where = np.argwhere(~np.isfinite(found))[0].tolist()
      rule = f"{key!r} must be finite; {where} is {found[tuple(where)]}"
      raise self._error(rule, "use another checkpoint")
    return np.asarray(found, order="C")

  def _error(self, rule: str, remedy: str) -> InputError:
    return InputError(FIELD, self.path, rule, remedy)


# --- safetensors -------------------------------------------------------------


def _header(path: pathlib.Path) -> tuple[dict[str, Any], int]:
  """Tensors by name, and the place of the data."""
  try:
    length = path.stat().st_size
    with open(path, "rb") as file:
      (size,) = struct.unpack("<Q", file.read(8))
      if size > length - 8:
        raise ValueError(f"its header ends at byte {size + 8} of {length}")
      found = json.loads(file.read(size))
    if not isinstance(found, dict):
      raise ValueError("its header is not an object")
    found.pop("__metadata__", None)
    for key, entry in found.items():
      start, stop = entry["data_offsets"]
      dtype = _DTYPES.get(entry["dtype"])
      if dtype is None:
        raise ValueError(f"{key!r} has the dtype {entry['dtype']}")
      count = _count(entry["shape"])
      if not 0 <= start <= stop or stop - start != count * dtype.itemsize:
        raise ValueError(f"the size of {key!r} contradicts its shape")
      if stop > length - 8 - size:
        stop += 8 + size
        raise ValueError(f"{key!r} ends at byte {stop} of {length}")
  except OSError as error:
    raise _unreadable(path, error.strerror or error) from error
  except (ValueError, KeyError, TypeError, struct.error) as error:
    raise _unreadable(path, error, "be complete safetensors") from error
  except RecursionError as error:
    raise _unreadable(path, "nested too deep", "be safetensors") from error
  return found, size + 8


def _count(shape: Iterable[int]) -> int:
  total = 1
  for size in shape:
    if not isinstance(size, int) or size < 0:
      raise ValueError(f"a shape has the size {size!r}")
    total *= size
  return total


def _safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
  header, start = _header(path)
  if not header:
    return {}
  data = np.memmap(path, np.uint8, "r", offset=start)
  return {
    key: data[slice(*entry["data_offsets"])]
    .view(_DTYPES[entry["dtype"]])
    .reshape(entry["shape"])
    for key, entry in header.items()
  }


# --- npz ---------------------------------------------------------------------


def _members(path: pathlib.Path) -> dict[str, zipfile.ZipInfo]:
  """The arrays of an archive by name; sizes are those of the file."""
  try:
    with zipfile.ZipFile(path) as archive:
      infos = archive.infolist()
    length = path.stat().st_size
  except OSError as error:
    raise _unreadable(path, error.strerror or error) from error
  except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
    raise _unreadable(path, error, "be a complete .npz") from error
  found = {i.filename.removesuffix(".npy"): i for i in infos}
  if len(found) < len(infos):
    raise _unreadable(path, "a name occurs twice", "be a complete .npz")
  total = sum(info.file_size for info in infos)
  if total > MAX_RATIO * length:
    rule = f"{total} bytes in a file of {length}"
    raise _unreadable(path, rule, f"unpack to at most {MAX_RATIO} times itself")
  return found


def _npz(path: pathlib.Path) -> dict[str, np.ndarray]:
  arrays = {}
  for name, info in _members(path).items():
    try:
      with zipfile.ZipFile(path) as archive, archive.open(info) as member:
        arrays[name] = _npy(member, info.file_size)
    except OSError as error:
      raise _unreadable(path, error.strerror or error) from error
    except (
      zipfile.BadZipFile,
      zlib.error,
      ValueError,
      EOFError,
      NotImplementedError,
      RuntimeError,  # encrypted
    ) as error:
      what = f"have {name!r} as a complete array of numbers"
      raise _unreadable(path, error, what) from error
  return arrays


def _npy(member: Any, size: int) -> np.ndarray:
  """Reads an array after checking the size that its header declares."""
  version = np.lib.format.read_magic(member)
  read = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
  }.get(version)
  if read is None:
    raise ValueError(f"version {version} of .npy is not read")
  shape, fortran, dtype = read(member)
  if dtype.hasobject:
    raise ValueError("it holds Python objects, which are pickles")
  count = _count(shape)
  if member.tell() + count * dtype.itemsize != size:
    raise ValueError("its size contradicts its header")
  data = member.read(count * dtype.itemsize)
  if len(data) != count * dtype.itemsize:
    raise EOFError("it is truncated")
  return np.frombuffer(data, dtype).reshape(
    shape, order="F" if fortran else "C"
  )


def _unreadable(
  path: pathlib.Path, reason: Any, what: str = "be readable"
) -> InputError:
  reason = " ".join(str(reason).split())[:200]
  return InputError(FIELD, path, f"must {what} ({reason})", REMEDY)
