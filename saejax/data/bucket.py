"""Collects rows into buckets, with the counts that make resuming exact."""

import collections
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from saejax.data.rows import Block


@dataclasses.dataclass(frozen=True, eq=False)
class Bucket:
  """Rows ready to be written.

  Attributes:
    values: every column [rows, ...].
    resume: the resume point: "at" is the position of the last block and "rows"
      the number of its rows in this bucket and earlier ones.
    dropped: number of rows dropped by each rule, over the blocks that began in
      this bucket.
    read: units the source read for those blocks, such as tokens.
  """

  values: dict[str, np.ndarray]
  resume: dict[str, Any]
  dropped: dict[str, int]
  read: int


class Collector:
  """Collects blocks of a source into full buckets.

  A block is counted in the bucket where it begins; after a restart the block at
  the resume point is read again, and only its rows beyond `skip` are used.

  Args:
    bucket_rows: rows per bucket.
    wanted: rows to collect in all.
    skip: rows of the first block that earlier buckets hold.

  Attributes:
    wanted: rows still to collect.
    rows: rows collected so far.
    read: units read so far.
    dropped: rows dropped so far, by rule.
  """

  def __init__(self, bucket_rows: int, wanted: int, skip: int):
    self.wanted = wanted
    self.rows = self.read = 0
    self.dropped: collections.Counter[str] = collections.Counter()
    self._bucket_rows, self._skip = bucket_rows, skip
    self._start()

  def _start(self) -> None:
    self._size = min(self._bucket_rows, self.wanted)
    self._values: dict[str, np.ndarray] = {}
    self._filled = 0
    self._dropped: collections.Counter[str] = collections.Counter()
    self._read = 0

  def add(self, block: Block) -> Iterator[Bucket]:
    """Adds the rows of a block.

    Args:
      block: the next block of the source.

    Yields:
      Full buckets.
    """
    if not self._skip:
      for counter in (self.dropped, self._dropped):
        counter.update(block.dropped)
      self.read += block.read
      self._read += block.read
    used, self._skip = self._skip, 0
    rows = len(block.values["x"])
    while used < rows and self.wanted:
      taken = min(self._size - self._filled, rows - used)
      self._append({k: v[used : used + taken] for k, v in block.values.items()})
      used, self.wanted = used + taken, self.wanted - taken
      if self._filled == self._size:
        yield self._end(block.position, used)

  def rest(self, position: Mapping[str, Any]) -> Bucket | None:
    """Returns the last, partial bucket, or None where it is empty.

    Args:
      position: position after the last block.
    """
    return self._end(position, 0) if self._filled else None

  @property
  def pending(self) -> tuple[dict[str, int], int]:
    """Dropped rows by rule and units read since the last bucket."""
    return dict(self._dropped), self._read

  def _append(self, part: Mapping[str, np.ndarray]) -> None:
    for name, column in part.items():
      if name not in self._values:
        shape = (self._size, *column.shape[1:])
        self._values[name] = np.empty(shape, column.dtype)
      stop = self._filled + len(column)
      self._values[name][self._filled : stop] = column
    self._filled += len(part["x"])
    self.rows += len(part["x"])

  def _end(self, position: Mapping[str, Any], rows: int) -> Bucket:
    full = Bucket(
      values={k: v[: self._filled] for k, v in self._values.items()},
      resume={"at": dict(position), "rows": rows},
      dropped=dict(self._dropped),
      read=self._read,
    )
    self._start()
    return full
