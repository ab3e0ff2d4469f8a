"""A store of rows, on disk or in an object store, read-only.

    store-<16 hex of the SHA-256 of meta.json>/
      meta.json         settings that determine the bytes, canonical JSON
      x/ ...            a zarr3 array per column, see `arrays`
      ledger/*.json     one entry per bucket: rows, checksums, sums
      calibration.json  what was measured before the first row, if anything
      stats.json        moments of the columns
      manifest.json     sizes and checksums of all these, written last
      made/*.json       times and versions of writing; no result depends on it

The rows of a store are the ledger's intervals; the arrays' shapes may be larger,
and a bucket from which rows were dropped leaves a gap before the next. Every
chunk that is read is compared with the ledger's checksum.
"""

import functools
import hashlib
import itertools
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from saejax.data.store import arrays, codes, ledger, manifest, sums, view
from saejax.data.store.columns import Column, from_json, scale_name
from saejax.data.store.place import Local, Objects
from saejax.errors import InputError

_TAKE_CHUNKS = 64  # chunks in memory at once while single rows are gathered


class Store:
  """Rows x [rows, d] with further columns, opened by `open`.

  A store is picklable; several threads may read it, but no forked child.

  Attributes:
    place: where it is.
    meta: metadata, as written.
    content: identity of the content: SHA-256 of the manifest; of a growing store
      that of its entries.
    columns: declarations by name.
    moments: moments of each float column, see `sums.stats`; "mean" and
      "variance" are float64 arrays of the column's shape.
    stats: counts of rows, and moments of x over all axes but d, `sums.pooled`.
    lines: the ledger's entries, one per bucket with rows, by first row.
    small: names of further files, such as those of the tokenizer.
  """

  small: tuple[str, ...] = ()

  def __init__(
    self,
    place: Local | Objects,
    meta: dict[str, Any],
    entries: Sequence[dict[str, Any]],
    stats: dict[str, Any],
    content: str,
  ):
    self.place, self.meta, self.content = place, meta, content
    self.columns: dict[str, Column] = from_json(self.meta["columns"])
    ledger.check(place, entries, self.meta, self.columns)
    self.lines = [entry for entry in entries if entry["rows"]]
    self.moments: dict[str, dict[str, Any]] = {}
    for name, found in stats.pop("columns").items():
      per_d = {n: np.asarray(found[n], "f8") for n in ("mean", "variance")}
      self.moments[name] = found | per_d
    self.stats: dict[str, Any] = stats | sums.pooled(self.moments["x"])
    if self.rows != self.stats["rows"]:
      raise manifest.broken(
        place / ledger.FOLDER,
        f"must have {self.stats['rows']} rows, has {self.rows}",
      )

  def __repr__(self) -> str:
    return f"Store({str(self.place)!r}, rows={self.rows}, d={self.d})"

  _repr_html_ = view.html  # for notebooks

  def __getstate__(self) -> dict[str, Any]:
    kept = (
      "place",
      "meta",
      "content",
      "columns",
      "moments",
      "stats",
      "lines",
      "small",
    )
    return {name: self.__dict__[name] for name in kept}

  @property
  def path(self) -> pathlib.Path:
    """Folder of the store.

    Raises:
      InputError: it is in an object store.
    """
    if not isinstance(self.place, Local):
      raise InputError(
        "path",
        str(self.place),
        "must be a local folder for this",
        "copy the store to a disk",
      )
    return self.place.folder

  @property
  def rows(self) -> int:
    """Number of rows."""
    return ledger.rows(self.lines)

  @property
  def d(self) -> int:
    """Width of a row's activations."""
    return (self.columns["x"].shape or (1,))[-1]

  @property
  def group_rows(self) -> int:
    """Number of consecutive rows per group; 1 without groups."""
    return (self.meta.get("group") or {"rows": 1})["rows"]

  @property
  def trained(self) -> tuple[str, ...]:
    """Names of the columns that training reads by default, x first."""
    names = [n for n, c in self.columns.items() if c.train and n != "x"]
    return ("x", *names)

  @property
  def intervals(self) -> list[tuple[int, int]]:
    """(start, stop) of the rows of each bucket."""
    return [(x["first"], x["first"] + x["rows"]) for x in self.lines]

  @property
  def chunks(self) -> list[tuple[int, int]]:
    """(start, stop) of the rows of each chunk, the unit of reading."""
    size = self.meta["chunk_rows"]
    return [
      (i, min(i + size, stop))
      for start, stop in self.intervals
      for i in range(start, stop, size)
    ]

  def read(self, start: int, stop: int, column: str = "x") -> np.ndarray:
    """Reads rows [stop - start, ...] of a column in its dtype.

    Args:
      start: first row.
      stop: row after the last.
      column: name of the column.

    Raises:
      InputError: a shard is missing or differs from its checksum.
      IndexError: the rows do not exist.
    """
    return self.read_many([(start, stop)], column)[0]

  def read_many(
    self, intervals: Sequence[tuple[int, int]], column: str = "x"
  ) -> list[np.ndarray]:
    """Reads several intervals, requested together.

    Args:
      intervals, column: as for `read_each`.
    """
    return list(self.read_each(intervals, column))

  def read_each(
    self, intervals: Sequence[tuple[int, int]], column: str = "x"
  ) -> Iterator[np.ndarray]:
    """Yields the rows of several intervals of a column, requested together.

    Args:
      intervals: (start, stop) of each.
      column: name of the column.
    """
    about = self._column(column)
    if not about.code:
      yield from self._read_stored(intervals, column)
      return
    scales = self._read_stored(intervals, scale_name(column))
    stored = self._read_stored(intervals, column)
    for code, scale in zip(stored, scales, strict=True):
      yield codes.decode(code, scale, about)

  def _read_stored(
    self, intervals: Sequence[tuple[int, int]], column: str
  ) -> Iterator[np.ndarray]:
    """Yields rows as stored, each checked when yielded, in the CPU's cache."""
    import tensorstore as ts  # only where a store is read

    arrays.check_process(self.place)
    whole = [self._whole_chunks(*interval) for interval in intervals]
    array = self._array(column)
    row_bytes = self.columns[column].stored_row_bytes
    with self._read_errors(column), ts.Batch() as batch:
      reads = [array[start:stop].read(batch=batch) for start, stop in whole]
    reads.reverse()
    for (first, _), (start, stop) in zip(whole, intervals, strict=True):
      with self._read_errors(column):
        future = reads.pop()
        values = self.place.wait(future, size=(stop - start) * row_bytes)
      self._check_chunks(column, first, values)
      yield values[start - first : stop - first]

  def take(
    self, rows: Sequence[int] | np.ndarray, *names: str
  ) -> dict[str, np.ndarray]:
    """Gathers rows of columns, {name: [rows, ...]}, in the order of `rows`.

    Args:
      rows: row numbers, as batches have them.
      *names: names of columns; all by default.
    """
    index = np.asarray(rows, np.int64).reshape(-1)
    self._check_rows(index)
    chunk = index // self.meta["chunk_rows"]
    order = np.argsort(chunk, kind="stable")
    columns = {}
    for name in names or self.columns:
      column = self._column(name)
      out = np.empty((len(index), *column.shape), np.dtype(column.dtype))
      for part in _parts(order, chunk):
        starts = np.unique(chunk[part]) * self.meta["chunk_rows"]
        whole = [self._whole_chunks(int(a), int(a) + 1) for a in starts]
        values = self.read_many(whole, name)
        place = np.searchsorted(starts, index[part], side="right") - 1
        for i, of_chunk in enumerate(values):
          here = part[place == i]
          out[here] = of_chunk[index[here] - whole[i][0]]
      columns[name] = out
    return columns

  def provenance(
    self, rows: Sequence[int] | np.ndarray
  ) -> dict[str, np.ndarray]:
    """Gathers the provenance of rows: the columns that training does not read.

    Args:
      rows: row numbers.
    """
    names = [n for n in self.columns if n not in self.trained]
    return self.take(rows, *names) if names else {}

  def whole(self, *names: str) -> dict[str, np.ndarray]:
    """Reads whole columns, in row order.

    Args:
      *names: names of the columns.
    """
    return {
      name: np.concatenate(self.read_many(self.intervals, name))
      for name in names
    }

  def _column(self, name: str) -> Column:
    if name not in self.columns:
      raise InputError(
        "columns",
        name,
        f"the store {self.place} has {', '.join(self.columns)}",
        "name one of these, or write the store with this column",
      )
    return self.columns[name]

  def _array(self, name: str) -> Any:
    self._column(name)
    if name not in self._arrays:
      with self._read_errors(name):
        self._arrays[name] = arrays.open_(self.place, name)
    return self._arrays[name]

  @functools.cached_property
  def _arrays(self) -> dict[str, Any]:
    return {}

  def _whole_chunks(self, start: int, stop: int) -> tuple[int, int]:
    """Extends an interval of rows to whole chunks."""
    self._check_rows(np.asarray([start, stop - 1]))
    first, last = self._bounds
    i, j = np.searchsorted(first, [start, stop - 1], side="right") - 1
    if not np.array_equal(last[i:j], first[i + 1 : j + 1]):
      raise IndexError(f"rows must be within {self.intervals}, got a gap")
    size = self.meta["chunk_rows"]
    return start - start % size, min(-(-stop // size) * size, int(last[j]))

  def _check_rows(self, rows: np.ndarray) -> None:
    # Rows between buckets are inside the arrays' shape but do not exist.
    start, stop = self._bounds
    bucket = np.searchsorted(start, rows, side="right") - 1
    if not np.all((bucket >= 0) & (rows < stop[bucket])):
      raise IndexError(f"rows must be within {self.intervals}, got {rows}")

  @functools.cached_property
  def _bounds(self) -> np.ndarray:
    return np.asarray(self.intervals, np.int64).reshape(-1, 2).T

  @functools.cached_property
  def _checksums(self) -> dict[str, dict[int, int]]:
    """Checksums of chunks, by column and first row of the chunk."""
    size = self.meta["chunk_rows"]
    return {
      name: {
        line["first"] + i * size: found
        for line in self.lines
        for i, found in enumerate(line["chunks"][name])
      }
      for name in self.columns
    }

  def _check_chunks(self, name: str, first: int, values: np.ndarray) -> None:
    size = self.meta["chunk_rows"]
    found = arrays.checksums(name, first, values, size)
    for i, checksum in enumerate(found):
      start = first + i * size
      if self._checksums[name][start] != checksum:
        column = self.columns[name]
        shards = arrays.shards(name, column, start, 1, self.meta)
        raise manifest.broken(
          self.place / shards[0][0],
          f"rows from {start} on differ from those that were written",
        )

  def verify(self) -> None:
    """Reads every row and compares it, and the manifest, with the checksums.

    Raises:
      InputError: a file is damaged; names the file.
    """
    for line in self.lines:
      self.verify_bucket(line)

  def verify_bucket(self, line: Mapping[str, Any]) -> None:
    """Reads every row of a bucket and compares it with the checksums.

    Args:
      line: entry of the bucket.

    Raises:
      InputError: a shard is damaged or missing; names it.
    """
    if fault := self.place.fault(line["shards"]):
      raise manifest.broken(self.place / fault[0], fault[1])
    start, stop = line["first"], line["first"] + line["rows"]
    for name in self.columns:
      digest = hashlib.sha256()
      size = self.meta["chunk_rows"]
      parts = [(i, min(i + size, stop)) for i in range(start, stop, size)]
      for values in self._read_stored(parts, name):
        flat = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        digest.update(flat.data)
      if digest.hexdigest() != line["contents"][name]:
        raise manifest.broken(
          self.place / name,
          f"rows {start} to {stop} differ from those that were written",
        )

  @contextmanager
  def _read_errors(self, column: str) -> Iterator[None]:
    with self.place.failures("reads"):
      try:
        yield
      except InputError:
        raise
      except ValueError as error:
        text = " ".join(str(error).split())
        if text.startswith("NOT_FOUND") and "Bucket" not in text:
          rule = "a shard or row is missing"
        elif isinstance(self.place, Local) or "DATA_LOSS" in text:
          rule = "a shard is corrupt or cannot be read"
        else:
          raise
        raise manifest.broken(
          self.place / column, f"{rule} ({text})"
        ) from error


def _parts(order: np.ndarray, chunk: np.ndarray) -> Iterator[np.ndarray]:
  """Splits the indices of rows into parts that span few chunks each."""
  if not len(order):
    return
  rank = np.unique(chunk[order], return_inverse=True)[1].reshape(-1)
  edges = np.flatnonzero(np.diff(rank // _TAKE_CHUNKS)) + 1
  bounds = [0, *edges.tolist(), len(order)]
  for start, stop in itertools.pairwise(bounds):
    yield order[start:stop]
