"""A bounded buffer of rows, filled from a source by a thread.

The rows of an epoch are cut into buckets. The thread puts blocks into free places
of the buffer, and waits while there are too few; whoever takes rows frees their
places. Which places rows have depends on timing, but not what a bucket holds.
"""

import collections
import threading
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from saejax.data.rows import Resume, RowSource, Span
from saejax.errors import InputError


class Bucket(NamedTuple):
  """The rows of a span of an epoch.

  Attributes:
    places: of its rows in the buffer, in the order of the source.
    row: their numbers; those that the source drops by value leave a gap at the
      end, as in a store.
    resume: where the source goes on to give these rows again; None for its
      beginning.
  """

  places: np.ndarray
  row: np.ndarray
  resume: Resume | None


class Filling:
  """Fills a buffer, epoch after epoch, until it is closed.

  Args:
    source: the rows, prepared.
    spans: the buckets of an epoch, each of at most half of the places.
    places: rows that the buffer has room for.
    first: number of the first bucket.
    resume: where the source goes on to give it.
  """

  def __init__(
    self,
    source: RowSource,
    spans: Sequence[Span],
    places: int,
    first: int = 0,
    resume: Resume | None = None,
  ):
    self._source, self._spans = source, spans
    self._arrays = {
      name: np.empty((places, *column.shape), column.dtype)
      for name, column in source.columns.items()
    }
    self._free, self._left = np.arange(places), places
    self._changed = threading.Condition()
    self._ready: collections.deque[Bucket | None] = collections.deque()
    self._error: BaseException | None = None
    self._closed = False
    self._thread = threading.Thread(
      target=self._run, args=(first, resume), name="online", daemon=True
    )
    self._thread.start()

  def bucket(self) -> Bucket | None:
    """Waits for the next bucket; None after the last of an epoch.

    Raises:
      Exception: that of the source, after the buckets before it.
    """
    with self._changed:
      self._changed.wait_for(lambda: self._ready or self._error)
      if self._ready:
        return self._ready.popleft()
      assert self._error is not None
      raise self._error

  def take(self, places: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the rows at some places, and frees these.

    Args:
      places: of rows of buckets that were given.
    """
    found = {name: array[places] for name, array in self._arrays.items()}
    self.free(places)
    return found

  def free(self, places: np.ndarray) -> None:
    """Frees places without reading them.

    Args:
      places: of rows of buckets that were given.
    """
    with self._changed:
      self._free[self._left : self._left + len(places)] = places
      self._left += len(places)
      self._changed.notify_all()

  def close(self) -> None:
    """Stops the thread after the block that it is at."""
    with self._changed:
      self._closed = True
      self._changed.notify_all()
    if threading.current_thread() is not self._thread:
      self._thread.join()

  def _run(self, first: int, resume: Resume | None) -> None:
    try:
      while self._fill(first, resume):
        first, resume = 0, None
    except BaseException as error:
      with self._changed:
        self._error = error
        self._changed.notify_all()

  def _fill(self, first: int, resume: Resume | None) -> bool:
    """Fills the buckets of an epoch from one on; False where it is closed."""
    number, last, rows = first, None, 0
    dropped: collections.Counter[str] = collections.Counter()
    places: list[np.ndarray] = []
    for block in self._source.blocks(self._spans[first:], resume):
      while number < first + block.span:
        self._give(self._bucket(number, places, resume))
        number, places, resume = number + 1, [], last
      put = self._put(block.values)
      if put is None:
        return False
      places.append(put)
      last, rows = block.resume, rows + len(put)
      dropped.update(block.dropped)
    if not rows and first == 0:  # it would be read over and over
      raise _no_rows(dropped)
    self._give(self._bucket(number, places, resume))
    self._give(None)
    return True

  def _bucket(
    self, number: int, places: Sequence[np.ndarray], resume: Resume | None
  ) -> Bucket:
    joined = np.concatenate([np.empty(0, np.int64), *places])
    row = self._spans[number].start + np.arange(len(joined))
    return Bucket(joined, row, resume)

  def _put(self, values: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """Puts rows into free places; None where it was closed before."""
    count = len(next(iter(values.values())))
    with self._changed:
      self._changed.wait_for(lambda: self._closed or self._left >= count)
      if self._closed:
        return None
      self._left -= count
      places = self._free[self._left : self._left + count].copy()
    for name, array in self._arrays.items():
      array[places] = values[name]
    return places

  def _give(self, bucket: Bucket | None) -> None:
    with self._changed:
      self._ready.append(bucket)
      self._changed.notify_all()


def _no_rows(dropped: Mapping[str, int]) -> InputError:
  counts = ", ".join(f"{rule} {n}" for rule, n in dropped.items() if n)
  return InputError(
    "source",
    "online",
    f"must give rows, and gave none (dropped: {counts or 'none'})",
    "use other data, or relax the rules that drop rows",
  )
