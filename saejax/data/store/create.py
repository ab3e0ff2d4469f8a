"""Writes stores from arrays in memory, such as your own activations."""

import hashlib
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from saejax import durable
from saejax.data.store import columns as declarations
from saejax.data.store import manifest, reader, writer
from saejax.data.store.columns import Column
from saejax.errors import InputError

BUCKET_ROWS, SHARD_ROWS, CHUNK_ROWS = 131_072, 32_768, 4_096


def write_store(
  path: str | pathlib.Path,
  columns: Mapping[str, Any] | np.ndarray,
  *,
  about: Mapping[str, Any] | None = None,
  split: str | None = None,
  shuffle_seed: int | None = 0,
  declare: Mapping[str, Column] | None = None,
  group: str | None = None,
  bucket_rows: int = BUCKET_ROWS,
  shard_rows: int = SHARD_ROWS,
  chunk_rows: int = CHUNK_ROWS,
) -> reader.Store:
  """Writes a store from arrays, or opens it if an equal call wrote it.

  Args:
    path: folder of the store.
    columns: arrays [rows, ...] by name, stored as given, or only x [rows, d].
      "x" are the activations; "target", "cond", "score" and "weight" are given
      to training too; others, such as "doc", say where a row comes from.
    about: further metadata, such as {"model": {"name": ...}}.
    split: "train" or "held_out", so that the two are not exchanged.
    shuffle_seed: seed for shuffling rows in a bucket; None keeps the order.
    declare: declarations of columns beyond what their names and arrays say.
    group: the column whose equal values in consecutive rows mark a group, such
      as the halves of a pair or the tokens of a window. Groups have equally
      many rows and are shuffled as a whole.
    bucket_rows: rows shuffled together; a multiple of shard_rows.
    shard_rows: rows per file; a multiple of chunk_rows.
    chunk_rows: rows read at once.

  Raises:
    InputError: columns differ in length, cannot be stored or hold no rows;
      sizes do not nest; the folder holds something else or is damaged.

  >>> import tempfile
  >>> folder = tempfile.mkdtemp() + "/store"
  >>> x = np.arange(12, dtype=np.float32).reshape(6, 2)
  >>> write_store(folder, {"x": x, "user": np.arange(6)}).rows
  6
  """
  if not isinstance(columns, Mapping):
    columns = {"x": columns}
  values = {k: declarations.native(v) for k, v in columns.items()}
  rows = _rows(values)
  declared = declarations.declare(values, declare)
  content = hashlib.sha256()
  for column in values.values():
    content.update(np.ascontiguousarray(column).reshape(-1).view(np.uint8).data)
  sizes = {
    "bucket_rows": bucket_rows,
    "shard_rows": shard_rows,
    "chunk_rows": chunk_rows,
    "group": group and {"column": group, "rows": group_rows(values, group)},
  }
  writer.check_sizes(sizes)
  meta = dict(about or {}) | {
    "arrays": content.hexdigest(),
    "format": manifest.FORMAT,
    "columns": {name: column.to_json() for name, column in declared.items()},
    "rows": rows,
    "capacity": -(-rows // bucket_rows) * bucket_rows,
    "shuffled": shuffle_seed is not None,
    "seed": shuffle_seed or 0,
    "split": split,
    **sizes,
  }
  path = pathlib.Path(path)
  if (path / manifest.NAME).is_file():
    found = reader.open(path)
    if durable.digest(found.meta) == durable.digest(meta):
      return found
  out = writer.Writer(path, meta)
  try:
    for start in range(out.rows, rows, bucket_rows):
      part = {k: v[start : start + bucket_rows] for k, v in values.items()}
      stop = start + len(part["x"])
      out.write(part, resume={"row": stop}, read=len(part["x"]))
    out.finish()
  finally:
    out.close()
  return reader.open(path)


def _rows(values: Mapping[str, np.ndarray]) -> int:
  """Rows of columns of equal length."""
  counts = {name: len(v) if v.ndim else 0 for name, v in values.items()}
  rows = counts.get("x", 0)
  if set(counts.values()) != {rows} or not rows:
    raise InputError(
      "columns",
      counts,
      "must hold x, and all equally many rows, at least one",
      "give each column one entry per row",
    )
  return rows


def group_rows(values: Mapping[str, np.ndarray], group: str) -> int:
  """Number of rows per group, from runs of equal values in a column.

  Raises:
    InputError: no such column, or runs of different lengths.
  """
  if group not in values:
    raise InputError(
      "group",
      group,
      f"must be one of the columns {', '.join(values)}",
      "add the key of the groups as a column",
    )
  key = values[group].reshape(len(values[group]), -1)
  edges = np.flatnonzero((key[1:] != key[:-1]).any(axis=-1)) + 1
  lengths = np.unique(np.diff(np.concatenate([[0], edges, [len(key)]])))
  if len(lengths) > 1:
    raise InputError(
      "group",
      group,
      f"groups must have equally many rows, have {lengths.tolist()[:8]}",
      "leave out the rows of incomplete groups",
    )
  return int(lengths[0])
