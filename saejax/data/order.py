"""The order in which a loader gives rows, as a function of the batch's number.

An epoch of a stream permutes its chunks by (seed, epoch) and cuts them into
windows; the rows of a window are permuted by (seed, epoch, window). A store is
one stream, or its chunks are dealt to several, its lanes. A batch is the
concatenation of equal parts of the lanes; in each, stores have shares by weight.
The number of processes enters nowhere: a process reads a slice of each batch.

An item is a row, or a group of rows that are read as a unit.
"""

import dataclasses
import functools
import heapq
from collections.abc import Iterator, Sequence

import numpy as np

from saejax.data import shuffle


@dataclasses.dataclass(frozen=True, eq=False)
class Stream:
  """The items of some chunks, epoch after epoch without end.

  Attributes:
    chunks: (start, stop) row of each chunk, [chunks, 2].
    seed: seed of the permutations.
    window_chunks: maximum number of chunks per window.
    group: rows per item.
    number: distinguishes the streams of a loader.
  """

  chunks: np.ndarray
  seed: int
  window_chunks: int
  group: int = 1
  number: int = 0

  @functools.cached_property
  def items(self) -> int:
    """Items per epoch."""
    return int((self.chunks[:, 1] - self.chunks[:, 0]).sum()) // self.group

  @functools.cached_property
  def windows(self) -> int:
    """Windows per epoch, which differ by one chunk at most."""
    return -(-len(self.chunks) // self.window_chunks)

  @functools.cached_property
  def most(self) -> int:
    """Upper bound on the items of a window."""
    sizes = np.sort(self.chunks[:, 1] - self.chunks[:, 0])
    count = -(-len(self.chunks) // self.windows)
    return int(sizes[-count:].sum()) // self.group

  def window(self, index: int) -> np.ndarray:
    """Returns the chunks of a window, [c, 2], in the order drawn.

    Args:
      index: number of the window over all epochs.
    """
    epoch, window = divmod(index, self.windows)
    chunks, edges, _ = self._epoch(epoch)
    return chunks[edges[window] : edges[window + 1]]

  def permutation(self, index: int, items: int) -> np.ndarray:
    """Returns the order of the items of a window, [items].

    Args:
      index: number of the window over all epochs.
      items: items of the window.
    """
    place = divmod(index, self.windows)
    key = self._key(shuffle.ROWS, shuffle.STREAM_ROWS)
    return shuffle.permutation(items, *key, *place)

  def find(self, item: int) -> tuple[int, int]:
    """Finds the window with an item.

    Args:
      item: number of the item over all epochs.

    Returns:
      The number of the window and that of its first item, over all epochs.
    """
    epoch, within = divmod(item, self.items)
    first = self._epoch(epoch)[2]
    window = int(np.searchsorted(first, within, side="right")) - 1
    return epoch * self.windows + window, epoch * self.items + int(
      first[window]
    )

  def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The chunks in order, and the first chunk and item of each window."""
    if epoch not in self._epochs:
      key = self._key(shuffle.CHUNKS, shuffle.STREAM_CHUNKS)
      order = shuffle.permutation(len(self.chunks), *key, epoch)
      chunks = self.chunks[order]
      edges = np.arange(self.windows + 1) * len(chunks) // self.windows
      before = np.concatenate([[0], np.cumsum(chunks[:, 1] - chunks[:, 0])])
      self._epochs.clear()
      self._epochs[epoch] = chunks, edges, before[edges] // self.group
    return self._epochs[epoch]

  @functools.cached_property
  def _epochs(self) -> dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    return {}  # of the last epoch that was asked for

  def _key(self, first: int, other: int) -> tuple[int, ...]:
    # The first stream has the keys of a store that is read alone.
    if self.number == 0:
      return first, self.seed
    return other, self.seed, self.number


def dealt(chunks: np.ndarray, lanes: int, seed: int) -> list[np.ndarray]:
  """Deals chunks to lanes whose rows differ by those of one chunk at most.

  Args:
    chunks: (start, stop) row of each chunk, [chunks, 2].
    lanes: number of lanes, at most that of chunks.
    seed: seed of the draw.
  """
  if lanes == 1:
    return [chunks]
  chunks = chunks[shuffle.permutation(len(chunks), shuffle.LANES, seed)]
  rows = chunks[:, 1] - chunks[:, 0]
  dealt: list[list[int]] = [[] for _ in range(lanes)]
  loads = [(0, lane) for lane in range(lanes)]
  for i in np.argsort(-rows, kind="stable").tolist():
    load, lane = loads[0]
    dealt[lane].append(i)
    heapq.heapreplace(loads, (load + int(rows[i]), lane))
  return [chunks[sorted(own)] for own in dealt]


def shares(weights: Sequence[int], items: int) -> list[int]:
  """Splits the first items of a mix among its stores.

  Each entry is monotonic in `items` and differs from items w_i / sum(w) by less
  than the number of stores.

  Args:
    weights: positive weights w of the stores.
    items: number of items.

  >>> [shares((2, 1), items) for items in range(4)]
  [[0, 0], [0, 1], [1, 1], [2, 1]]
  """
  counts, left = [], sum(weights)
  for weight in weights[:-1]:
    count = items * weight // left
    counts.append(count)
    items -= count
    left -= weight
  return [*counts, items]


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
  """The items of the streams that each batch has.

  Attributes:
    streams: by lane, then by store.
    weights: weights of the stores.
    batch_items: items per batch, over all processes; a multiple of the lanes.
  """

  streams: Sequence[Sequence[Stream]]
  weights: Sequence[int]
  batch_items: int

  @property
  def lane_items(self) -> int:
    """Items per batch and lane."""
    return self.batch_items // len(self.streams)

  def taken(self, batch: int) -> list[int]:
    """Returns the items that earlier batches took from each store of a lane.

    Args:
      batch: number of the batch.
    """
    return shares(self.weights, batch * self.lane_items)

  def epochs(self, batch: int) -> list[float]:
    """Returns the passes over each store before a batch.

    Args:
      batch: number of the batch.
    """
    items = [
      sum(s.items for s in own) for own in zip(*self.streams, strict=True)
    ]
    lanes = len(self.streams)
    return [
      lanes * taken / count
      for taken, count in zip(self.taken(batch), items, strict=True)
    ]

  def count(self, epochs: int) -> int:
    """Returns the number of batches with as many items as all epochs have.

    The remainder is dropped; with several lanes the shortest one decides.

    Args:
      epochs: passes over the stores.
    """
    items = min(sum(s.items for s in lane) for lane in self.streams)
    return items * epochs // self.lane_items

  def cut(
    self, batch: int, first: int, stop: int
  ) -> Iterator[tuple[tuple[int, int], int, int]]:
    """Yields the items of a slice of a batch, in order.

    Args:
      batch: number of the batch.
      first, stop: the slice, in items of the batch.

    Yields:
      (lane, store) of a stream, and its first item and the one after its last.
    """
    begin = self.taken(batch)
    end = self.taken(batch + 1)
    size = self.lane_items
    for lane in range(first // size, -(-stop // size)):
      offset = lane * size
      for store, (a, b) in enumerate(zip(begin, end, strict=True)):
        low, high = max(a, a + first - offset), min(b, a + stop - offset)
        if low < high:
          yield (lane, store), low, high
        offset += b - a
