"""Writes stores from arrays in memory, such as your own activations."""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from saejax import durable
from saejax.data.store import columns as declarations
from saejax.data.store import manifest, reader, writer
from saejax.data.store import place as places
from saejax.data.store.columns import Column
from saejax.errors import InputError

BUCKET_ROWS, SHARD_ROWS, CHUNK_ROWS = 131_072, 32_768, 4_096


def write_store(
  path: places.Path,
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
    path: folder of the store, or its URL, see `place.at`.
    columns: arrays [rows, ...] by name, stored as given, or only x [rows, d].
      "x" is the activations; training also reads "target", "cond", "score" and
      "weight"; other columns, such as "doc", are provenance.
    about: further metadata, such as {"model": {"name": ...}}.
    split: "train" or "held_out", checked by training and evaluation.
    shuffle_seed: seed for shuffling rows in a bucket; None keeps the order.
    declare: declarations of columns, where the defaults from their names and
      arrays are not enough.
    group: column whose equal values in consecutive rows mark a group, such as
      the halves of a pair or the tokens of a window. All groups have the same
      number of rows and are shuffled as units.
    bucket_rows: rows shuffled together; a multiple of shard_rows.
    shard_rows: rows per file; a multiple of chunk_rows.
    chunk_rows: rows per chunk, the unit of reading.

  Returns:
    The store.

  Raises:
    InputError: columns differ in length, cannot be stored or have no rows;
      sizes are not multiples; the folder has other contents or is damaged.

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
  declared = declarations.with_scales(declared)
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
  place = places.at(path)
  if manifest.NAME in place.read([manifest.NAME]):
    store = reader.open(place)
    if durable.digest(store.meta) == durable.digest(meta):
      return store
  with writer.Writer(place, meta) as out:
    buckets = -(-rows // bucket_rows)
    for bucket in range(buckets):
      if bucket not in out.entries:
        part = slice(bucket * bucket_rows, (bucket + 1) * bucket_rows)
        of_bucket = {name: v[part] for name, v in values.items()}
        out.write(bucket, of_bucket, read=len(of_bucket["x"]))
    out.finish(buckets)
  return reader.open(place)


def _rows(values: Mapping[str, np.ndarray]) -> int:
  """Returns the number of rows; checks that columns are equally long."""
  counts = {name: len(v) if v.ndim else 0 for name, v in values.items()}
  rows = counts.get("x", 0)
  if set(counts.values()) != {rows} or not rows:
    raise InputError(
      "columns",
      counts,
      "must include x and have equally many rows, at least one",
      "give each column one entry per row",
    )
  return rows


def group_rows(values: Mapping[str, np.ndarray], group: str) -> int:
  """Returns the number of rows per group.

  A group is a run of equal values in consecutive rows of the column.

  Args:
    values: columns by name.
    group: name of the column.

  Raises:
    InputError: there is no such column, or runs differ in length.

  >>> group_rows({"pair": np.array([0, 0, 1, 1])}, "pair")
  2
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
      "remove the rows of incomplete groups",
    )
  return int(lengths[0])
