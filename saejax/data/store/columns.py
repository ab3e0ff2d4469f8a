"""The columns of a store, declared in its metadata.

Every row has an `x`, and optionally a target, a condition, a score, a weight and
provenance. A column has a dtype and a shape per row with named axes, such as
("site", "d").
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from saejax.errors import InputError

FLOATS = ("float16", "bfloat16", "float32", "float64")
DTYPES = (
  *FLOATS,
  "bool",
  *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
)
MEANINGS = {
  "x": "activations",
  "target": "reconstruction target instead of x",
  "cond": "condition of the row",
  "score": "score of the row",
  "weight": "weight of the row in the loss",
}
RESERVED = ("row", "ledger", "tokenizer", "c")
CODES = ("int8",)  # in which float columns can be stored, see `codes`


@dataclasses.dataclass(frozen=True, kw_only=True)
class Column:
  """The declaration of a column.

  Attributes:
    dtype: one of `DTYPES`; that of the values that are read.
    shape: shape per row; () for a number.
    axes: names of the axes of `shape`.
    about: description of its meaning.
    train: whether the loader reads it for training by default.
    code: "int8" where it is stored as codes with a scale per row, `codes`;
      "" where it is stored as it is.
  """

  dtype: str
  shape: tuple[int, ...] = ()
  axes: tuple[str, ...] = ()
  about: str = ""
  train: bool = False
  code: str = ""

  @property
  def size(self) -> int:
    """Numbers per row."""
    return math.prod(self.shape)

  @property
  def row_bytes(self) -> int:
    """Bytes per row in memory."""
    return self.size * np.dtype(self.dtype).itemsize

  @property
  def stored_dtype(self) -> str:
    """The dtype of its array in the store."""
    return self.code or self.dtype

  @property
  def stored_row_bytes(self) -> int:
    """Bytes per row of its array in the store."""
    return self.size * np.dtype(self.stored_dtype).itemsize

  @property
  def is_float(self) -> bool:
    """Whether it is of a float type; moments are stored for these."""
    return self.dtype in FLOATS

  def to_json(self) -> dict[str, Any]:
    """Returns the declaration as metadata."""
    found = dataclasses.asdict(self)
    if not self.code:
      del found["code"]
    return found | {"shape": list(self.shape), "axes": list(self.axes)}


def declare(
  columns: Mapping[str, np.ndarray],
  known: Mapping[str, Column] | None = None,
) -> dict[str, Column]:
  """Declares columns of arrays [rows, ...].

  Args:
    columns: arrays by name.
    known: declarations of some columns; others follow from name and array.

  Returns:
    Declarations by name.

  Raises:
    InputError: there is no x, or a name, dtype or shape cannot be stored.

  >>> declare({"x": np.zeros((5, 3), np.float32)})["x"].shape
  (3,)
  """
  declared = {}
  for name, array in columns.items():
    column = (known or {}).get(name) or _guess(name, array)
    if column.dtype != np.dtype(array.dtype).name or column.shape != (
      tuple(array.shape[1:])
    ):
      raise InputError(
        name,
        f"{np.dtype(array.dtype).name}{list(array.shape[1:])}",
        f"was declared as {column.dtype}{list(column.shape)}",
        "declare the dtype and the shape per row that it has",
      )
    declared[name] = column
  check(declared)
  return declared


def scale_name(name: str) -> str:
  """Name of the column with the scales of another's codes.

  Args:
    name: name of the column that is stored as codes.
  """
  return f"{name}_scale"


def with_scales(columns: Mapping[str, Column]) -> dict[str, Column]:
  """Adds the columns with the scales of those that are stored as codes.

  Args:
    columns: declarations by name.
  """
  found = {}
  for name, column in columns.items():
    found[name] = column
    if column.code:
      found[scale_name(name)] = Column(
        dtype="float32",
        shape=column.shape[:-1],
        axes=column.axes[:-1],
        about=f"scale of the codes of {name}",
      )
  return found


def _guess(name: str, array: np.ndarray) -> Column:
  shape = tuple(array.shape[1:])
  axes = (*(f"axis{i}" for i in range(len(shape) - 1)), "d")[-len(shape) :]
  return Column(
    dtype=np.dtype(array.dtype).name,
    shape=shape,
    axes=axes if shape else (),
    about=MEANINGS.get(name, ""),
    train=name in MEANINGS,
  )


def check(columns: Mapping[str, Column]) -> None:
  """Checks that columns can be stored.

  Args:
    columns: declarations by name.

  Raises:
    InputError: there is no x, or a name, dtype or shape cannot be stored.
  """
  if "x" not in columns:
    raise InputError(
      "columns", ", ".join(columns), "must include x", "name the activations x"
    )
  for name, column in columns.items():
    if name in RESERVED or not name.isidentifier():
      raise InputError(
        "columns",
        name,
        f"must be an identifier and none of {', '.join(RESERVED)}",
        "give the column another name",
      )
    if column.dtype not in DTYPES:
      raise InputError(
        name,
        column.dtype,
        f"the dtype must be one of {', '.join(DTYPES)}",
        "convert the column, for example text to numbers",
      )
    if column.code and (
      column.code not in CODES or not column.is_float or not column.shape
    ):
      raise InputError(
        name,
        f"{column.code} of {column.dtype}{list(column.shape)}",
        f"the code must be one of {', '.join(CODES)} or empty, of float vectors",
        "store it without a code",
      )
    if min(column.shape, default=1) < 1 or len(column.axes) != len(
      column.shape
    ):
      raise InputError(
        name,
        list(column.shape),
        f"must be a positive shape with as many sizes as axes ({column.axes})",
        "give a shape and the name of each of its axes",
      )


def from_json(record: Mapping[str, Mapping[str, Any]]) -> dict[str, Column]:
  """Reads declarations from metadata.

  Args:
    record: dicts written by `Column.to_json`, by name.

  Raises:
    InputError, TypeError, ValueError: the metadata is not valid.
  """
  declared = {
    name: Column(
      dtype=str(column["dtype"]),
      shape=tuple(int(size) for size in column["shape"]),
      axes=tuple(str(axis) for axis in column["axes"]),
      about=str(column["about"]),
      train=bool(column["train"]),
      code=str(column.get("code", "")),
    )
    for name, column in record.items()
  }
  check(declared)
  return declared


def native(array: Any) -> np.ndarray:
  """Converts an array to the byte order of the machine.

  Args:
    array: anything that `np.asarray` takes; two-byte raw values, which is how
      NumPy reads bfloat16 from a .npy file, become bfloat16.
  """
  values = np.asarray(array)
  if values.dtype.kind == "V" and values.dtype.itemsize == 2:
    return values.view(ml_dtypes.bfloat16)
  return values.astype(values.dtype.newbyteorder("="), copy=False)
