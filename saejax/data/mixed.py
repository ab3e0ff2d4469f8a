"""Batches of a row source in a mixed order, from a bounded buffer.

The order is a function of the source, the seed and the size of the buffer. An
epoch is cut into buckets of half a buffer, and the rows of a bucket are split at
random into two halves. Mix m is the second half of bucket m - 1 and the first
half of bucket m, shuffled; the last mix of an epoch is the second half of its last
bucket. Batches are cut from the mixes one after the other, across epochs too. So a
batch mixes rows of as many consecutive ones as the buffer has places, each row of
an epoch comes once, and a position is a few numbers: a stream that is resumed
computes at most two buckets again.
"""

import collections
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from saejax.data import mixing, plan, shuffle
from saejax.data.batches import MEASURE_BATCHES
from saejax.data.buffer import Bucket, Filling
from saejax.data.rows import Resume, RowSource, Span
from saejax.errors import InputError

# Batches, and rows, whose provenance is known: more than are under way.
_KEPT, _KEPT_ROWS = 512, 2**22


class _Half(NamedTuple):
  """Rows of a bucket: places in the buffer, and numbers."""

  places: np.ndarray
  row: np.ndarray


_NONE = _Half(np.empty(0, np.int64), np.empty(0, np.int64))


class _At(NamedTuple):
  """The position of a stream.

  Attributes:
    batches: batches given.
    epoch: number of the epoch.
    mix: number of the mix in the epoch.
    offset: rows of the mix that were given.
    resume: where the source goes on to give bucket mix - 1; None for its
      beginning.
  """

  batches: int = 0
  epoch: int = 0
  mix: int = 0
  offset: int = 0
  resume: Resume | None = None


class MixedBatches:
  """Batches of rows that a thread computes ahead, without end.

  Args:
    source: the rows, prepared.
    most_rows: maximum number of rows per epoch.
    buffer_rows: rows that the buffer has room for.
    batch_rows: rows per batch.
    seed: seed of the order, which differs between epochs.
    content: identity of the rows; part of a position.

  Raises:
    InputError: the buffer has no room for two batches, or there are several
      processes.

  >>> from saejax.data import files
  >>> source = files.array_rows(np.arange(12, dtype=np.float32).reshape(6, 2))
  >>> batches = MixedBatches(
  ...   source, most_rows=6, buffer_rows=4, batch_rows=2, seed=0, content=""
  ... )
  >>> sorted(int(i) for _ in range(3) for i in next(batches)["row"])
  [0, 1, 2, 3, 4, 5]
  >>> batches.close()
  """

  def __init__(
    self,
    source: RowSource,
    *,
    most_rows: int,
    buffer_rows: int,
    batch_rows: int,
    seed: int,
    content: str,
  ):
    if not 1 <= batch_rows <= buffer_rows // 2:
      raise InputError(
        "buffer_rows",
        buffer_rows,
        f"must have room for two batches, of {batch_rows} rows each",
        f"raise it to {2 * batch_rows} or more, or lower batch_rows",
      )
    if jax.process_count() > 1:
      raise InputError(
        "processes",
        jax.process_count(),
        "must be 1 where rows are trained on as they are computed",
        "harvest them into a store, which several processes can write and read",
      )
    self._source, self._places = source, buffer_rows
    self._batch_rows, self._seed = batch_rows, seed
    self._order = {
      "content": content,
      "batch_rows": batch_rows,
      "seed": seed,
      "buffer_rows": buffer_rows,
    }
    size = buffer_rows // 2
    starts = range(0, most_rows, size)
    self._spans = [Span(i, min(i + size, most_rows)) for i in starts]
    columns = source.columns.items()
    self._trained = [name for name, column in columns if column.train]
    self._others = [name for name, column in columns if not column.train]
    self._filling: Filling | None = None
    self._known: collections.deque[dict[str, np.ndarray]]
    kept = min(_KEPT, max(8, _KEPT_ROWS // batch_rows))
    self._known = collections.deque(maxlen=kept)
    self._at = _At()

  def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
    return self

  def __next__(self) -> dict[str, np.ndarray]:
    if self._filling is None:
      self._start()
    parts: list[dict[str, np.ndarray]] = []
    left = self._batch_rows
    while left:
      if self._at.offset == len(self._mix.places):
        self._advance()
        continue
      stop = self._at.offset + left
      parts.append(self._taken(slice(self._at.offset, stop)))
      count = len(parts[-1]["row"])
      self._at = self._at._replace(offset=self._at.offset + count)
      left -= count
    self._at = self._at._replace(batches=self._at.batches + 1)
    batch = {n: np.concatenate([part[n] for part in parts]) for n in parts[0]}
    self._known.append({n: batch[n] for n in (*self._others, "row")})
    return {name: batch[name] for name in (*self._trained, "row")}

  def get_state(self) -> dict[str, Any]:
    """Returns the position, JSON-serialisable."""
    at = self._at._asdict()
    if self._at.resume is not None:
      at["resume"] = self._at.resume._asdict()
    return at | {"order": dict(self._order)}

  def check(self, state: Any) -> None:
    """Checks that a position is one of this stream.

    Args:
      state: the position.

    Raises:
      InputError: it is of other rows or another order, or is none.
    """
    plan.check_position(state, self._order)

  def set_state(self, state: Mapping[str, Any]) -> None:
    """Moves to a position; the next batch waits for at most two buckets.

    Args:
      state: a position returned by `get_state`.

    Raises:
      InputError: see `check`.
    """
    self.check(state)
    self.close()
    at = {name: state[name] for name in _At._fields}
    if at["resume"] is not None:
      at["resume"] = Resume(**at["resume"])
    self._at = _At(**at)

  def measure(self, batch: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Measures the batch given last, if it is the first of a hundred.

    Args:
      batch: the batch.

    Returns:
      Whole passes over the rows so far, and where rows have a document the
      entropy of documents in the batch, -sum p ln p / ln B.
    """
    if self._at.batches % MEASURE_BATCHES != 1:
      return {}
    found = {"epochs": float(self._at.epoch)}
    if mixing.DOCUMENT in self._known[-1]:
      documents = self._known[-1][mixing.DOCUMENT]
      found["doc_entropy"] = mixing.entropy(documents)
    return found

  def provenance(
    self, rows: Sequence[int] | np.ndarray
  ) -> dict[str, np.ndarray]:
    """Returns the columns that training does not read, of rows given lately.

    Args:
      rows: row numbers, as batches have them.
    """
    known = list(reversed(self._known))
    place = {}
    for i, batch in enumerate(known):
      for j, row in enumerate(batch["row"].tolist()):
        place.setdefault(row, (i, j))
    where = [place[int(row)] for row in rows]
    return {
      name: np.asarray([known[i][name][j] for i, j in where])
      for name in self._others
    }

  def close(self) -> None:
    """Stops the thread that computes ahead."""
    if self._filling is not None:
      self._stop()
      self._filling = None

  def _start(self) -> None:
    """Begins to fill at the position, and drops what was given before it."""
    first = max(self._at.mix - 1, 0)
    self._filling = Filling(
      self._source, self._spans, self._places, first, self._at.resume
    )
    # Also where this is never closed, and when Python ends.
    self._stop = weakref.finalize(self, self._filling.close)
    self._older = _NONE
    if self._at.mix:
      oldest = self._filling.bucket()
      assert oldest is not None
      done, self._older = self._halves(oldest, first)
      self._filling.free(done.places)
    self._load()
    self._filling.free(self._mix.places[: self._at.offset])

  def _advance(self) -> None:
    """Goes to the next mix."""
    if self._bucket is None:
      at = {"epoch": self._at.epoch + 1, "mix": 0, "resume": None}
    else:
      at = {"mix": self._at.mix + 1, "resume": self._bucket.resume}
    self._at = self._at._replace(offset=0, **at)
    self._older = self._newer
    self._load()

  def _load(self) -> None:
    """Waits for the bucket of the mix, and shuffles the mix."""
    assert self._filling is not None
    at = self._at
    self._bucket = self._filling.bucket()
    newer, self._newer = _NONE, _NONE
    if self._bucket is not None:
      newer, self._newer = self._halves(self._bucket, at.mix)
    pairs = zip(self._older, newer, strict=True)
    joined = [np.concatenate(pair) for pair in pairs]
    order = self._permutation(len(joined[0]), shuffle.ONLINE_MIX, at.mix)
    self._mix = _Half(*(part[order] for part in joined))

  def _halves(self, bucket: Bucket, number: int) -> tuple[_Half, _Half]:
    """The rows of a bucket in two halves."""
    size = len(bucket.places)
    order = self._permutation(size, shuffle.ONLINE_HALVES, number)
    halves = order[: -(-size // 2)], order[-(-size // 2) :]
    one, two = (_Half(bucket.places[h], bucket.row[h]) for h in halves)
    return one, two

  def _permutation(self, size: int, kind: int, number: int) -> np.ndarray:
    return shuffle.permutation(size, kind, self._seed, self._at.epoch, number)

  def _taken(self, part: slice) -> dict[str, np.ndarray]:
    """Rows of the mix by column, with their numbers."""
    assert self._filling is not None
    found = self._filling.take(self._mix.places[part])
    return found | {"row": self._mix.row[part]}
