"""Streams of batches: the interface, and streams of a store and an iterator.

`streams` has streams of arrays in memory. A stream has an exact position, lists
the fields of its batches, and samples its rows without changing its position.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from saejax.data import mix as mixes
from saejax.data import mixing, shuffle
from saejax.data.mix import Mix
from saejax.data.store.reader import Store
from saejax.errors import InputError

MEASURE_BATCHES = 100  # batches per measured one


class Batches(Protocol):
  """A stream of {"x": [B, d], "row": [B], ...} with an exact position.

  Attributes:
    fields: names of the fields of `Batch` that its batches have.
  """

  @property
  def fields(self) -> tuple[str, ...]:
    """Names of the fields of a batch except "row"."""
    ...

  def __next__(self) -> Mapping[str, np.ndarray]: ...

  def get_state(self) -> Any:
    """Returns the position, JSON-serialisable."""
    ...

  def set_state(self, state: Any) -> None:
    """Moves to a position.

    Args:
      state: a position returned by `get_state`.
    """
    ...

  def sample(self, rows: int) -> Mapping[str, np.ndarray]:
    """Samples rows without changing the position.

    Args:
      rows: maximum number of rows.

    Returns:
      Arrays by field.
    """
    ...


class StoreBatches:
  """Shuffled batches of a store or mix, of this process.

  Args:
    store: what to read.
    **reading: arguments of `loader.batches`.

  Attributes:
    process_count: number of processes that a batch is split over.
  """

  def __init__(self, store: Store | Mix, **reading: Any):
    from saejax.data import loader  # Grain is imported only where it reads

    self.store = store
    self.fields = loader.fields(store, reading.get("columns"))
    self.process_count: int = reading.get("process_count", 1)
    self._group = store.group_rows if reading.get("grouped") else 1
    self._batches: Any = iter(loader.batches(store, **reading))
    self._mixing: mixing.Mixing | None = None

  def __enter__(self) -> "StoreBatches":
    return self

  def __exit__(self, *_: object) -> None:
    self.close()

  def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
    return self

  def __next__(self) -> dict[str, np.ndarray]:
    return next(self._batches)

  def get_state(self) -> Any:
    """Returns the position of the loader's iterator."""
    return self._batches.get_state()

  def set_state(self, state: Any) -> None:
    """Moves to a position.

    Args:
      state: a position returned by `get_state`.
    """
    self._batches.set_state(state)

  def measure(self, batch: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Measures the batch given last, if it is the first of a hundred.

    Args:
      batch: the batch.

    Returns:
      Passes over each store so far, and where rows have a document the entropy
      of documents in the batch and in uniform draws, see `mixing`.
    """
    if self._batches.get_state()["batches"] % MEASURE_BATCHES != 1:
      return {}
    epochs = self._batches.epochs
    names = ["epochs"] if len(epochs) == 1 else None
    names = names or [f"epochs_{i}" for i in range(len(epochs))]
    found = dict(zip(names, epochs, strict=True))
    if mixing.DOCUMENT in self.store.columns:
      if self._mixing is None:
        self._mixing = mixing.Mixing(self.store, len(batch["row"]))
      found["doc_entropy"] = self._mixing.entropy(batch["row"])
      found["doc_entropy_uniform"] = self._mixing.uniform
    return found

  def sample(self, rows: int) -> dict[str, np.ndarray]:
    """Samples rows of finite x from blocks spread over the store.

    Args:
      rows: approximate number of rows, or of groups if they are read grouped.

    Returns:
      Arrays by field; float columns as float32, others in their dtype.
    """
    count_rows = rows * self._group
    columns = {
      name: spread(self.store, count_rows, name) for name in self.fields
    }
    if self._group > 1:
      count = len(columns["x"]) // self._group * self._group
      columns = {
        name: a[:count].reshape(-1, self._group, *a.shape[1:])
        for name, a in columns.items()
      }
    columns = {
      n: a.astype(np.float32) if self.store.columns[n].is_float else a
      for n, a in columns.items()
    }
    x = columns["x"]
    finite = np.isfinite(x).reshape(len(x), -1).all(axis=-1)
    return {name: a[finite] for name, a in columns.items()}

  def provenance(
    self, rows: Sequence[int] | np.ndarray
  ) -> Mapping[str, np.ndarray]:
    """Returns where rows come from, see `Store.provenance`.

    Args:
      rows: row numbers, as batches have them.
    """
    return self.store.provenance(rows)

  def close(self) -> None:
    """Stops the threads that read ahead."""
    self._batches.close()


class IteratorBatches:
  """Batches of a one-shot iterator, with a reservoir sample of its rows.

  The position is the number of batches consumed. Moving to a position consumes
  batches, so the iterator must give the same batches in a new process.

  Args:
    batches: iterable of {"x": [B, d], ...}; the first batch is consumed here.
    reservoir_rows: size of the sample, uniform over all rows so far.
    seed: seed of the sample.

  Raises:
    InputError: the iterator is exhausted.

  >>> stream = IteratorBatches([{"x": np.ones((2, 3))}])
  >>> next(stream)["row"].tolist(), stream.get_state()
  ([0, 1], {'batches': 1})
  """

  def __init__(
    self,
    batches: Iterable[Mapping[str, np.ndarray]],
    *,
    reservoir_rows: int = 32_768,
    seed: int = 0,
  ):
    self._batches = iter(batches)
    self._next: Mapping[str, np.ndarray] | None = next(self._batches, None)
    if self._next is None:
      raise InputError(
        "x", batches, "must give at least one batch", "pass a new iterator"
      )
    self.fields = tuple(name for name in self._next if name != "row")
    self._size, self._seed = reservoir_rows, seed
    self._kept: dict[str, np.ndarray] = {}
    self._seen, self._done = 0, 0
    self._keep(self._next)

  def __iter__(self) -> Iterator[Mapping[str, np.ndarray]]:
    return self

  def __next__(self) -> dict[str, np.ndarray]:
    if self._next is None:
      batch = next(self._batches)
      self._keep(batch)
    else:
      batch, self._next = self._next, None
    self._done += 1
    rows = len(batch["x"])
    row = np.arange(self._seen - rows, self._seen)
    return {"row": row, **batch}

  def get_state(self) -> dict[str, int]:
    """Returns the number of batches consumed."""
    return {"batches": self._done}

  def set_state(self, state: Mapping[str, int]) -> None:
    """Consumes batches up to a position.

    Args:
      state: a position returned by `get_state`.

    Raises:
      ValueError: the iterator is already beyond the position.
    """
    if state["batches"] < self._done:
      raise ValueError(
        f"an iterator cannot go back to {state} from {self._done} batches"
      )
    while self._done < state["batches"]:
      next(self)

  def sample(self, rows: int) -> dict[str, np.ndarray]:
    """Returns rows of the reservoir.

    Args:
      rows: maximum number of rows.

    Returns:
      Arrays by field, of rows drawn uniformly from those consumed so far.
    """
    count = min(rows, len(self._kept["x"]))
    return {name: kept[:count] for name, kept in self._kept.items()}

  def _keep(self, batch: Mapping[str, np.ndarray]) -> None:
    """Updates the reservoir (algorithm R).

    Row i replaces the entry at a place drawn uniformly from [0, i], if that place
    lies within the reservoir.
    """
    fields = {name: np.asarray(batch[name]) for name in self.fields}
    count = len(fields["x"])
    number = self._seen + np.arange(count)
    key = np.random.SeedSequence((shuffle.RESERVOIR, self._seed, self._seen))
    place = np.random.Generator(np.random.Philox(key)).integers(number + 1)
    place = np.where(number < self._size, number, place)
    if not self._kept:
      self._kept = {n: a[: self._size].copy() for n, a in fields.items()}
    elif len(self._kept["x"]) < self._size:
      more = self._size - len(self._kept["x"])
      self._kept = {
        n: np.concatenate([self._kept[n], a[:more]]) for n, a in fields.items()
      }
    for i in np.flatnonzero((place < self._size) & (number >= self._size)):
      for name, values in fields.items():
        self._kept[name][place[i]] = values[i]
    self._seen += count


def spread(
  store: Store | Mix, rows: int, column: str = "x", *, blocks: int = 16
) -> np.ndarray:
  """Reads rows of a column in blocks spread evenly over a store.

  Args:
    store: the store, or a mix, of whose stores each has its share.
    rows: approximate number of rows; all rows where the store has fewer.
    column: name of the column.
    blocks: minimum number of blocks.

  Returns:
    Array [rows, ...] in the dtype of the store.
  """
  if isinstance(store, Mix):
    parts = mixes.parts(store)
    total = sum(weight for _, weight in parts)
    whole = [-(-rows * weight // total) for _, weight in parts]
    return np.concatenate(
      [
        spread(one, count, column, blocks=blocks)
        for (one, _), count in zip(parts, whole, strict=True)
      ]
    )
  if store.rows <= rows:
    return store.whole(column)[column]
  chunks = store.chunks
  blocks = max(blocks, -(-rows // store.meta["chunk_rows"]))
  picks = sorted({round(i) for i in np.linspace(0, len(chunks) - 1, blocks)})
  each = -(-rows // len(picks))
  each = -(-each // store.group_rows) * store.group_rows
  parts = []
  for i in picks:
    first, last = chunks[i]
    parts.append((first, min(first + each, last)))
  return np.concatenate(store.read_many(parts, column))[:rows]
