"""Held-out rows with every column that the SAEs of a run read."""

from collections.abc import Iterator

import numpy as np

from saejax.data.batches import spread
from saejax.data.store.reader import Store
from saejax.errors import InputError
from saejax.features import reading
from saejax.sae.context import FIELDS, Batch, as_batch

BATCH_ROWS = 4096


def check(store: Store, columns: tuple[str, ...]) -> None:
  """Checks that a held-out store has the columns of the training store.

  Args:
    store: the held-out store.
    columns: names of the training columns.

  Raises:
    InputError: a column is missing.
  """
  for name in columns:
    if name in FIELDS and name not in store.columns:
      raise InputError(
        "held_out",
        str(store.place),
        f"must have the column {name} of the training store",
        "give the held-out store of the same harvest",
      )


def batches(store: Store, columns: tuple[str, ...]) -> Iterator[Batch]:
  """Yields every row once, in order.

  Args:
    store: the held-out store.
    columns: names of the columns.
  """
  for row, x in reading.batches(store, batch_rows=BATCH_ROWS):
    first, last = int(row[0]), int(row[-1]) + 1
    yield _batch(
      {
        name: x if name == "x" else store.read(first, last, name)
        for name in _used(columns)
      }
    )


def first_rows(store: Store) -> int:
  """Number of rows of the first of `batches`, for which programs are compiled.

  Args:
    store: the held-out store.
  """
  first, last = store.intervals[0]
  shape = store.columns["x"].shape
  return min(BATCH_ROWS, last - first) * (shape[0] if len(shape) > 1 else 1)


def sample(store: Store, columns: tuple[str, ...], rows: int) -> Batch:
  """Samples rows spread evenly over the store.

  Args:
    store: the held-out store.
    columns: names of the columns.
    rows: approximate number of rows.
  """
  return _batch({name: spread(store, rows, name) for name in _used(columns)})


def _used(columns: tuple[str, ...]) -> list[str]:
  return [name for name in columns if name in FIELDS]


def _batch(fields: dict[str, np.ndarray]) -> Batch:
  """Returns the rows as a batch, with pairs split into single rows."""
  x = fields["x"]
  if x.ndim > 2:
    fields = {
      name: np.repeat(a, x.shape[1], 0)
      if a.ndim < 2 or name == "target"
      else a.reshape(-1, *a.shape[2:])
      for name, a in fields.items()
    }
  return as_batch(fields)
