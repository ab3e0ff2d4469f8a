"""Collects the rows of a source into buckets."""

import collections
import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from saejax.data.rows import Block, Resume, Span


@dataclasses.dataclass(frozen=True, eq=False)
class Bucket:
  """Rows ready to be written.

  Attributes:
    span: place of its span among those asked for.
    values: every column [rows, ...].
    resume: where the source goes on after them.
    dropped: number of rows dropped by each rule.
    read: units that the source read, such as tokens.
  """

  span: int
  values: dict[str, np.ndarray]
  resume: Resume
  dropped: dict[str, int]
  read: int


class Collector:
  """Collects the blocks of spans, one bucket per span.

  Args:
    spans: the spans, in order.

  Attributes:
    rows: rows collected so far.
    read: units read so far.
    dropped: rows dropped so far, by rule.
  """

  def __init__(self, spans: Sequence[Span]):
    self.rows = self.read = 0
    self.dropped: collections.Counter[str] = collections.Counter()
    self._spans = spans
    self._parts = _Parts()

  def add(self, block: Block) -> Iterator[Bucket]:
    """Adds a block.

    Args:
      block: the next block of the spans.

    Yields:
      The bucket of the span before, where it is the first of its span.
    """
    last = self._parts.last
    if last is not None and last.span != block.span:
      yield from self.end()
    span = self._spans[block.span]
    self._parts.add(block, span.stop - span.start)
    self.rows += len(block.values["x"])
    self.read += block.read
    self.dropped.update(block.dropped)

  def end(self) -> Iterator[Bucket]:
    """Yields the bucket that was begun, if there is one."""
    parts, self._parts = self._parts, _Parts()
    if parts.last is not None:
      yield parts.bucket()


class _Parts:
  """The rows of one bucket, in arrays of their largest size."""

  def __init__(self):
    self.last: Block | None = None
    self._values: dict[str, np.ndarray] = {}
    self._rows = self._read = 0
    self._dropped: collections.Counter[str] = collections.Counter()

  def add(self, block: Block, size: int) -> None:
    stop = self._rows + len(block.values["x"])
    for name, column in block.values.items():
      if name not in self._values:
        self._values[name] = np.empty((size, *column.shape[1:]), column.dtype)
      self._values[name][self._rows : stop] = column
    self._rows, self.last = stop, block
    self._dropped.update(block.dropped)
    self._read += block.read

  def bucket(self) -> Bucket:
    assert self.last is not None
    return Bucket(
      span=self.last.span,
      values={k: v[: self._rows] for k, v in self._values.items()},
      resume=self.last.resume,
      dropped=dict(self._dropped),
      read=self._read,
    )
