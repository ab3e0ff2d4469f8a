"""Describes a store for people: sizes, mixing of batches, checksums."""

import itertools
import pathlib
from typing import Any

import numpy as np
from jaxtyping import Int

from saejax.data import loader
from saejax.data.store import reader as stores


def inspect(
  path: str | pathlib.Path,
  *,
  batch_rows: int = 4096,
  batches: int = 4,
  seed: int = 0,
  key: str = "doc",
) -> dict[str, Any]:
  """Sizes, moments and mixing of a store, after checking every byte.

  Args:
    path: folder of the store.
    batch_rows: rows per batch, for the mixing; at most those of the store.
    batches: number of batches inspected.
    seed: seed of the loader.
    key: the column whose values should be mixed, such as the document.

  Returns:
    A JSON-able dict; where the store has the key, "entropy" is the mean
    normalised entropy of it in a batch as the loader gives it (below 0.8 is
    poorly mixed), and "keys" the number of its values.

  Raises:
    InputError: no store, or a shard is missing, corrupt or not the recorded.
  """
  store = stores.open(path)
  store.verify()
  found = {
    name: value
    for name, value in store.stats.items()
    if name not in ("mean", "variance")
  }
  shards = [shard for line in store.lines for shard in line["shards"].values()]
  found |= {
    "path": str(store.path),
    "content": store.content,
    "columns": {name: c.to_json() for name, c in store.columns.items()},
    "d": store.d,
    "dtype": store.columns["x"].dtype,
    "buckets": len(store.lines),
    "shards": len(shards),
    "bytes": sum(size for size, _ in shards),
  }
  if key not in store.columns:
    return found
  pipeline = loader.batches(
    store,
    batch_rows=min(batch_rows, store.rows),
    seed=seed,
    columns=tuple(dict.fromkeys(("x", key))),
  )
  mixing = [entropy(b[key]) for b in itertools.islice(pipeline, batches)]
  return found | {
    "keys": len(np.unique(store.whole(key)[key])),
    "entropy": float(np.mean(mixing)),
  }


def entropy(key: Int[np.ndarray, "b"]) -> float:
  """Entropy of the keys in a batch over that of all rows different.

  H = -sum p ln p / ln b; 1 where every row has a key of its own.
  """
  p = np.unique(key, return_counts=True)[1] / len(key)
  return float(-(p * np.log(p)).sum() / np.log(max(len(key), 2)))
