"""How well batches mix documents, beside uniform draws from the same stores."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from saejax.data import mix as mixes
from saejax.data import order, shuffle
from saejax.data.mix import Mix
from saejax.data.store.reader import Store

DOCUMENT = "doc"  # column of the documents
LEAST = 0.98  # of the entropy of uniform draws, below which batches mix poorly
_DRAWS, _DRAWN_ROWS = 32, 2**14  # uniform draws, and about their rows at most


class Mixing:
  """Entropy of the documents in batches, and in uniform draws of rows.

  H = -sum p ln p / ln min(b, documents), where p are the shares of documents in
  the b rows. `documents` is the number in the uniform draws: exact where it is
  below b, unless documents are rare.

  Args:
    store: the store or mix, with the column `key`.
    rows: rows per batch.
    key: column of the documents.
    seed: seed of the uniform draws.
  """

  def __init__(
    self, store: Store | Mix, rows: int, *, key: str = DOCUMENT, seed: int = 0
  ):
    self._store, self._rows, self._key = store, rows, key
    draws = max(1, min(_DRAWS, _DRAWN_ROWS // rows))
    chosen = [_uniform(store, rows, seed, i) for i in range(draws)]
    drawn = np.split(self._documents(np.concatenate(chosen)), draws)
    documents = len(np.unique(np.concatenate(drawn)))
    self._largest = np.log(max(2, min(rows, documents)))
    self.uniform = float(np.mean([self._entropy(keys) for keys in drawn]))

  def entropy(self, row: Int[np.ndarray, "b ..."]) -> float:
    """Returns the entropy of a batch.

    Args:
      row: numbers of its rows; [b, G] in groups, of which the first counts.
    """
    first = np.asarray(row).reshape(len(row), -1)[:, 0]
    return self._entropy(self._documents(first))

  def _entropy(self, keys: np.ndarray) -> float:
    p = np.unique(keys, return_counts=True)[1] / len(keys)
    return float(-(p * np.log(p)).sum() / self._largest)

  def _documents(self, rows: np.ndarray) -> np.ndarray:
    """A number for the document of each row; stores have documents apart."""
    keys = self._store.take(rows, self._key)[self._key].reshape(len(rows), -1)
    if isinstance(self._store, Mix):
      own = np.searchsorted(self._store.offsets, rows, side="right")
      keys = np.concatenate([keys, own[:, None]], axis=1)
    return np.unique(keys, axis=0, return_inverse=True)[1].reshape(-1)


def entropy(key: Int[np.ndarray, "b"]) -> float:
  """Computes the normalised entropy of the keys in a batch.

  H = -sum p ln p / ln b, where p are the shares of distinct keys; 1 where all
  keys differ.

  Args:
    key: keys of b rows.

  >>> entropy(np.array([0, 1, 2, 3]))
  1.0
  """
  p = np.unique(key, return_counts=True)[1] / len(key)
  return float(-(p * np.log(p)).sum() / np.log(max(len(key), 2)))


def _uniform(store: Store | Mix, rows: int, seed: int, draw: int) -> np.ndarray:
  """Numbers of distinct rows; of each store as many as its share."""
  key = np.random.SeedSequence((shuffle.DOCUMENTS, seed, draw))
  random = np.random.Generator(np.random.Philox(key))
  parts = mixes.parts(store)
  counts = order.shares([weight for _, weight in parts], rows)
  found = []
  for i, ((one, _), count) in enumerate(zip(parts, counts, strict=True)):
    chosen = random.choice(one.rows, count, replace=False, shuffle=False)
    offset = store.offsets[i] if isinstance(store, Mix) else 0
    found.append(_numbers(one.intervals, chosen) + offset)
  return np.concatenate(found)


def _numbers(
  intervals: Sequence[tuple[int, int]], index: np.ndarray
) -> np.ndarray:
  """Row numbers of the rows at given places in the intervals."""
  first, stop = np.asarray(intervals, np.int64).reshape(-1, 2).T
  before = np.concatenate([[0], np.cumsum(stop - first)])
  where = np.searchsorted(before, index, side="right") - 1
  return first[where] + index - before[where]
