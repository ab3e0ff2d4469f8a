"""Reading rows for evaluation: in store order, in batches of one shape."""

from collections.abc import Iterator

import numpy as np

from saejax.data.store.reader import Store


def batches(
  store: Store, *, batch_rows: int = 4096
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Yields every row of a store once, in order.

  Args:
    store: the rows.
    batch_rows: maximum rows per batch; multiples of the store's chunks read
      each chunk once.

  Yields:
    Row numbers [B] int64, and the rows [B, d] in the stored dtype.
  """
  if batch_rows < 1:
    raise ValueError(f"batch_rows must be at least 1, got {batch_rows}")
  for first, last in store.intervals:
    for start in range(first, last, batch_rows):
      stop = min(start + batch_rows, last)
      yield np.arange(start, stop), store.read(start, stop)


def pad(x: np.ndarray, batch_rows: int) -> tuple[np.ndarray, np.ndarray]:
  """x with zero rows up to batch_rows, and the mask [batch_rows] of its own.

  One shape for every batch means one compilation.
  """
  real = np.arange(batch_rows) < len(x)
  if len(x) == batch_rows:
    return x, real
  filled = np.zeros((batch_rows, *x.shape[1:]), x.dtype)
  filled[: len(x)] = x
  return filled, real
