"""Columns of a .parquet file as arrays that are read by row group.

A column of numbers is [rows]; one of lists of equal length is [rows, length],
lists of lists [rows, length, length]. Columns x0, x1, ... (or x_0, or 0: a
table with one column per coordinate) are together x [rows, d], and target0, ...
likewise. Values are read when they are sliced: of each column the row groups
last used are in memory.
"""

import contextlib
import functools
import importlib
import itertools
import pathlib
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from saejax.errors import InputError

_COORDINATE = re.compile(r"(x|target|)_?(\d+)")


def columns(path: pathlib.Path) -> dict[str, "Column"]:
  """The columns of a file by name; only its footer is read.

  Args:
    path: the Parquet file.

  Returns:
    Columns by name; coordinates x_0, x_1, ... make one column x [rows, d].

  Raises:
    InputError: pyarrow is not installed, the file cannot be read, a column
      does not hold numbers, or coordinates are not 0, 1, ... of one dtype.
  """
  file = _File(path)
  kinds = {field.name: field.type for field in file.schema}
  if len(kinds) < len(file.schema):
    raise _refused(path, "has two columns of one name", "rename one of them")
  for name, kind in kinds.items():
    _check(path, name, kind)
  parts: dict[str, dict[int, str]] = {}
  for name in kinds:
    match = _COORDINATE.fullmatch(name)
    if match and len(kinds) > 1:
      own = parts.setdefault(match[1] or "x", {})
      if own.setdefault(int(match[2]), name) != name:
        rule = (
          f"has the columns {name} and {own[int(match[2])]}, one coordinate"
        )
        raise _refused(path, rule, "rename one of them")
    else:
      parts.setdefault(name, {}).setdefault(-1, name)
  found = {}
  for name, own in parts.items():
    _check_coordinates(path, name, own, kinds)
    found[name] = Column(file, [own[i] for i in sorted(own)])
  return found


def _check(path: pathlib.Path, name: str, kind: Any) -> None:
  """Refuses a column that does not hold numbers."""
  inner, types = kind, _pyarrow().types
  while _is_list(inner):
    inner = inner.value_type
  if not (
    types.is_integer(inner)
    or types.is_floating(inner)
    or types.is_boolean(inner)
  ):
    rule = f"has the column {name} of type {kind}, which does not hold numbers"
    raise _refused(path, rule, "leave the column out, or convert it")


def _check_coordinates(
  path: pathlib.Path,
  name: str,
  own: Mapping[int, str],
  kinds: Mapping[str, Any],
) -> None:
  """Refuses coordinates with gaps, of several types, or beside the whole."""
  if list(own) == [-1]:
    return
  numbers = sorted(own)
  if numbers != list(range(len(numbers))):
    lacks = next(i for i in itertools.count() if i not in own)
    both = f"both {name} and coordinates of it"
    rule = f"has {both if -1 in own else f'no coordinate {lacks} of {name}'}"
    raise _refused(path, rule, f"give {name} as one column, or all coordinates")
  first = kinds[own[0]]
  for column in own.values():
    if kinds[column] != first or _is_list(first):
      rule = (
        f"has coordinates of {name} of type {first} and {kinds[column]} "
        f"(column {column}), and they must be numbers of one type"
      )
      raise _refused(path, rule, "convert them to one type, such as float32")


class Column:
  """An array [rows, ...] with the length and slices of a NumPy one.

  Args:
    file: the file.
    names: the column, or the coordinates that make it.
  """

  def __init__(self, file: "_File", names: Sequence[str]):
    self._file, self._names = file, names
    self._shape: tuple[int, ...] = ()
    # Blocks may lie across two row groups.
    self._group = functools.lru_cache(maxsize=2)(self._read)

  def __len__(self) -> int:
    return self._file.starts[-1]

  def __getitem__(self, index: slice) -> np.ndarray:
    start, stop, _ = index.indices(len(self))
    edges = self._file.starts
    parts = [
      self._group(i)[max(start - first, 0) : stop - first]
      for i, (first, last) in enumerate(itertools.pairwise(edges))
      if max(start, first) < min(stop, last)
    ]
    return np.concatenate(parts) if len(parts) > 1 else parts[0]

  def _read(self, group: int) -> np.ndarray:
    """The values of a row group."""
    table = self._file.read(group, self._names)
    first = self._file.starts[group]
    found = [
      _values(self._file.path, name, table.column(name), first)
      for name in self._names
    ]
    values = found[0] if len(found) == 1 else np.stack(found, axis=-1)
    self._shape = self._shape or values.shape[1:]
    if values.shape[1:] != self._shape:
      rule = (
        f"column {self._names[0]} has values of shape {list(self._shape)} and, "
        f"in rows from {first} on, {list(values.shape[1:])}"
      )
      raise _refused(
        self._file.path, rule, "give every row equally many values"
      )
    return values


def _values(
  path: pathlib.Path, name: str, chunked: Any, first: int
) -> np.ndarray:
  """The numbers of a column from row `first` on.

  Raises:
    InputError: a value is null, or lists differ in length.
  """
  array = chunked.combine_chunks()
  shape = [len(array)]
  while True:
    if array.null_count:
      rows = max(shape[0], 1)
      place = int(np.flatnonzero(array.is_null())[0]) * rows // len(array)
      rule = f"column {name} has a null in row {first + place}"
      raise _refused(path, rule, "leave those rows out, or fill them")
    if not _is_list(array.type):
      return array.to_numpy(zero_copy_only=False).reshape(shape)
    lengths = np.asarray(_pyarrow().compute.list_value_length(array))
    odd = np.flatnonzero(lengths != lengths[:1])
    if len(odd):
      place = int(odd[0]) * shape[0] // len(array)
      rule = (
        f"column {name} has lists of {lengths[0]} and of {lengths[odd[0]]} "
        f"values, the latter in row {first + place}"
      )
      raise _refused(path, rule, "give every row equally many values")
    shape.append(int(lengths[0]) if len(lengths) else 0)
    array = array.flatten()


class _File:
  """An open file; used by one thread at a time."""

  def __init__(self, path: pathlib.Path):
    self.path, self._lock = path, threading.Lock()
    parquet = _pyarrow(path).parquet
    with _readable(path):
      self._file = parquet.ParquetFile(path, page_checksum_verification=True)
    meta = self._file.metadata
    sizes = [meta.row_group(i).num_rows for i in range(meta.num_row_groups)]
    self.starts = list(itertools.accumulate(sizes, initial=0))

  @property
  def schema(self) -> Any:
    return self._file.schema_arrow

  def read(self, group: int, names: Sequence[str]) -> Any:
    """Columns of a row group, as a table."""
    with self._lock, _readable(self.path):
      return self._file.read_row_group(group, columns=list(names))


def _is_list(kind: Any) -> bool:
  types = _pyarrow().types
  return (
    types.is_list(kind)
    or types.is_large_list(kind)
    or types.is_fixed_size_list(kind)
  )


def _pyarrow(path: pathlib.Path | None = None) -> Any:
  """The package pyarrow with its parts compute, parquet and types.

  Raises:
    InputError: it is not installed.
  """
  try:
    for part in ("compute", "parquet", "types"):
      importlib.import_module(f"pyarrow.{part}")
    return importlib.import_module("pyarrow")
  except ImportError as error:
    raise InputError(
      "source",
      path,
      "needs the package pyarrow, which is not installed",
      "run: pip install 'saejax[parquet]'",
    ) from error


@contextlib.contextmanager
def _readable(path: pathlib.Path) -> Iterator[None]:
  """Names the file that cannot be read."""
  try:
    yield
  except (OSError, _pyarrow().ArrowException) as error:
    found = " ".join(str(error).split())
    rule = f"cannot be read ({type(error).__name__}: {found})"
    raise _refused(path, rule, "restore the file, or convert it") from error


def _refused(path: pathlib.Path, rule: str, remedy: str) -> InputError:
  return InputError("source", path, rule, remedy)
