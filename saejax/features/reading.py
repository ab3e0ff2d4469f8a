"""Reads the rows of a store in order, in batches; where a pass over it is kept."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from saejax.data.store.reader import Store
from saejax.data.store.share import Share
from saejax.features import parts
from saejax.sae import files
from saejax.sae.sae import SAE

VERSION = 1  # of the sums of passes


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
  for start, stop in intervals(store, batch_rows):
    yield np.arange(start, stop), store.read(start, stop)


def intervals(store: Store, batch_rows: int) -> list[tuple[int, int]]:
  """(start, stop) of the rows of each batch of `batches`.

  Args:
    store, batch_rows: as for `batches`.

  Raises:
    ValueError: batch_rows is below 1.
  """
  if batch_rows < 1:
    raise ValueError(f"batch_rows must be at least 1, got {batch_rows}")
  return [
    (start, min(start + batch_rows, last))
    for first, last in store.intervals
    for start in range(first, last, batch_rows)
  ]


def identity(
  kind: str, sae: SAE, store: Store, **settings: Any
) -> dict[str, Any]:
  """Returns what the sums of a pass depend on, for `parts`.

  Args:
    kind: name of the sums.
    sae: the SAE.
    store: the rows.
    **settings: JSON-serialisable settings of the pass.
  """
  return {
    "pass": kind,
    "version": VERSION,
    "sae": files.checksum(sae),
    "store": store.content,
    "settings": settings,
  }


def kept(
  root: str,
  kind: str,
  sae: SAE,
  store: Store,
  share: Share = Share(),
  seconds: float = 20.0,
  **settings: Any,
) -> parts.Pass:
  """Returns where a pass is kept: a folder named by what it depends on.

  Args:
    root: folder of passes.
    kind: what is made of the pass.
    sae, store: the SAE and the rows.
    share: which process this is, of how many.
    seconds: time between saves.
    **settings: JSON-serialisable settings of the pass.
  """
  about = identity(kind, sae, store, **settings)
  return parts.Pass(parts.folder(root, about), share, seconds)


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
