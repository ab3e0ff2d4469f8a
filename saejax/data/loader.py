"""Shuffled batches of stores, as a Grain dataset with exact state.

`order` defines the order: an epoch permutes the chunks of a store by (seed,
epoch), cuts them into windows and permutes the rows of a window by (seed, epoch,
window). Batches are cut from one sequence: the remainder of a window goes into
the next batch, across epochs too, and the remainder at the end is dropped. No
row repeats within an epoch of a store.

Order and position depend on no number of processes, threads or windows read
ahead: batch i has the same rows in the same order everywhere, of which each
process gets its slice, and any number of processes resumes at a position.

A process keeps in memory only the rows of its slices, but reads all chunks that
they lie in. With one lane this is the whole store in each of P processes; with L
lanes, a part max(1/L, 1/P) of it. The number of lanes is part of the order.

A batch has the store's training columns, by name. Where rows form groups
(pairs, sites, neighbours), groups can be read as units: groups are shuffled,
and a field has shape [batch, rows per group, ...].
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any

import grain
import numpy as np

from saejax.data import order
from saejax.data import plan as plans
from saejax.data.mix import Mix
from saejax.data.plan import fields as fields
from saejax.data.reading import Reader
from saejax.data.store.reader import Store


@dataclasses.dataclass(eq=False)
class Loader(grain.IterDataset):
  """Dataset of the batches of a process; made by `batches`.

  Attributes:
    store: the store or mix.
    columns: columns to read.
    plan: which rows each batch has.
    order: settings that determine the order; part of a position.
    count: number of batches; None for no end.
    process_index, process_count: the slice of this process.
    read_threads, ahead_windows: as for `batches`.
  """

  store: Store | Mix
  columns: tuple[str, ...]
  plan: order.Plan
  order: Mapping[str, Any]
  count: int | None
  process_index: int = 0
  process_count: int = 1
  read_threads: int = 2
  ahead_windows: int = 1

  def __post_init__(self):
    super().__init__()

  def __str__(self) -> str:
    return f"Loader({dict(self.order)})"

  def __iter__(self) -> "LoaderIterator":
    return LoaderIterator(self)


class LoaderIterator(grain.DatasetIterator):
  """Iterator over the batches of a `Loader`.

  Its position is {"batches": number of batches given, "order": settings}.

  Args:
    loader: the dataset.
  """

  def __init__(self, loader: Loader):
    super().__init__()
    self._loader, self._done = loader, 0
    self._readers: dict[tuple[int, int], Reader] = {}
    self._pool: futures.ThreadPoolExecutor | None = None
    items = loader.plan.batch_items // loader.process_count
    self._items = items
    self._slice = (
      loader.process_index * items,
      (loader.process_index + 1) * items,
    )

  def __next__(self) -> dict[str, np.ndarray]:
    self._assert_not_closed()
    loader = self._loader
    if loader.count is not None and self._done >= loader.count:
      raise StopIteration
    try:
      out = self._buffers()
      place = 0
      for stream, first, stop in loader.plan.cut(self._done, *self._slice):
        self._reader(stream).read(out, place, place + stop - first)
        place += stop - first
    except BaseException:
      self._drop()  # a stream may be ahead of another
      raise
    self._done += 1
    return {name: self._shaped(name, values) for name, values in out.items()}

  def get_state(self) -> dict[str, Any]:
    """Returns the position, equal in all processes and JSON-serialisable."""
    return {"batches": self._done, "order": dict(self._loader.order)}

  def set_state(self, state: Mapping[str, Any]) -> None:
    """Moves to a position, saved by any number of processes.

    Args:
      state: a position returned by `get_state`.

    Raises:
      InputError: the position is of another order of rows, or is none.
    """
    plans.check_position(state, self._loader.order)
    self._drop()
    self._done = state["batches"]

  @property
  def epochs(self) -> list[float]:
    """Passes over each store so far."""
    return self._loader.plan.epochs(self._done)

  def close(self) -> None:
    """Stops the threads that read ahead."""
    self._drop()
    if self._pool is not None:
      self._pool.shutdown(cancel_futures=True)
    super().close()

  def __del__(self):
    # Unlike Grain's, it does not close: a pool of threads ends by itself, and
    # cannot be shut down where Python ends.
    pass

  def _buffers(self) -> dict[str, np.ndarray]:
    """Arrays [items, item bytes] for a batch."""
    loader = self._loader
    widths = {n: loader.store.columns[n].row_bytes for n in loader.columns}
    widths["row"] = 8
    group = loader.plan.streams[0][0].group
    return {
      name: np.empty((self._items, group * width), np.uint8)
      for name, width in widths.items()
    }

  def _shaped(self, name: str, values: np.ndarray) -> np.ndarray:
    """The bytes of a column as an array in its dtype and shape."""
    shape: tuple[int, ...] = ()
    dtype = np.dtype(np.int64)
    if name != "row":
      column = self._loader.store.columns[name]
      shape, dtype = column.shape, np.dtype(column.dtype)
    group = self._loader.plan.streams[0][0].group
    if self._loader.order["grouped"]:
      shape = (group, *shape)
    return values.reshape(-1).view(dtype).reshape(self._items, *shape)

  def _reader(self, stream: tuple[int, int]) -> Reader:
    """The reader of a stream, at the position of the iterator."""
    loader = self._loader
    if self._pool is None:
      self._pool = futures.ThreadPoolExecutor(loader.read_threads, "loader")
    if stream not in self._readers:
      lane, number = stream
      store, offset = loader.store, 0
      if isinstance(store, Mix):
        store, offset = store.stores[number], store.offsets[number]
      self._readers[stream] = Reader(
        store,
        loader.plan.streams[lane][number],
        loader.columns,
        self._spans(stream),
        pool=self._pool,
        ahead=loader.ahead_windows,
        offset=offset,
      )
    return self._readers[stream]

  def _spans(self, wanted: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Items of a stream that this process needs from here on."""
    plan, count = self._loader.plan, self._loader.count
    batch, own = self._done, self._slice
    while count is None or batch < count:
      for stream, first, stop in plan.cut(batch, *own):
        if stream == wanted:
          yield first, stop
      batch += 1

  def _drop(self) -> None:
    for reader in self._readers.values():
      reader.cancel()
    self._readers = {}


def batches(
  store: Store | Mix,
  *,
  batch_rows: int,
  seed: int,
  epochs: int | None = 1,
  window_chunks: int = 64,
  lanes: int = 1,
  columns: Sequence[str] | None = None,
  grouped: bool = False,
  process_index: int = 0,
  process_count: int = 1,
  read_threads: int = 2,
  ahead_windows: int = 1,
) -> Loader:
  """Builds the dataset of shuffled batches of a store or a mix of stores.

  Iterators have exact `get_state` and `set_state`, `close`, and can be
  checkpointed with Orbax.

  Memory in a process is at most (ahead_windows + 1) W / P, where W is the size
  of the windows, at most 256 MiB over all lanes and stores unless a single
  chunk of each exceeds that, plus read_threads requests of 2 x 32 MiB (or 2
  chunks, if larger), 48 bytes per row of a window, and a batch.

  Args:
    store: the store or mix.
    batch_rows: rows per batch over all processes, or groups if grouped.
    seed: seed of the order, which differs between epochs.
    epochs: passes over the store, or over as many rows as the mix has; None for
      no end.
    window_chunks: maximum number of chunks mixed in a window; fewer where
      windows would exceed 256 MiB.
    lanes: parts that the chunks are dealt to. A batch has equally many rows of
      each, so that up to this number of processes read nothing twice.
    columns: columns to read; by default all that the store declares for
      training, such as x, target and cond.
    grouped: reads groups as units: fields are [items, G, ...] and "row"
      [items, G], where G is the number of rows per group.
    process_index: index of this process, which gets that slice of each batch.
    process_count: number of processes, a divisor of batch_rows.
    read_threads: threads that read windows; affects speed only.
    ahead_windows: windows read ahead; affects speed and memory only.

  Returns:
    Dataset of {column: [batch_rows / process_count, ...] as stored, "row":
    [batch_rows / process_count] int64}.

  Raises:
    InputError: the store has fewer rows than a batch or no such column, or an
      argument is out of range.
  """
  plan, settings = plans.make(
    store,
    batch_rows=batch_rows,
    seed=seed,
    epochs=epochs,
    window_chunks=window_chunks,
    lanes=lanes,
    columns=columns,
    grouped=grouped,
  )
  plans.check_processes(store, batch_rows, process_index, process_count)
  plans.check_size(store, plan)
  return Loader(
    store,
    plans.fields(store, columns),
    plan,
    settings,
    None if epochs is None else plan.count(epochs),
    process_index,
    process_count,
    read_threads,
    ahead_windows,
  )


def count_batches(
  store: Store | Mix,
  *,
  batch_rows: int,
  seed: int,
  epochs: int = 1,
  window_chunks: int = 64,
  lanes: int = 1,
  columns: Sequence[str] | None = None,
  grouped: bool = False,
) -> int:
  """Returns the number of batches that `batches` gives.

  Args:
    store: the store or mix.
    batch_rows, seed, epochs, window_chunks, lanes, columns, grouped: as for
      `batches`.

  Raises:
    InputError: there is no such column, or an argument is out of range.
  """
  plan, _ = plans.make(
    store,
    batch_rows=batch_rows,
    seed=seed,
    epochs=epochs,
    window_chunks=window_chunks,
    lanes=lanes,
    columns=columns,
    grouped=grouped,
  )
  return plan.count(epochs)
