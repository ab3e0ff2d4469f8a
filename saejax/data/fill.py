"""Fills a store from a row source, resuming where an earlier call stopped.

Blocks are collected into a bucket, and a thread shuffles and writes one bucket
while the next is filled, so at most two are in memory. After each bucket the
ledger has the resume point: a block, and the number of its rows already used.
Repeating the call after a kill resumes there and gives the same bytes as an
uninterrupted run.
"""

import concurrent.futures
import pathlib
import shutil
import time
from collections.abc import Callable, Mapping
from typing import Any

from saejax import durable
from saejax.data import bucket, files
from saejax.data.rows import HELD_OUT, TRAIN, ArrayRows, RowSource
from saejax.data.store import create, manifest, reader, writer
from saejax.data.store.columns import Column
from saejax.errors import InputError

Progress = Callable[[dict[str, Any]], None]


def harvest(
  source: Any,
  folder: str | pathlib.Path,
  *,
  rows: int,
  held_out_rows: int = 0,
  shuffle_seed: int = 0,
  bucket_rows: int = create.BUCKET_ROWS,
  shard_rows: int = create.SHARD_ROWS,
  chunk_rows: int = create.CHUNK_ROWS,
  progress: Progress | None = None,
) -> tuple[reader.Store, reader.Store | None]:
  """Writes the rows of arrays into a training and a held-out store.

  The last rows are held out, in order; the first `rows` of the others are
  shuffled. Repeating the call resumes after a kill at any moment, or opens the
  stores if they are complete.

  Args:
    source: arrays or their path, see `files.array_rows`, or an `ArrayRows`.
    folder: parent of the two stores, whose names follow from their metadata.
    rows: maximum number of rows in the training store.
    held_out_rows: rows of the held-out store; 0 for none.
    shuffle_seed: seed for shuffling.
    bucket_rows: rows shuffled together.
    shard_rows: rows per file.
    chunk_rows: rows per chunk, the unit of reading.
    progress: see `fill`.

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
  if not isinstance(source, ArrayRows):
    source = files.array_rows(source)
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
    (TRAIN, source.part(0, stop), shuffle_seed),
    (HELD_OUT, source.part(left, source.rows), None),
  ):
    if not part.rows:
      return stores[0], None
    meta = describe(
      part,
      rows=part.rows,
      split=split,
      shuffle_seed=seed,
      bucket_rows=bucket_rows,
      shard_rows=shard_rows,
      chunk_rows=chunk_rows,
    )
    path = pathlib.Path(folder) / f"store-{durable.digest(meta)[:16]}"
    stores.append(fill(part, path, meta, progress=progress))
  return stores[0], stores[1]


def describe(
  source: RowSource,
  *,
  rows: int,
  split: str,
  shuffle_seed: int | None,
  bucket_rows: int,
  shard_rows: int,
  chunk_rows: int,
) -> dict[str, Any]:
  """Returns the metadata of a store, which determines all its bytes.

  Args:
    source: the rows.
    rows: maximum number of rows in the store.
    split: "train" or "held_out".
    shuffle_seed: seed for shuffling; None keeps the order of the source.
    bucket_rows: rows shuffled together.
    shard_rows: rows per file.
    chunk_rows: rows per chunk, the unit of reading.
  """
  return dict(source.about) | {
    "format": manifest.FORMAT,
    "columns": {name: c.to_json() for name, c in source.columns.items()},
    "group": None if source.group is None else dict(source.group),
    "rows": rows,
    "split": split,
    "capacity": -(-rows // bucket_rows) * bucket_rows,
    "shuffled": shuffle_seed is not None,
    "seed": shuffle_seed or 0,
    "bucket_rows": bucket_rows,
    "shard_rows": shard_rows,
    "chunk_rows": chunk_rows,
  }


def fill(
  source: RowSource,
  path: pathlib.Path,
  meta: Mapping[str, Any],
  *,
  progress: Progress | None = None,
) -> reader.Store:
  """Writes the store of a source, resumes writing it, or opens it if complete.

  A source with fewer rows than `meta["rows"]` gives a smaller store.

  Args:
    source: the rows.
    path: folder of the store.
    meta: metadata as returned by `describe`.
    progress: called about once per second with a dict: phase (the split), rows,
      rows_wanted, complete, and for this call seconds, rows_per_second, units
      read and dropped rows by rule.

  Raises:
    InputError: the source gives no rows, or the disk is full or not writable;
      finished buckets are kept.
  """
  if (path / manifest.NAME).exists():
    return reader.open(path)
  # Prepared before the folder is created, so that a refusal leaves no folder.
  prepared = None if path.exists() else source.prepare(None)
  out = writer.Writer(path, meta, files=source.files)
  try:
    check_space(path, out.columns, out.meta["rows"] - out.rows)
    prepared = prepared or source.prepare(out.calibration)
    if out.calibration is None and prepared is not None:
      out.calibrate(prepared)
    _fill(source, out, progress or (lambda _: None))
  finally:
    out.close()
  return reader.open(path)


def check_space(
  path: pathlib.Path,
  columns: Mapping[str, Column],
  rows: int,
  *,
  field: str = "path",
) -> None:
  """Checks that the disk has room for rows.

  Args:
    path: folder of the store, which need not exist.
    columns: columns of the store.
    rows: number of rows to write.
    field: name of the setting for the folder, for the error.

  Raises:
    InputError: the disk has too little free space; states both sizes.
  """
  parent = next(p for p in (path, *path.absolute().parents) if p.exists())
  need = rows * sum(column.row_bytes for column in columns.values())
  free = shutil.disk_usage(parent).free
  if need > free:
    raise InputError(
      field,
      path,
      f"must have room for {durable.size(need)}, and {durable.size(free)} "
      "are free",
      "free space, choose another folder or fewer rows",
    )


def _fill(source: RowSource, out: writer.Writer, progress: Progress) -> None:
  """Reads blocks from the resume point and writes buckets."""
  resume = out.resume or {"at": None, "rows": 0}
  collect = bucket.Collector(
    bucket_rows=out.meta["bucket_rows"],
    wanted=out.meta["rows"] - out.rows,
    skip=resume["rows"],
  )
  report = _Report(out, progress)
  with _Background(out) as write:
    if collect.wanted:
      wanted = collect.wanted + resume["rows"]
      for block in source.blocks(resume["at"], wanted):
        for full in collect.add(block):
          write(full)
        report(collect)
        if not collect.wanted:
          break
    last = collect.rest(source.end)
    if last is not None:
      write(last)
  if not out.rows:
    dropped = ", ".join(f"{k} {v}" for k, v in collect.dropped.items() if v)
    raise InputError(
      "source",
      out.path,
      f"must give rows, and every row was dropped ({dropped or 'no rows read'})",
      "use other data, or relax the rules that drop rows",
    )
  dropped, read = collect.pending
  out.finish(dropped=dropped, read=read)
  report(collect, last=True)


class _Background:
  """Writes one bucket in a thread while the next is filled."""

  def __init__(self, out: writer.Writer):
    self._out = out
    self._pool = concurrent.futures.ThreadPoolExecutor(1)
    self._writing: concurrent.futures.Future | None = None

  def __enter__(self) -> "_Background":
    return self

  def __call__(self, full: bucket.Bucket) -> None:
    self._wait()
    self._writing = self._pool.submit(
      self._out.write,
      full.values,
      resume=full.resume,
      dropped=full.dropped,
      read=full.read,
    )

  def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
    try:
      self._wait()
    finally:
      self._pool.shutdown()

  def _wait(self) -> None:
    if self._writing is not None:
      writing, self._writing = self._writing, None
      writing.result()


class _Report:
  """Reports the progress of this call about once per second."""

  def __init__(self, out: writer.Writer, progress: Progress):
    self._phase, self._wanted = out.meta["split"], out.meta["rows"]
    self._before, self._progress = out.rows, progress
    self._began = self._told = time.monotonic()

  def __call__(self, collect: bucket.Collector, last: bool = False) -> None:
    now = time.monotonic()
    if now - self._told < 1.0 and not last:
      return
    self._told = now
    seconds = now - self._began
    self._progress(
      {
        "phase": self._phase,
        "rows": self._before + collect.rows,
        "rows_wanted": self._wanted,
        "read": collect.read,
        "seconds": seconds,
        "rows_per_second": collect.rows / max(seconds, 1e-9),
        "dropped": dict(collect.dropped),
        "complete": last,
      }
    )
