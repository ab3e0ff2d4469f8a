"""Columns stored as int8 codes with a scale per row.

  code = round(x / s) in [-127, 127],  s = max_d |x_d| / 127,  x' = s code

The scales are a column of their own (`columns.scale_name`). A scale per row clips
nothing; one per dimension, taken from the first rows, would clip later ones.
"""

from collections.abc import Mapping

import numpy as np

from saejax.data.store.columns import Column, scale_name
from saejax.errors import InputError

_LARGEST = 127
_BLOCK_ROWS = 4096  # encoded at once, so that little is held beside the rows


def encode(
  values: Mapping[str, np.ndarray], columns: Mapping[str, Column]
) -> dict[str, np.ndarray]:
  """Replaces columns that are stored as codes by their codes and scales.

  Args:
    values: columns [rows, ...] by name.
    columns: declarations.

  Raises:
    InputError: a value is not finite, which codes cannot hold.
  """
  found = dict(values)
  for name, column in columns.items():
    if column.code and name in values:
      found[name], found[scale_name(name)] = _encoded(name, values[name])
  return found


def _encoded(name: str, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  code, scale = np.empty(x.shape, np.int8), np.empty(x.shape[:-1], np.float32)
  for i in range(0, len(x), _BLOCK_ROWS):
    part = np.asarray(x[i : i + _BLOCK_ROWS], np.float32)
    s = np.abs(part).max(axis=-1, initial=0) / np.float32(_LARGEST)
    if not np.isfinite(s).all():
      raise InputError(
        name,
        "int8",
        f"rows from {i} on have a value that is not finite",
        "leave these rows out, or store float32",
      )
    whole = np.rint(part / np.where(s > 0, s, 1)[..., None])
    code[i : i + len(part)] = np.clip(whole, -_LARGEST, _LARGEST)
    scale[i : i + len(part)] = s
  return code, scale


def read(
  stored: Mapping[str, np.ndarray], name: str, column: Column
) -> np.ndarray:
  """Returns the rows of a column as they will be read.

  Args:
    stored: columns as stored, with their scales.
    name: name of the column.
    column: its declaration.
  """
  if not column.code:
    return stored[name]
  return decode(stored[name], stored[scale_name(name)], column)


def decode(code: np.ndarray, scale: np.ndarray, column: Column) -> np.ndarray:
  """Returns the rows s code in the dtype of the column.

  Args:
    code: codes [rows, ..., d] int8.
    scale: scales [rows, ...] float32.
    column: declaration of the column.
  """
  rows = np.multiply(code, scale[..., None], dtype=np.float32)
  return rows.astype(column.dtype, copy=False)


def error(x: np.ndarray) -> dict[str, float]:
  """Measures what int8 codes lose of rows.

  Args:
    x: finite rows [rows, ..., d].

  Returns:
    "relative_error" |x - x'| / |x|, the mean over rows, and "fvu" the sum of
    squared errors over that around the mean: what a perfect reconstruction of
    the codes leaves unexplained of x.

  >>> error(np.asarray([[1.0, 127.0], [127.0, 0.4]]))["relative_error"]
  0.0015...
  """
  x = np.asarray(x, np.float32)
  code, scale = _encoded("x", x)
  lost = x - code * scale[..., None]
  norm = np.linalg.norm(x, axis=-1)
  share = np.linalg.norm(lost, axis=-1)[norm > 0] / norm[norm > 0]
  spread = np.square(x - x.mean(axis=0), dtype=np.float64).sum()
  squares = np.square(lost, dtype=np.float64).sum()
  return {
    "relative_error": float(share.mean()) if len(share) else 0.0,
    "fvu": float(squares / spread) if spread else 0.0,
  }
