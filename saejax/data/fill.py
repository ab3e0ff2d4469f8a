"""Fills a store from a row source, in one process or several.

Blocks are collected into a bucket, and a thread shuffles and writes one bucket
while the next is filled, so at most two are in memory. Repeating the call after
a kill writes the buckets that the ledger lacks, and gives the same bytes as an
uninterrupted run.
"""

import concurrent.futures
import contextlib
import pathlib
import shutil
import time
from collections.abc import (
  Callable,
  Generator,
  Iterator,
  Mapping,
  Sequence,
)
from typing import Any, NamedTuple

from saejax import durable
from saejax.data import bucket
from saejax.data.rows import Resume, RowSource, Span
from saejax.data.store import ledger, manifest, reader, writer
from saejax.data.store import place as places
from saejax.data.store.columns import Column, with_scales
from saejax.data.store.place import Local, Path
from saejax.data.store.share import Share
from saejax.errors import InputError

Progress = Callable[[dict[str, Any]], None]


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
    "columns": {
      name: c.to_json() for name, c in with_scales(source.columns).items()
    },
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
  path: Path,
  meta: Mapping[str, Any],
  *,
  progress: Progress | None = None,
) -> reader.Store:
  """Writes the store of a source, resumes writing it, or opens it if complete.

  A source with fewer rows than `meta["rows"]` gives a smaller store.

  Args:
    source: the rows.
    path: folder or URL of the store.
    meta: metadata as returned by `describe`.
    progress: called about once per second with a dict: phase (the split), rows,
      rows_wanted, complete, and for this call seconds, rows_per_second, units
      read and dropped rows by rule. Before the first row, with phase and warning
      for each warning of what was measured.

  Raises:
    InputError: the source gives no rows, or the disk is full or not writable;
      finished buckets are kept.
  """
  place = places.at(path)
  fill_shares([Job(source, place, meta)], progress=progress)
  return reader.open(place)


class Job(NamedTuple):
  """A store to be filled.

  Attributes:
    source: the rows.
    path: folder or URL of the store.
    meta: metadata as returned by `describe`.
  """

  source: RowSource
  path: Path
  meta: Mapping[str, Any]


def fill_shares(
  jobs: Sequence[Job],
  *,
  share: Share = Share(),
  repair: bool = False,
  progress: Progress | None = None,
) -> list[bool]:
  """Writes one process's buckets that are missing of one or more stores.

  A bucket has the rows that the source counts in its range. Those that the
  source then drops by their values are left out, so that what is in a bucket
  depends on no other, and the store not on the number of processes. The sources
  are read side by side, so that they may share work, such as forward passes.

  Args:
    jobs: the stores.
    share: the buckets of this process.
    repair: whether to read what is there, and to write what is damaged again.
    progress: as for `fill`.

  Returns:
    For each store, whether it is complete; other processes may still write it.

  Raises:
    InputError: as `fill`, another process writes these buckets, or what is
      written again has other rows than before.
  """
  complete: dict[int, bool] = {}
  with contextlib.ExitStack() as held:
    filling = {}
    for number, job in enumerate(jobs):
      filling[number] = _filling(job, share, repair, progress)
      held.callback(filling[number].close)
    at = dict.fromkeys(filling, 0)
    while at:  # the one that is behind goes on
      number = min(at, key=lambda n: at[n])
      try:
        at[number] = next(filling[number])
      except StopIteration as end:
        complete[number] = end.value
        del at[number]
  return [complete[number] for number in range(len(jobs))]


def _filling(
  job: Job, share: Share, repair: bool, progress: Progress | None
) -> Generator[int, None, bool]:
  """Fills a store; yields the number of the row that it is at."""
  source, place, meta = job.source, places.at(job.path), job.meta
  complete = manifest.NAME in place.read([manifest.NAME])
  if complete and not repair:
    return True
  # Prepared before the folder is created, so that a refusal leaves no folder.
  new = not place.read([manifest.META])
  prepared = source.prepare(None) if new else None
  with writer.Writer(
    place, meta, files=source.files, share=share, repair=repair
  ) as out:
    there = set(out.entries) - out.again
    left = [b for b in range(_buckets(meta)) if share.owns(b)]
    left = [b for b in left if b not in there]
    if (left or repair) and out.calibration is None:
      prepared = prepared or source.prepare(None)
      if prepared is not None:
        out.calibrate(prepared)
    if left:
      if isinstance(place, Local):
        check_space(place.folder, out.columns, _rows(meta, left))
      source.prepare(out.calibration)  # of the process that was first
      yield from _fill(source, out, left, progress or (lambda _: None))
    return _finish(source, out)


def _buckets(meta: Mapping[str, Any]) -> int:
  return -(-meta["rows"] // meta["bucket_rows"])


def _span(meta: Mapping[str, Any], bucket: int) -> Span:
  size = meta["bucket_rows"]
  return Span(bucket * size, min((bucket + 1) * size, meta["rows"]))


def _rows(meta: Mapping[str, Any], buckets: Sequence[int]) -> int:
  spans = [_span(meta, bucket) for bucket in buckets]
  return sum(span.stop - span.start for span in spans)


def _finish(source: RowSource, out: writer.Writer) -> bool:
  """Completes the store, if all its buckets are there."""
  out.refresh()
  if len(out.entries) <= max(out.entries, default=-1):
    return False  # others are at work on earlier buckets
  buckets = _buckets(out.meta)
  if buckets - 1 not in out.entries:  # or the source has fewer
    size = out.meta["bucket_rows"]
    buckets = -(-source.count(out.meta["rows"]) // size)
  if set(range(buckets)) <= set(out.entries) and not out.rows:
    raise _all_dropped(out)
  return out.finish(buckets)


def _all_dropped(out: writer.Writer) -> InputError:
  counts = ledger.stats(list(out.entries.values()), out.columns)["dropped"]
  dropped = ", ".join(f"{k} {v}" for k, v in counts.items() if v)
  return InputError(
    "source",
    str(out.place),
    f"must give rows, and every row was dropped ({dropped or 'no rows read'})",
    "use other data, or relax the rules that drop rows",
  )


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
  need = rows * sum(c.stored_row_bytes for c in columns.values())
  free = shutil.disk_usage(parent).free
  if need > free:
    raise InputError(
      field,
      path,
      f"must have room for {durable.size(need)}, and {durable.size(free)} "
      "are free",
      "free space, choose another folder or fewer rows",
    )


def _fill(
  source: RowSource,
  out: writer.Writer,
  left: Sequence[int],
  progress: Progress,
) -> Iterator[int]:
  """Writes buckets; yields the number of the row that it is at."""
  for line in (out.calibration or {}).get("warnings", ()):
    progress({"phase": out.meta["split"], "warning": line})
  before = [out.entries[b] for b in sorted(out.entries) if b < left[0]]
  resume = Resume(**before[-1]["resume"]) if before else None
  spans = [_span(out.meta, bucket) for bucket in left]
  collect = bucket.Collector(spans)
  report = _Report(out, collect, _rows(out.meta, left), progress)
  with _Background(out) as write:
    for block in source.blocks(spans, resume):
      for full in collect.add(block):
        write(left[full.span], full)
      report()
      yield block.resume.row
    for full in collect.end():
      write(left[full.span], full)
  report(last=True)


class _Background:
  """Writes one bucket in a thread while the next is filled."""

  def __init__(self, out: writer.Writer):
    self._out = out
    self._pool = concurrent.futures.ThreadPoolExecutor(1)
    self._writing: concurrent.futures.Future | None = None

  def __enter__(self) -> "_Background":
    return self

  def __call__(self, number: int, full: bucket.Bucket) -> None:
    self._wait()
    self._writing = self._pool.submit(
      self._out.write,
      number,
      full.values,
      resume=full.resume._asdict(),
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

  def __init__(
    self,
    out: writer.Writer,
    collect: bucket.Collector,
    wanted: int,
    progress: Progress,
  ):
    self._phase, self._collect = out.meta["split"], collect
    entries = out.entries.items()
    own = [entry for number, entry in entries if out.share.owns(number)]
    self._before = ledger.rows(own)
    self._wanted, self._progress = self._before + wanted, progress
    self._began = self._told = time.monotonic()

  def __call__(self, last: bool = False) -> None:
    now = time.monotonic()
    if now - self._told < 1.0 and not last:
      return
    self._told = now
    seconds, rows = now - self._began, self._collect.rows
    self._progress(
      {
        "phase": self._phase,
        "rows": self._before + rows,
        "rows_wanted": self._wanted,
        "read": self._collect.read,
        "seconds": seconds,
        "rows_per_second": rows / max(seconds, 1e-9),
        "dropped": dict(self._collect.dropped),
        "complete": last,
      }
    )
