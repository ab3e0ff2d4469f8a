"""The zarr3 arrays of a store, one per column.

A column is [capacity, ...] with shards of `shard_rows` rows, the unit of
writing, made of chunks of `chunk_rows` rows, the unit of reading. Every chunk
carries a crc32c, and the ledger a second checksum that covers column and row
numbers, so that intact chunks in the wrong place are detected. Reading a chunk
that was not written is an error and never gives zeros.
"""

import os
import re
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from saejax.data.store import place as places
from saejax.data.store.columns import Column
from saejax.data.store.place import Place
from saejax.errors import InputError

_BYTES = [
  {"name": "bytes", "configuration": {"endian": "little"}},
  {"name": "crc32c"},
]
_COMPRESSIONS: dict[str | None, list[dict[str, Any]]] = {
  None: [],
  "zstd": [{"name": "zstd", "configuration": {"level": 3}}],
}
_PROCESS = os.getpid()


def create(
  place: Place, meta: Mapping[str, Any], columns: Mapping[str, Column]
) -> dict[str, Any]:
  """Opens the arrays of a store for writing; creates missing ones.

  Args:
    place: the store.
    meta: its metadata; capacity, chunk_rows and shard_rows are used.
    columns: its columns.

  Raises:
    InputError: an array there is damaged or of another layout.
  """
  import tensorstore as ts  # only where there is a store

  check_process(place)
  found = {}
  for name, column in columns.items():
    spec = _spec(place, name) | {
      "metadata": _metadata(meta, column),
      # Chunks of zeros are stored too: an absent chunk is always a missing one.
      "store_data_equal_to_fill_value": True,
    }
    try:
      opening = ts.open(spec, create=True, open=True, context=places.context())
      found[name] = place.wait(opening)
    except ValueError as error:
      if not re.match(
        "FAILED_PRECONDITION|INVALID_ARGUMENT|DATA_LOSS", str(error)
      ):
        raise  # of the disk or the object store
      raise InputError(
        "path",
        str(place / f"{name}/zarr.json"),
        f"must describe the array of the store ({error})",
        "delete the folder and write it again",
      ) from error
  return found


def open_(place: Place, name: str) -> Any:
  """Opens one array for reading.

  Args:
    place: the store.
    name: name of the column.

  Returns:
    A TensorStore [capacity, ...]; reading a missing chunk is an error.
  """
  import tensorstore as ts

  check_process(place)
  spec = _spec(place, name) | {"fill_missing_data_reads": False}
  return place.wait(ts.open(spec, open=True, context=places.context()))


def shards(
  name: str, column: Column, first: int, rows: int, meta: Mapping[str, Any]
) -> list[tuple[str, int | None]]:
  """Names, relative to the store, and sizes of the shards with rows of a column.

  Args:
    name: name of the column.
    column: its declaration.
    first: first row, a multiple of shard_rows.
    rows: number of rows.
    meta: metadata of the store; shard_rows, chunk_rows and compression are used.

  Returns:
    (name, bytes) of each; the size of a compressed shard is not known, None.
  """
  shard, chunk = meta["shard_rows"], meta["chunk_rows"]
  found = []
  for start in range(0, rows, shard):
    chunks = -(-min(shard, rows - start) // chunk)
    # Each chunk and the index, of 16 bytes a chunk, end with a checksum.
    size = (
      chunks * (chunk * column.stored_row_bytes + 4) + shard // chunk * 16 + 4
    )
    rest = "/0" * len(column.shape)
    file = f"{name}/c/{(first + start) // shard}{rest}"
    found.append((file, None if meta.get("compression") else size))
  return found


def checksums(
  name: str, first: int, values: np.ndarray, chunk_rows: int
) -> list[int]:
  """Checksum of each chunk of decoded rows that begin at row `first`.

  Args:
    name: name of the column.
    first: row number of values[0], a multiple of chunk_rows.
    values: rows of the column [rows, ...] as stored.
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


def check_process(place: object) -> None:
  """Raises an error in a forked child, where TensorStore could abort or hang.

  Args:
    place: the store, for the message.

  Raises:
    InputError: the process was forked after this module was imported.
  """
  if os.getpid() != _PROCESS:
    raise InputError(
      "path",
      str(place),
      "a store cannot be used in a forked child process",
      "use threads, or start processes by spawn",
    )


def _spec(place: Place, name: str) -> dict[str, Any]:
  return {"driver": "zarr3", "kvstore": place.kvstore(name)}


def _metadata(meta: Mapping[str, Any], column: Column) -> dict[str, Any]:
  shard, shape = meta["shard_rows"], list(column.shape)
  sharding = {
    "name": "sharding_indexed",
    "configuration": {
      "chunk_shape": [meta["chunk_rows"], *shape],
      "codecs": [_BYTES[0], *_COMPRESSIONS[meta.get("compression")], _BYTES[1]],
      "index_codecs": _BYTES,
      "index_location": "end",
    },
  }
  grid = {"name": "regular", "configuration": {"chunk_shape": [shard, *shape]}}
  return {
    "shape": [meta["capacity"], *shape],
    "data_type": column.stored_dtype,
    "chunk_grid": grid,
    "codecs": [sharding],
    "fill_value": False if column.dtype == "bool" else 0,
  }
