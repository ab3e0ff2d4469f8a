"""The zarr3 arrays of a store: rows and the provenance of each row.

`x` [capacity, d] has shards of `shard_rows` rows, the unit of writing, made of
chunks of `chunk_rows` rows, the unit of reading; `doc`, `pos`, `tok`
[capacity] have one chunk a shard. Every chunk carries a crc32c. What was not
written reads as an error and never as zeros.
"""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import tensorstore as ts

from saejax.errors import InputError

PROVENANCE = {"doc": "int64", "pos": "int32", "tok": "int32"}
NAMES = ("x", *PROVENANCE)

_BYTES = [
  {"name": "bytes", "configuration": {"endian": "little"}},
  {"name": "crc32c"},
]
_PROCESS = os.getpid()


def create(path: pathlib.Path, meta: Mapping[str, Any]) -> dict[str, Any]:
  """Opens the arrays of a store for writing, making those that are not there.

  Args:
    path: folder of the store.
    meta: its metadata; d, dtype, capacity, chunk_rows and shard_rows are used.
  """
  check_process(path)
  shard = meta["shard_rows"]
  metadata = {
    name: _metadata([meta["capacity"]], dtype, [shard], _BYTES)
    for name, dtype in PROVENANCE.items()
  }
  sharding = {
    "name": "sharding_indexed",
    "configuration": {
      "chunk_shape": [meta["chunk_rows"], meta["d"]],
      "codecs": _BYTES,
      "index_codecs": _BYTES,
      "index_location": "end",
    },
  }
  metadata["x"] = _metadata(
    [meta["capacity"], meta["d"]], meta["dtype"], [shard, meta["d"]], [sharding]
  )
  return {
    name: ts.open(
      _spec(path / name)
      | {
        "metadata": metadata[name],
        # Rows of zeros are rows: a chunk that is left out is a missing one.
        "store_data_equal_to_fill_value": True,
      },
      create=True,
      open=True,
    ).result()
    for name in NAMES
  }


def open_(path: pathlib.Path, name: str) -> Any:
  """Opens one array for reading."""
  check_process(path)
  return ts.open(
    _spec(path / name) | {"fill_missing_data_reads": False}, open=True
  ).result()


def shard_files(first: int, rows: int, meta: Mapping[str, Any]) -> list[str]:
  """Names, relative to the store, of the shards that hold rows."""
  shard = meta["shard_rows"]
  found = []
  for i in range(first // shard, -(-(first + rows) // shard)):
    found.append(f"x/c/{i}/0")
    found += [f"{name}/c/{i}" for name in PROVENANCE]
  return found


def check_process(path: pathlib.Path) -> None:
  """Refuses a forked child, in which TensorStore would abort or hang."""
  if os.getpid() != _PROCESS:
    raise InputError(
      "harvest.dir",
      path,
      "a store cannot be used in a forked child process",
      "use threads, or start processes by spawn",
    )


def _spec(path: pathlib.Path) -> dict[str, Any]:
  kvstore = {"driver": "file", "path": str(path.resolve())}
  return {"driver": "zarr3", "kvstore": kvstore}


def _metadata(
  shape: list[int], dtype: str, chunk: list[int], codecs: list[Any]
) -> dict[str, Any]:
  grid = {"name": "regular", "configuration": {"chunk_shape": chunk}}
  return {
    "shape": shape,
    "data_type": dtype,
    "chunk_grid": grid,
    "codecs": codecs,
    "fill_value": 0,
  }
