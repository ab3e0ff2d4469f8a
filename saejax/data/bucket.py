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
    resume: "at", the position of the last block, and "rows", how many of its
      rows are in this bucket or in earlier ones.
    dropped: by rule, over the blocks that began in this bucket.
    read: what the source read for those blocks.
  """

  values: dict[str, np.ndarray]
  resume: dict[str, Any]
  dropped: dict[str, int]
  read: int


class Collector:
  """Collects blocks of a source into full buckets.

  A block is counted in the bucket where it begins; after a restart the block at
  the resume point is read again, and only its rows beyond `skip` are used.

  Attributes:
    wanted: rows still to come.
    rows: rows taken so far, and `read` and `dropped` likewise.
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
    """Adds the rows of a block; yields full buckets."""
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
    """The last, partial bucket, if any; the next block would be at position."""
    return self._end(position, 0) if self._filled else None

  @property
  def pending(self) -> tuple[dict[str, int], int]:
    """Counts of dropped rows and of units read since the last bucket."""
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
    found = Bucket(
      values={k: v[: self._filled] for k, v in self._values.items()},
      resume={"at": dict(position), "rows": rows},
      dropped=dict(self._dropped),
      read=self._read,
    )
    self._start()
    return found
