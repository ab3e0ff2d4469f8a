"""Reading a stream of shuffled rows: windows in memory, filled by threads.

A window is read in the order of the disk, in requests of about 32 MiB that
threads share, and its rows are put in order when batches take them. A process
holds of each window what its slices of the batches need.
"""

import collections
from collections.abc import Iterable, Iterator, Sequence
from concurrent import futures

import numpy as np

from saejax.data.order import Stream
from saejax.data.store.reader import Store

_REQUEST_BYTES = 2**25  # per thread; at least one chunk


class Reader:
  """The items of a stream that a process needs, in order.

  At most `ahead + 1` windows are in memory, in buffers that are used again.

  Args:
    store: the store of the stream.
    stream: the order.
    columns: columns to read.
    spans: intervals of items that are needed, ascending.
    pool: threads that read.
    ahead: windows read ahead.
    offset: what is added to row numbers.
  """

  def __init__(
    self,
    store: Store,
    stream: Stream,
    columns: Sequence[str],
    spans: Iterable[tuple[int, int]],
    *,
    pool: futures.Executor,
    ahead: int,
    offset: int = 0,
  ):
    self._store, self._stream, self._columns = store, stream, columns
    self._plans = _windows(stream, spans)
    self._pool, self._offset = pool, offset
    self._free: list[dict[str, np.ndarray]] = []
    self._held: collections.deque[_Window] = collections.deque()
    for _ in range(ahead + 1):
      self._start()

  def read(self, out: dict[str, np.ndarray], first: int, stop: int) -> None:
    """Copies the next items to their place in a batch.

    Args:
      out: by column, bytes of items [batch, item bytes]; and "row".
      first, stop: place in the batch.
    """
    while first < stop:
      window = self._held[0]
      window.wait()
      end = min(stop, first + window.left)
      window.copy(out, first, end)
      first = end
      if not window.left:
        self._held.popleft()
        self._free.append(window.buffers)
        self._start()

  def cancel(self) -> None:
    """Drops what is read ahead."""
    for window in self._held:
      window.cancel()

  def _start(self) -> None:
    plan = next(self._plans, None)
    if plan is not None:
      buffers = self._free.pop() if self._free else {}
      window = _Window(self._store, self._stream, *plan, buffers, self._offset)
      window.start(self._pool, self._columns)
      self._held.append(window)


def _windows(
  stream: Stream, spans: Iterable[tuple[int, int]]
) -> Iterator[tuple[int, np.ndarray]]:
  """Yields each window that has items of the spans, with their numbers in it."""
  spans = iter(spans)
  span = next(spans, None)
  while span is not None:
    index, start = stream.find(span[0])
    chunks = stream.window(index)
    items = int((chunks[:, 1] - chunks[:, 0]).sum()) // stream.group
    needed: list[list[int]] = []
    while span is not None and span[0] < start + items:
      first, stop = span[0] - start, min(span[1] - start, items)
      if needed and needed[-1][1] == first:
        needed[-1][1] = stop
      else:
        needed.append([first, stop])
      rest = start + stop
      span = (rest, span[1]) if rest < span[1] else next(spans, None)
    yield index, np.concatenate([np.arange(a, b) for a, b in needed])


class _Window:
  """Items of one window, in the order of the disk; `order` lists their places.

  Args:
    store, stream: what is read.
    index: number of the window.
    needed: needed items by their number in the window's order.
    buffers: bytes by column, for use if they are large enough.
    offset: what is added to row numbers.
  """

  def __init__(
    self,
    store: Store,
    stream: Stream,
    index: int,
    needed: np.ndarray,
    buffers: dict[str, np.ndarray],
    offset: int,
  ):
    self._store, self._stream, self._index = store, stream, index
    self._needed, self.buffers, self._offset = needed, buffers, offset
    self._chunks = stream.window(index)
    self._reads: list[futures.Future[None]] = []
    self._taken = 0

  @property
  def left(self) -> int:
    """Items that were not taken yet."""
    return len(self._needed) - self._taken

  def start(self, pool: futures.Executor, columns: Sequence[str]) -> None:
    """Lets the threads of a pool read the window."""
    sizes = self._chunks[:, 1] - self._chunks[:, 0]
    starts = np.concatenate([[0], np.cumsum(sizes)]) // self._stream.group
    items = int(starts[-1])
    group = self._stream.group
    # Room for the needed part of the largest window: buffers that grow would
    # leave holes in the heap.
    room = -(-len(self._needed) * self._stream.most // items)
    for name in (*columns, "row"):
      width = group * (8 if name == "row" else _bytes(self._store, name))
      held = self.buffers.get(name)
      if held is None or len(held) < len(self._needed):
        self.buffers[name] = np.empty((room, width), np.uint8)
    self._order = pool.submit(self._permuted, items)
    by_place = np.argsort(self._chunks[:, 0], kind="stable")
    for name in columns:
      chunk_bytes = int(sizes.max()) * _bytes(self._store, name)
      at_once = max(1, _REQUEST_BYTES // chunk_bytes)
      for i in range(0, len(by_place), at_once):
        which = by_place[i : i + at_once]
        read = pool.submit(self._read, name, which, starts)
        self._reads.append(read)

  def wait(self) -> None:
    """Waits until the window is read; raises what reading raised."""
    while self._reads:
      self._reads[-1].result()
      self._reads.pop()
    self._order.result()

  def cancel(self) -> None:
    """Drops the reads that did not start."""
    for read in self._reads:
      read.cancel()

  def copy(self, out: dict[str, np.ndarray], first: int, stop: int) -> None:
    """Copies the next items to places first to stop of a batch."""
    order, _ = self._order.result()
    which = order[self._taken : self._taken + stop - first]
    for name, buffer in self.buffers.items():
      # Clipping needs no copy, and no index is out of range.
      np.take(buffer, which, axis=0, out=out[name][first:stop], mode="clip")
    self._taken += stop - first

  def _permuted(self, items: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Places in the buffers by the order of needed items, and which are kept."""
    order = self._stream.permutation(self._index, items)
    kept = None
    if len(self._needed) < items:
      order = order[self._needed]
      kept = np.zeros(items, bool)
      kept[order] = True
      order = (np.cumsum(kept) - 1)[order]
    group = self._stream.group
    row = np.concatenate([np.arange(a, b) for a, b in self._chunks])
    row = (row + self._offset).reshape(-1, group)
    own = row if kept is None else row[kept]
    self.buffers["row"][: len(own)] = own.view(np.uint8)
    return order, kept

  def _read(self, name: str, which: np.ndarray, starts: np.ndarray) -> None:
    """Reads chunks of a column into its buffer."""
    # Without rows to leave out, reading need not wait for the order.
    whole = len(self._needed) == starts[-1]
    kept = None if whole else self._order.result()[1]
    intervals = [(int(a), int(b)) for a, b in self._chunks[which]]
    buffer = self.buffers[name]
    values = self._store.read_each(intervals, name)
    for i, part in zip(which.tolist(), values, strict=True):
      items = np.ascontiguousarray(part).reshape(-1).view(np.uint8)
      items = items.reshape(-1, buffer.shape[1])
      start, stop = int(starts[i]), int(starts[i + 1])
      if kept is not None:
        items = items[kept[start:stop]]
        start = int(np.count_nonzero(kept[:start]))
      buffer[start : start + len(items)] = items


def _bytes(store: Store, name: str) -> int:
  return store.columns[name].row_bytes
