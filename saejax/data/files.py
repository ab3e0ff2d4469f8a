"""Arrays on disk as row sources: .npy, .npz, .safetensors, .parquet and zarr.

The array of a file with one array is x; with several, each array is the column
of its name (see `parquet` for tables with one column per coordinate). Rows are
read in blocks, so that files may be larger than memory (except .npz, whose
arrays are read whole).
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import tensorstore as ts

from saejax import durable
from saejax.data import fill, parquet
from saejax.data import rows as rows_lib
from saejax.data.store import columns as declarations
from saejax.data.store import create, reader
from saejax.data.store import place as places
from saejax.errors import InputError

_SAFETENSORS = {
  "BOOL": "bool",
  "BF16": "bfloat16",
  **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
  **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
  **{f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
}


def array_rows(
  source: str | pathlib.Path | Mapping[str, Any] | np.ndarray,
  *,
  about: Mapping[str, Any] | None = None,
  group: str | None = None,
) -> rows_lib.ArrayRows:
  """A row source of arrays in memory or on disk.

  Args:
    source: x [rows, d], arrays [rows, ...] by column name, or the path of a
      .npy, .npz, .safetensors or .parquet file, a zarr array or a folder of
      zarr arrays.
    about: further metadata of the store.
    group: column whose equal values mark a group, see `write_store`.

  Raises:
    InputError: the file has an unknown format, is damaged or has no x; columns
      differ in length; or a column of a table does not hold numbers of one
      shape.

  >>> array_rows(np.zeros((6, 2), np.float32)).rows
  6
  """
  if isinstance(source, (str, pathlib.Path)):
    arrays = _open(pathlib.Path(source).expanduser())
  else:
    arrays = dict(source) if isinstance(source, Mapping) else {"x": source}
  if len(arrays) == 1:
    arrays = {"x": next(iter(arrays.values()))}
  counts = {name: len(array) for name, array in arrays.items()}
  if len(set(counts.values())) != 1 or not counts.get("x"):
    raise InputError(
      "source",
      source if isinstance(source, (str, pathlib.Path)) else counts,
      f"must have x, and an equal number of rows in all columns, has {counts}",
      "name the activations x and give each column one entry per row",
    )
  first = {n: declarations.native(a[:1]) for n, a in arrays.items()}
  grouped = None
  if group is not None:
    key = {n: np.asarray(a[:]) for n, a in arrays.items() if n == group}
    grouped = {"column": group, "rows": create.group_rows(key, group)}
  array_source = rows_lib.ArrayRows(
    arrays=arrays, columns=declarations.declare(first), about={}, group=grouped
  )
  return dataclasses.replace(
    array_source, about=dict(about or {}) | {"arrays": _digest(array_source)}
  )


def harvest(
  source: Any,
  folder: places.Path,
  *,
  rows: int,
  held_out_rows: int = 0,
  shuffle_seed: int = 0,
  bucket_rows: int = create.BUCKET_ROWS,
  shard_rows: int = create.SHARD_ROWS,
  chunk_rows: int = create.CHUNK_ROWS,
  progress: fill.Progress | None = None,
) -> tuple[reader.Store, reader.Store | None]:
  """Writes the rows of arrays into a training and a held-out store.

  The last rows are held out, in order; the first `rows` of the others are
  shuffled. Repeating the call resumes after a kill at any moment, or opens the
  stores if they are complete.

  Args:
    source: arrays or their path, see `array_rows`, or an `ArrayRows`.
    folder: parent of the two stores, whose names follow from their metadata.
    rows: maximum number of rows in the training store.
    held_out_rows: rows of the held-out store; 0 for none.
    shuffle_seed: seed for shuffling.
    bucket_rows: rows shuffled together.
    shard_rows: rows per file.
    chunk_rows: rows per chunk, the unit of reading.
    progress: see `fill.fill`.

  Returns:
    (training store, held-out store or None).

  Raises:
    InputError: the arrays cannot be read or have too few rows.

  >>> import tempfile
  >>> import numpy as np
  >>> x = np.arange(20, dtype=np.float32).reshape(10, 2)
  >>> train, held_out = harvest(
  ...   x, tempfile.mkdtemp(), rows=8, held_out_rows=2
  ... )
  >>> train.rows, held_out.rows
  (8, 2)
  """
  if not isinstance(source, rows_lib.ArrayRows):
    source = array_rows(source)
  group = (source.group or {"rows": 1})["rows"]
  held = held_out_rows - held_out_rows % group
  left = source.rows - held
  if left < 1 or rows < group or held_out_rows < 0:
    raise InputError(
      "held_out_rows",
      held_out_rows,
      f"must be in [0, {source.rows - 1}], to leave some of the {source.rows} "
      "rows for training",
      f"use at most {source.rows - 1}, or pass more rows",
    )
  stop = min(rows - rows % group, left)
  stores = []
  for split, part, seed in (
    (rows_lib.TRAIN, source.part(0, stop), shuffle_seed),
    (rows_lib.HELD_OUT, source.part(left, source.rows), None),
  ):
    if not part.rows:
      return stores[0], None
    meta = fill.describe(
      part,
      rows=part.rows,
      split=split,
      shuffle_seed=seed,
      bucket_rows=bucket_rows,
      shard_rows=shard_rows,
      chunk_rows=chunk_rows,
    )
    path = places.at(folder) / f"store-{durable.digest(meta)[:16]}"
    stores.append(fill.fill(part, path, meta, progress=progress))
  return stores[0], stores[1]


def _digest(source: rows_lib.ArrayRows) -> str:
  """SHA-256 of all values, block by block."""
  digest = hashlib.sha256()
  for block in source.blocks([rows_lib.Span(0, source.rows)]):
    for values in block.values.values():
      digest.update(
        np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
      )
  return digest.hexdigest()


def _open(path: pathlib.Path) -> dict[str, Any]:
  readers = {
    ".npy": lambda: {"x": np.load(path, mmap_mode="r", allow_pickle=False)},
    ".npz": lambda: dict(np.load(path, allow_pickle=False)),
    ".safetensors": lambda: _safetensors(path),
    ".parquet": lambda: dict(parquet.columns(path)),
  }
  read = readers.get(path.suffix)
  if read is None and path.is_dir():
    read = lambda: _zarr(path)
  if read is None:
    raise InputError(
      "source",
      path,
      f"must be a file {', '.join(readers)} or a folder of zarr arrays",
      "convert it, or pass arrays",
    )
  try:
    return read()
  except InputError:
    raise
  except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
    raise InputError(
      "source",
      path,
      f"cannot be read ({type(error).__name__}: {error})",
      "restore the file, or convert it",
    ) from error


def _safetensors(path: pathlib.Path) -> dict[str, Any]:
  """Maps the arrays of a file into memory, including bfloat16 ones."""
  with path.open("rb") as file:
    size = int.from_bytes(file.read(8), "little")
    if not 2 <= size <= path.stat().st_size - 8:
      raise ValueError("the header does not fit into the file")
    header = json.loads(file.read(size))
  header.pop("__metadata__", None)
  arrays = {}
  for name, entry in header.items():
    first, last = entry["data_offsets"]
    dtype = _SAFETENSORS[entry["dtype"]]
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    arrays[name] = np.memmap(
      path, kind, "r", offset=8 + size + first, shape=tuple(entry["shape"])
    )
    if arrays[name].nbytes != last - first:
      raise ValueError(f"{name} has {last - first} bytes")
  return arrays


def _zarr(path: pathlib.Path) -> dict[str, Any]:
  """One array, or a folder of arrays by name."""
  arrays = {}
  for folder in (path, *sorted(path.iterdir())):
    for driver, mark in (("zarr3", "zarr.json"), ("zarr", ".zarray")):
      file = folder / mark
      if file.is_file() and "shape" in json.loads(file.read_bytes()):
        name = "x" if folder == path else folder.name
        kvstore = {"driver": "file", "path": str(folder.resolve())}
        spec = {"driver": driver, "kvstore": kvstore}
        arrays[name] = _Tensor(ts.open(spec, open=True).result())
  if not arrays:
    raise ValueError("the folder has no zarr array")
  return arrays


@dataclasses.dataclass(frozen=True, eq=False)
class _Tensor:
  """A TensorStore array with `len` and slices that give NumPy arrays."""

  array: Any

  def __len__(self) -> int:
    return self.array.shape[0]

  def __getitem__(self, index: slice) -> np.ndarray:
    start, stop, _ = index.indices(len(self))
    return self.array[start:stop].read().result()
