"""Shuffled batches of a store, as a Grain pipeline with exact state.

An epoch permutes the chunks of the store by (seed, epoch), deals them into
windows, reads a window at once and permutes its rows by (seed, epoch, window).
Windows are cut into batches; the remainder of a window goes into the next
batch, across epochs too, and the remainder at the end is dropped. No row
repeats within an epoch. Order and state are independent of threads and buffers.

A batch has the store's training columns, by name. Where rows form groups
(pairs, sites, neighbours), groups can be read as units: groups are shuffled,
and a field has shape [batch, rows per group, ...].
"""

import dataclasses
import functools
import sys
from collections.abc import Sequence

import grain
import numpy as np

from saejax.data import shuffle
from saejax.data.store import reader as stores
from saejax.errors import InputError

_WINDOW_BYTES = 2**28  # maximum size of a window; about four are in memory


@dataclasses.dataclass(frozen=True)
class Windows:
  """Random access to windows of shuffled rows: {column: [r, ...], "row": [r]}.

  Attributes:
    store: the store.
    seed: seed of all permutations.
    epochs: passes over the store; None for no end.
    window_chunks: maximum number of chunks per window; fewer where a window
      would exceed 256 MiB.
    columns: columns to read.
    grouped: whether groups are read as units.
    process_index: index of this process, which reads one window of each round.
    process_count: number of processes that share the store.
  """

  store: stores.Store
  seed: int
  epochs: int | None
  window_chunks: int
  columns: tuple[str, ...] = ("x",)
  grouped: bool = False
  process_index: int = 0
  process_count: int = 1

  def __repr__(self) -> str:
    # Grain compares this text when a checkpoint is restored, so it must not
    # contain a path or an address.
    return (
      f"Windows(rows={self.store.rows}, seed={self.seed}, "
      f"epochs={self.epochs}, window_chunks={self.window_chunks}, "
      f"columns={self.columns}, grouped={self.grouped}, "
      f"process={self.process_index}/{self.process_count})"
    )

  @functools.cached_property
  def chunks(self) -> np.ndarray:
    """(start, stop) row of each chunk, [chunks, 2]."""
    return np.asarray(self.store.chunks, np.int64).reshape(-1, 2)

  @functools.cached_property
  def an_epoch(self) -> int:
    """Windows per epoch, over all processes."""
    row = sum(self.store.columns[name].row_bytes for name in self.columns)
    most = _WINDOW_BYTES // (self.store.meta["chunk_rows"] * row)
    most = max(1, min(self.window_chunks, most))
    count = -(-len(self.chunks) // most)
    # Whole rounds of one window per process, none of them empty.
    rounds = -(-count // self.process_count)
    rounds = min(rounds, len(self.chunks) // self.process_count)
    return rounds * self.process_count

  def __len__(self) -> int:
    if self.epochs is None:
      return sys.maxsize
    return self.epochs * self.an_epoch // self.process_count

  def parts(self, index: int) -> tuple[np.ndarray, int, int]:
    """Returns the chunks of one of this process's windows.

    Args:
      index: number of the window in this process, over all epochs.

    Returns:
      (chunks [c, 2], epoch, number of the window within the epoch).
    """
    # Windows differ by a chunk, so processes rotate in every round.
    turn = (self.process_index + index) % self.process_count
    number = turn + index * self.process_count
    epoch, window = divmod(number, self.an_epoch)
    order = shuffle.permutation(
      len(self.chunks), shuffle.CHUNKS, self.seed, epoch
    )
    # Windows of an epoch differ by one chunk at most.
    edges = np.arange(self.an_epoch + 1) * len(self.chunks) // self.an_epoch
    return self.chunks[order[edges[window] : edges[window + 1]]], epoch, window

  @property
  def group_rows(self) -> int:
    """Number of consecutive rows shuffled as a unit."""
    return self.store.group_rows if self.grouped else 1

  def items(self, index: int) -> int:
    """Returns the number of rows of a window, or of groups if grouped.

    Args:
      index: number of the window in this process.
    """
    chunks = self.parts(index)[0]
    return int((chunks[:, 1] - chunks[:, 0]).sum()) // self.group_rows

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    chunks, epoch, window = self.parts(index)
    row = np.concatenate([np.arange(a, b) for a, b in chunks])
    group = self.group_rows
    order = shuffle.grouped(
      len(row), group, shuffle.ROWS, self.seed, epoch, window
    )
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    intervals = [(int(a), int(b)) for a, b in chunks]
    fields = {n: self._column(n, intervals, place) for n in self.columns}
    fields["row"] = row[order]
    if not self.grouped:
      return fields
    return {k: v.reshape(-1, group, *v.shape[1:]) for k, v in fields.items()}

  def _column(
    self, name: str, intervals: list[tuple[int, int]], place: np.ndarray
  ) -> np.ndarray:
    column = self.store.columns[name]
    out = np.empty((len(place), *column.shape), np.dtype(column.dtype))
    start = 0
    # Each row is copied once, directly to its shuffled place.
    for part in self.store.read_each(intervals, name):
      out[place[start : start + len(part)]] = part
      start += len(part)
    return out


def batches(
  store: stores.Store,
  *,
  batch_rows: int,
  seed: int,
  epochs: int | None = 1,
  window_chunks: int = 64,
  columns: Sequence[str] | None = None,
  grouped: bool = False,
  process_index: int = 0,
  process_count: int = 1,
  read_threads: int = 1,
  ahead_windows: int = 1,
) -> grain.IterDataset:
  """Builds the pipeline of shuffled batches of a store.

  Iterators have exact `get_state` and `set_state` and can be checkpointed with
  Orbax. Memory is about (ahead_windows + 3) windows.

  Args:
    store: the store.
    batch_rows: rows per batch of this process, or groups if grouped.
    seed: seed of the order, which differs between epochs.
    epochs: passes over the store; None for no end.
    window_chunks: maximum number of chunks mixed in a window.
    columns: columns to read; by default all that the store declares for
      training, such as x, target and cond.
    grouped: reads groups as units: fields are [batch_rows, G, ...] and "row"
      [batch_rows, G], where G is the number of rows per group.
    process_index: index of this process.
    process_count: number of processes; together they read each row once per
      epoch, and all give the same number of batches.
    read_threads: threads that read windows; affects speed only.
    ahead_windows: windows read ahead; affects speed and memory only.

  Returns:
    Dataset of {column: [batch_rows, ...] as stored, "row": [batch_rows] int64}.

  Raises:
    InputError: the store has fewer rows than a batch or no such column, or an
      argument is out of range.
  """
  source = _source(
    store, seed, epochs, window_chunks, process_index, process_count, grouped
  )
  names = fields(store, columns)
  source = dataclasses.replace(source, columns=names)
  if batch_rows < 1:
    raise InputError(
      "batch_rows", batch_rows, "must be at least 1", "use 1 or more"
    )
  limit = _count(source, batch_rows)
  items = store.rows // source.group_rows
  if limit == 0 or items < batch_rows * process_count:
    what = "groups" if grouped else "rows"
    raise InputError(
      "batch_rows",
      batch_rows,
      f"must be at most the {what} of the store ({items}), in each of "
      f"{process_count} process(es)",
      f"use at most {items}, or write a store of more rows",
    )
  options = grain.ReadOptions(
    num_threads=read_threads, prefetch_buffer_size=ahead_windows
  )
  windows = grain.MapDataset.source(source).to_iter_dataset(options)
  pipeline = grain.experimental.RebatchIterDataset(
    windows, batch_rows, drop_remainder=True
  )
  if limit is not None and process_count > 1:
    pipeline = grain.experimental.LimitIterDataset(pipeline, limit)
  return pipeline


def count_batches(
  store: stores.Store,
  *,
  batch_rows: int,
  seed: int,
  epochs: int = 1,
  window_chunks: int = 64,
  columns: Sequence[str] | None = None,
  grouped: bool = False,
  process_count: int = 1,
) -> int:
  """Returns the number of batches per process that `batches` gives.

  Args:
    store: the store.
    batch_rows: rows per batch, or groups if grouped.
    seed: seed of the order.
    epochs: passes over the store.
    window_chunks: maximum number of chunks mixed in a window.
    columns: columns to read.
    grouped: whether groups are read as units.
    process_count: number of processes.

  Raises:
    InputError: there is no such column, or an argument is out of range.
  """
  source = _source(
    store, seed, epochs, window_chunks, 0, process_count, grouped
  )
  source = dataclasses.replace(source, columns=fields(store, columns))
  return _count(source, batch_rows) or 0


def fields(
  store: stores.Store, columns: Sequence[str] | None = None
) -> tuple[str, ...]:
  """Returns the names of the columns that `batches` reads.

  Args:
    store: the store.
    columns: names of columns; by default those declared for training.

  Raises:
    InputError: the store has no such column, or x is not among them.
  """
  names = store.trained if columns is None else tuple(columns)
  missing = [name for name in names if name not in store.columns]
  if missing or "x" not in names:
    raise InputError(
      "columns",
      ", ".join(names),
      f"must include x and be columns of the store {store.place}: "
      f"{', '.join(store.columns)}",
      f"write a store with {', '.join(missing) or 'x'}",
    )
  return tuple(dict.fromkeys(names))


def _source(
  store: stores.Store,
  seed: int,
  epochs: int | None,
  window_chunks: int,
  process_index: int,
  process_count: int,
  grouped: bool,
) -> Windows:
  for name, value, least in (
    ("seed", seed, 0),
    ("epochs", 1 if epochs is None else epochs, 1),
    ("window_chunks", window_chunks, 1),
  ):
    if value < least:
      rule = f"must be at least {least}"
      raise InputError(name, value, rule, f"use {least} or more")
  if not 0 <= process_index < process_count:
    raise ValueError(
      f"process_index must be in [0, {process_count}), got {process_index}"
    )
  if len(store.chunks) < process_count:
    raise InputError(
      "chunk_rows",
      store.meta["chunk_rows"],
      f"the store has {len(store.chunks)} chunks for {process_count} processes",
      "harvest with a smaller chunk_rows, or train in fewer processes",
    )
  if grouped and store.group_rows == 1:
    raise InputError(
      "grouped",
      grouped,
      f"the store {store.place} has no groups of rows",
      "write the store with group=COLUMN",
    )
  return Windows(
    store,
    seed,
    epochs,
    window_chunks,
    grouped=grouped,
    process_index=process_index,
    process_count=process_count,
  )


def _count(source: Windows, batch_rows: int) -> int | None:
  """Returns the minimum number of batches over processes; None if endless."""
  if source.process_count == 1:
    if source.epochs is None:
      return None
    items = source.store.rows // source.group_rows
    return items * source.epochs // batch_rows
  if source.epochs is None:
    return None
  counts = []
  for process in range(source.process_count):
    own = dataclasses.replace(source, process_index=process)
    counts.append(sum(own.items(i) for i in range(len(own))) // batch_rows)
  return min(counts)
