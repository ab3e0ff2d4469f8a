"""Rows collected into buckets, with the accounts that make resume exact."""

import collections
import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np

from saejax.data.text import windows


@dataclasses.dataclass(frozen=True, eq=False)
class Bucket:
  """Rows ready to be written.

  Attributes:
    columns: x [rows, d], doc, pos, tok [rows].
    resume: the fields of a `windows.Point` and "rows", how many rows of that
      forward batch are in this bucket or in earlier ones.
    dropped: by rule, over the forward batches that began in this bucket.
    tokens: tokens of documents in those batches.
  """

  columns: dict[str, np.ndarray]
  resume: dict[str, int]
  dropped: dict[str, int]
  tokens: int


class Collector:
  """Takes the rows of forward batches, gives full buckets.

  A forward batch is counted where it begins; one that an earlier bucket has
  begun comes again after a restart, and gives only its rows beyond `skip`.

  Attributes:
    wanted: rows still to come.
    rows: rows taken so far, and tokens and dropped rows likewise.
  """

  def __init__(self, bucket_rows: int, wanted: int, skip: int):
    self.wanted = wanted
    self.rows = self.tokens = 0
    self.dropped: collections.Counter[str] = collections.Counter()
    self._bucket_rows, self._skip = bucket_rows, skip
    self._start()

  def _start(self) -> None:
    self._size = min(self._bucket_rows, self.wanted)
    self._columns: dict[str, np.ndarray] = {}
    self._filled = 0
    self._dropped: collections.Counter[str] = collections.Counter()
    self._tokens = 0

  def add(
    self,
    batch: windows.Batch,
    columns: Mapping[str, np.ndarray],
    dropped: Mapping[str, int],
  ) -> Iterator[Bucket]:
    """Takes the rows of a batch that passed all rules.

    Args:
      batch: the batch.
      columns: x, doc, pos, tok of its rows.
      dropped: all its dropped rows by rule.
    """
    if not self._skip:
      for counter in (self.dropped, self._dropped):
        counter.update(dropped)
      self.tokens, self._tokens = (
        self.tokens + batch.tokens,
        self._tokens + batch.tokens,
      )
    used, self._skip = self._skip, 0
    rows = len(columns["x"])
    while used < rows and self.wanted:
      taken = min(self._size - self._filled, rows - used)
      self._append({k: v[used : used + taken] for k, v in columns.items()})
      used, self.wanted = used + taken, self.wanted - taken
      if self._filled == self._size:
        yield self._end(batch.point, used)

  def rest(self, point: windows.Point) -> Bucket | None:
    """The last, partial bucket, if any; the next batch would be at point."""
    return self._end(point, 0) if self._filled else None

  @property
  def pending(self) -> tuple[dict[str, int], int]:
    """Dropped rows and tokens since the last bucket."""
    return dict(self._dropped), self._tokens

  def _append(self, part: Mapping[str, np.ndarray]) -> None:
    for name, column in part.items():
      if name not in self._columns:
        shape = (self._size, *column.shape[1:])
        self._columns[name] = np.empty(shape, column.dtype)
      stop = self._filled + len(column)
      self._columns[name][self._filled : stop] = column
    self._filled += len(part["x"])
    self.rows += len(part["x"])

  def _end(self, point: windows.Point, rows: int) -> Bucket:
    found = Bucket(
      columns={k: v[: self._filled] for k, v in self._columns.items()},
      resume=point._asdict() | {"rows": rows},
      dropped=dict(self._dropped),
      tokens=self._tokens,
    )
    self._start()
    return found
