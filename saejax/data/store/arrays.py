"""The zarr3 arrays of a store, one per column.

A column is [capacity, ...] with shards of `shard_rows` rows, the unit of
writing, made of chunks of `chunk_rows` rows, the unit of reading. Every chunk
carries a crc32c, and the ledger a second checksum that covers column and row
numbers, so that intact chunks in the wrong place are detected. Reading a chunk
that was not written is an error and never gives zeros.
"""

import os
import pathlib
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from saejax.data.store.columns import Column
from saejax.errors import InputError

_BYTES = [
  {"name": "bytes", "configuration": {"endian": "little"}},
  {"name": "crc32c"},
]
_PROCESS = os.getpid()


def create(
  path: pathlib.Path, meta: Mapping[str, Any], columns: Mapping[str, Column]
) -> dict[str, Any]:
  """Opens the arrays of a store for writing; creates missing ones.

  Args:
    path: folder of the store.
    meta: its metadata; capacity, chunk_rows and shard_rows are used.
    columns: its columns.

  Raises:
    InputError: an array there is damaged or of another layout.
  """
  import tensorstore as ts  # only where there is a store

  check_process(path)
  found = {}
  for name, column in columns.items():
    spec = _spec(path / name) | {
      "metadata": _metadata(meta, column),
      # Chunks of zeros are stored too: an absent chunk is always a missing one.
      "store_data_equal_to_fill_value": True,
    }
    try:
      found[name] = ts.open(spec, create=True, open=True).result()
    except ValueError as error:
      if "os_error_code" in str(error):
        raise  # of the disk
      raise InputError(
        "path",
        path / name / "zarr.json",
        f"must describe the array of the store ({error})",
        "delete the folder and write it again",
      ) from error
  return found


def open_(path: pathlib.Path, name: str) -> Any:
  """Opens one array for reading.

  Args:
    path: folder of the store.
    name: name of the column.

  Returns:
    A TensorStore [capacity, ...]; reading a missing chunk is an error.
  """
  import tensorstore as ts

  check_process(path)
  return ts.open(
    _spec(path / name) | {"fill_missing_data_reads": False}, open=True
  ).result()


def shard_files(
  name: str, column: Column, first: int, rows: int, shard_rows: int
) -> list[str]:
  """Names, relative to the store, of the shards that hold rows of a column.

  Args:
    name: name of the column.
    column: its declaration.
    first: first row.
    rows: number of rows.
    shard_rows: rows per shard.
  """
  rest = "/0" * len(column.shape)
  shards = range(first // shard_rows, -(-(first + rows) // shard_rows))
  return [f"{name}/c/{i}{rest}" for i in shards]


def checksums(
  name: str, first: int, values: np.ndarray, chunk_rows: int
) -> list[int]:
  """Checksum of each chunk of decoded rows that begin at row `first`.

  Args:
    name: name of the column.
    first: row number of values[0], a multiple of chunk_rows.
    values: rows of the column [rows, ...].
    chunk_rows: rows per chunk; the last chunk may be shorter.
  """
  return [
    _checksum(name, first + i, values[i : i + chunk_rows])
    for i in range(0, len(values), chunk_rows)
  ]


def _checksum(name: str, first: int, values: np.ndarray) -> int:
  start = zlib.crc32(f"{name} {first} {len(values)}".encode())
  flat = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
  return zlib.crc32(flat, start)


def check_process(path: pathlib.Path) -> None:
  """Raises an error in a forked child, where TensorStore could abort or hang.

  Args:
    path: folder of the store, for the message.

  Raises:
    InputError: the process was forked after this module was imported.
  """
  if os.getpid() != _PROCESS:
    raise InputError(
      "path",
      path,
      "a store cannot be used in a forked child process",
      "use threads, or start processes by spawn",
    )


def _spec(path: pathlib.Path) -> dict[str, Any]:
  kvstore = {"driver": "file", "path": str(path.resolve())}
  return {"driver": "zarr3", "kvstore": kvstore}


def _metadata(meta: Mapping[str, Any], column: Column) -> dict[str, Any]:
  shard, shape = meta["shard_rows"], list(column.shape)
  sharding = {
    "name": "sharding_indexed",
    "configuration": {
      "chunk_shape": [meta["chunk_rows"], *shape],
      "codecs": _BYTES,
      "index_codecs": _BYTES,
      "index_location": "end",
    },
  }
  grid = {"name": "regular", "configuration": {"chunk_shape": [shard, *shape]}}
  return {
    "shape": [meta["capacity"], *shape],
    "data_type": column.dtype,
    "chunk_grid": grid,
    "codecs": [sharding],
    "fill_value": False if column.dtype == "bool" else 0,
  }
