"""One mixed stream for several runs, each with a position of its own.

So one forward pass serves SAEs of any number of sizes at any number of sites.
"""

import collections
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from saejax.data.mixed import MixedBatches
from saejax.data.online import OnlineRows


class _Given(NamedTuple):
  """A batch of a stream.

  Attributes:
    batch: its columns.
    state: position after it.
    measured: facts about its rows.
  """

  batch: Mapping[str, np.ndarray]
  state: Any
  measured: dict[str, float]


class _Shared:
  """A stream that is read once for all its readers.

  A batch is kept until every open reader has it or is beyond it, so that those
  that lag should read first. The stream begins at the earliest reader.
  """

  def __init__(self, batches: MixedBatches):
    self.batches = batches
    self.readers: list[Reader] = []
    self._kept: collections.deque[_Given] = collections.deque()
    self._end: int | None = None  # batches read; None before the first

  def give(self, number: int) -> _Given:
    """The batch of a number, at least that of the reader that is behind."""
    if self._end is None:
      earliest = min(self.readers, key=lambda reader: reader.number)
      self._end = earliest.number
      self.batches.set_state(earliest.get_state())
    while self._end <= number:
      batch = next(self.batches)
      measured = self.batches.measure(batch)
      self._kept.append(_Given(batch, self.batches.get_state(), measured))
      self._end += 1
    return self._kept[number - self._end]

  def forget(self) -> None:
    """Drops the batches that no reader needs."""
    least = min((reader.number for reader in self.readers), default=0)
    while self._kept and self._kept[0].state["batches"] <= least:
      self._kept.popleft()

  def restart(self) -> None:
    """Begins again at the earliest reader."""
    self._kept.clear()
    self._end = None


class Reader:
  """Batches of the rows at a site; `data.batches.Batches`, made by `readers`."""

  process_count = 1

  def __init__(self, shared: _Shared, online: OnlineRows):
    self._shared, self._rows = shared, online
    self.fields = online.trained
    self._state = shared.batches.get_state()
    self._measured: dict[str, float] = {}
    shared.readers.append(self)

  def __enter__(self) -> "Reader":
    return self

  def __exit__(self, *_: object) -> None:
    self.close()

  @property
  def number(self) -> int:
    """Number of the next batch."""
    return self._state["batches"]

  def __next__(self) -> dict[str, np.ndarray]:
    found = self._shared.give(self.number)
    self._state, self._measured = found.state, found.measured
    self._shared.forget()
    batch = {name: found.batch[self._rows.names[name]] for name in self.fields}
    return batch | {"row": found.batch["row"]}

  def get_state(self) -> Any:
    """Returns the position, JSON-serialisable."""
    return self._state

  def set_state(self, state: Any) -> None:
    """Moves to a position; rows are computed again from the earliest reader.

    Args:
      state: a position returned by `get_state`.

    Raises:
      InputError: the position is of other rows or another order, or is none.
    """
    self._shared.batches.check(state)
    self._state = state
    self._shared.restart()

  def sample(self, rows: int) -> dict[str, np.ndarray]:
    """Samples the first rows, see `OnlineRows.sample`.

    Args:
      rows: maximum number of rows.
    """
    return self._rows.sample(rows)

  def measure(self, batch: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Returns measurements of the batch given last, see `MixedBatches.measure`.

    Args:
      batch: not read.
    """
    return self._measured

  def provenance(
    self, rows: Sequence[int] | np.ndarray
  ) -> dict[str, np.ndarray]:
    """Returns where rows come from, see `MixedBatches.provenance`.

    Args:
      rows: numbers of rows that were given lately.
    """
    return self._shared.batches.provenance(rows)

  def close(self) -> None:
    """Reads no more; the last reader stops the stream."""
    if self in self._shared.readers:
      self._shared.readers.remove(self)
      self._shared.forget()
    if not self._shared.readers:
      self._shared.batches.close()


def readers(
  rows: Sequence[OnlineRows], *, batch_rows: int, seed: int
) -> list[Reader]:
  """Streams of the same batches, computed once.

  Args:
    rows: of one origin; the same may come several times.
    batch_rows, seed: as for `MixedBatches`.

  Returns:
    A stream for each. The one that is behind should be read first.

  Raises:
    InputError: see `MixedBatches`.

  >>> from saejax.data import files, online
  >>> source = files.array_rows(np.arange(12, dtype=np.float32).reshape(6, 2))
  >>> rows = online.rows(source, most_rows=6, buffer_rows=4)
  >>> with readers([rows], batch_rows=2, seed=0)[0] as batches:
  ...   sorted(int(i) for _ in range(3) for i in next(batches)["row"])
  [0, 1, 2, 3, 4, 5]
  """
  shared = _Shared(rows[0].origin.batches(batch_rows=batch_rows, seed=seed))
  return [Reader(shared, each) for each in rows]
