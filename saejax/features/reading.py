"""Reads the rows of a store, in order and in batches of one shape."""

from collections.abc import Iterator

import numpy as np

from saejax.data.store.reader import Store


def batches(
  store: Store, *, batch_rows: int = 4096
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Yields every row of a store once, in order.

  Args:
    store: the store.
    batch_rows: maximum number of rows per batch; with a multiple of the store's
      chunks each chunk is read once.

  Yields:
    (row numbers [B] int64, rows [B, d] in the stored dtype).

  Raises:
    ValueError: batch_rows is below 1.
  """
  if batch_rows < 1:
    raise ValueError(f"batch_rows must be at least 1, got {batch_rows}")
  for first, last in store.intervals:
    for start in range(first, last, batch_rows):
      stop = min(start + batch_rows, last)
      yield np.arange(start, stop), store.read(start, stop)


def pad(x: np.ndarray, batch_rows: int) -> tuple[np.ndarray, np.ndarray]:
  """Pads rows with zeros to `batch_rows`.

  With one shape for all batches a function is compiled once.

  Args:
    x: at most `batch_rows` rows.
    batch_rows: rows of the result.

  Returns:
    (padded rows, mask [batch_rows] of the given rows).

  >>> pad(np.ones((1, 2)), 2)[1].tolist()
  [True, False]
  """
  real = np.arange(batch_rows) < len(x)
  if len(x) == batch_rows:
    return x, real
  padded = np.zeros((batch_rows, *x.shape[1:]), x.dtype)
  padded[: len(x)] = x
  return padded, real
