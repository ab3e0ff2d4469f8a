"""A store of rows on disk, read-only.

    store-<16 hex of the SHA-256 of meta.json>/
      meta.json       settings that determine the bytes, canonical JSON
      x/ ...          a zarr3 array per column, see `arrays`
      ledger/*.jsonl  one line per bucket: rows, shards, checksums, sums
      stats.json      moments of the columns
      manifest.json   sizes and checksums of all these, written last
      made.jsonl      times and versions of writing; no result depends on it

The rows of a store are the ledger's intervals; the arrays' shapes may be larger.
Every chunk that is read is compared with the ledger's checksum.
"""

import functools
import itertools
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from saejax import durable
from saejax.data.store import arrays, ledger, manifest, sums
from saejax.data.store.columns import Column, from_json
from saejax.errors import InputError

_TAKE_CHUNKS = 64  # chunks in memory at once while single rows are gathered


class Store:
  """Rows x [rows, d] with further columns, opened by `open`.

  A store is picklable; several threads may read it, but no forked child.

  Args:
    path: folder of the store.

  Attributes:
    meta: metadata, as written.
    content: SHA-256 of the manifest, the identity of the store's content.
    columns: declarations by name.
    moments: moments of each float column, see `sums.stats`; "mean" and
      "variance" are float64 arrays of the column's shape.
    stats: counts of rows, and moments of x over all axes but d, `sums.pooled`.
    lines: the ledger's lines, one per bucket, by first row.
  """

  def __init__(self, path: pathlib.Path):
    record, self.content = manifest.read(path)
    self.path = path
    self.meta: dict[str, Any] = _json(path / manifest.META)
    self.columns: dict[str, Column] = from_json(self.meta["columns"])
    stats = _json(path / manifest.STATS)
    self.moments: dict[str, dict[str, Any]] = {}
    for name, found in stats.pop("columns").items():
      per_d = {n: np.asarray(found[n], "f8") for n in ("mean", "variance")}
      self.moments[name] = found | per_d
    self.stats: dict[str, Any] = stats | sums.pooled(self.moments["x"])
    names = [n for n in record["files"] if n.startswith(ledger.FOLDER + "/")]
    lines = ledger.read(path, names)
    self.lines = [line for line in lines if line["kind"] == "bucket"]
    ledger.check(path, self.lines, self.meta, self.columns)
    if self.rows != self.stats["rows"]:
      raise manifest.broken(
        path / ledger.FOLDER,
        f"must have {self.stats['rows']} rows, has {self.rows}",
      )

  def __repr__(self) -> str:
    return f"Store({str(self.path)!r}, rows={self.rows}, d={self.d})"

  def __getstate__(self) -> dict[str, Any]:
    kept = ("path", "meta", "content", "columns", "moments", "stats", "lines")
    return {name: self.__dict__[name] for name in kept}

  @property
  def rows(self) -> int:
    """Number of rows."""
    return sum(line["rows"] for line in self.lines)

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
    """Reads rows [stop - start, ...] of a column in the stored dtype.

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

    Each interval is checked when it is yielded, while in the CPU's cache.

    Args:
      intervals: (start, stop) of each.
      column: name of the column.
    """
    import tensorstore as ts  # only where a store is read

    arrays.check_process(self.path)
    whole = [self._whole_chunks(*interval) for interval in intervals]
    array = self._array(column)
    with self._read_errors(column), ts.Batch() as batch:
      reads = [array[start:stop].read(batch=batch) for start, stop in whole]
    reads.reverse()
    for (first, _), (start, stop) in zip(whole, intervals, strict=True):
      with self._read_errors(column):
        values = reads.pop().result()
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
        f"the store {self.path} has {', '.join(self.columns)}",
        "name one of these, or write the store with this column",
      )
    return self.columns[name]

  def _array(self, name: str) -> Any:
    self._column(name)
    if name not in self._arrays:
      with self._read_errors(name):
        self._arrays[name] = arrays.open_(self.path, name)
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
        file = arrays.shard_files(
          name, self.columns[name], start, 1, self.meta["shard_rows"]
        )[0]
        raise manifest.broken(
          self.path / file,
          f"rows from {start} on differ from those that were written",
        )

  def verify(self) -> None:
    """Reads every file and every chunk and compares them with their checksums.

    Raises:
      InputError: a file is damaged; names the file.
    """
    record, content = manifest.read(self.path)
    if content != self.content:
      raise manifest.broken(
        self.path / manifest.NAME, "was replaced after the store was opened"
      )
    manifest.verify(self.path, record)
    for name in self.columns:
      for start, stop in self.chunks:
        self.read(start, stop, name)

  @contextmanager
  def _read_errors(self, column: str) -> Iterator[None]:
    try:
      yield
    except ValueError as error:
      text = str(error)
      if "NOT_FOUND" in text:
        rule = "a shard or row is missing"
      elif isinstance(error, InputError):
        raise
      else:
        rule = "a shard is corrupt or cannot be read"
      raise manifest.broken(
        self.path / column, f"{rule} ({' '.join(text.split())})"
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


def _json(path: pathlib.Path) -> dict[str, Any]:
  return durable.read_json(path, remedy=manifest.REMEDY)


def open(  # pylint: disable=redefined-builtin
  path: str | pathlib.Path, *, expect: Mapping[str, Any] | None = None
) -> Store:
  """Opens a complete store.

  Sizes of all files and the contents of small ones are compared with the
  manifest here; rows are compared with their checksums when they are read.

  Args:
    path: folder of the store.
    expect: required metadata: model, layer, point, d, split or any entry.

  Raises:
    InputError: the store is missing, incomplete, damaged or unlike `expect`.
  """
  path = pathlib.Path(path)
  arrays.check_process(path)
  try:
    if not (path / manifest.META).is_file():
      raise InputError(
        "path",
        path,
        f"must be a store ({manifest.META} is missing)",
        "harvest first, or give the path of the folder store-...",
      )
    if not (path / manifest.NAME).is_file():
      raise InputError(
        "path",
        path,
        f"must be complete ({manifest.NAME}, which is written last, is missing)",
        "repeat the command that wrote it; it resumes where it stopped",
      )
    store = Store(path)
  except OSError as error:
    raise manifest.broken(
      pathlib.Path(error.filename or path), f"cannot be read ({error.strerror})"
    ) from error
  except InputError:
    raise
  except (LookupError, TypeError, ValueError, AttributeError) as error:
    raise manifest.broken(
      path,
      f"meta.json, stats.json, ledger or manifest is not valid "
      f"({type(error).__name__}: {error})",
    ) from error
  for field, wanted in (expect or {}).items():
    found = described(store, field)
    if found != wanted:
      raise InputError(
        "expect",
        f"{field}={wanted}",
        f"the store {path.name} has {field}={found}",
        "open another store, or harvest one with these settings",
      )
  return store


def described(store: Store, field: str) -> Any:
  """Looks up a property of a store; None where it is not recorded.

  Args:
    store: the store.
    field: "model", "layer", "point", "d" or an entry of the metadata.
  """
  if field == "d":
    return store.d
  if field == "model":
    return (store.meta.get("model") or {}).get("name")
  if field in ("layer", "point"):
    return (store.meta.get("site") or {}).get(field)
  return store.meta.get(field)
