"""Collects the rows of a source into buckets."""

import collections
import dataclasses
from collections.abc import Iterable, Iterator, Sequence

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

  Attributes:
    rows: rows collected so far.
    read: units read so far.
    dropped: rows dropped so far, by rule.
  """

  def __init__(self):
    self.rows = self.read = 0
    self.dropped: collections.Counter[str] = collections.Counter()

  def buckets(
    self, blocks: Iterable[Block], spans: Sequence[Span]
  ) -> Iterator[Bucket]:
    """Yields a bucket for each span that has a block.

    Args:
      blocks: blocks of the spans, in order.
      spans: the spans.
    """
    parts = _Parts()
    for block in blocks:
      if parts.last is not None and parts.last.span != block.span:
        yield parts.bucket()
        parts = _Parts()
      span = spans[block.span]
      parts.add(block, span.stop - span.start)
      self.rows += len(block.values["x"])
      self.read += block.read
      self.dropped.update(block.dropped)
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
