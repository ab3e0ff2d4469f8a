"""Reports on a store: sizes, mixing of batches, checksums."""

import itertools
import pathlib
from typing import Any

import numpy as np

from saejax.data import loader, mixing
from saejax.data.store import reader as stores


def inspect(
  path: str | pathlib.Path,
  *,
  batch_rows: int = 4096,
  batches: int = 4,
  seed: int = 0,
  key: str = "doc",
) -> dict[str, Any]:
  """Checks every byte of a store and returns its sizes, moments and mixing.

  Args:
    path: folder of the store.
    batch_rows: rows per batch, at most all rows of the store.
    batches: number of batches whose mixing is measured.
    seed: seed of the loader.
    key: column whose values should be mixed, such as the document.

  Returns:
    A dict that JSON can store. Where the store has the column `key`, "keys" is
      its number of distinct values, "entropy" the mean over batches of its
      normalised entropy (below 0.8 batches are poorly mixed), and
      "entropy_of_uniform" its ratio to that of uniformly drawn rows, which
      shuffling should bring near 1.

  Raises:
    InputError: there is no store, or a shard is missing or differs from its
      checksum.
  """
  store = stores.open(path)
  store.verify()
  facts = {
    name: value
    for name, value in store.stats.items()
    if name not in ("mean", "variance")
  }
  shards = [shard for line in store.lines for shard in line["shards"].values()]
  facts |= {
    "path": str(store.place),
    "content": store.content,
    "columns": {name: c.to_json() for name, c in store.columns.items()},
    "d": store.d,
    "dtype": store.columns["x"].dtype,
    "buckets": len(store.lines),
    "shards": len(shards),
    "bytes": sum(size for size, _ in shards),
  }
  if key not in store.columns:
    return facts
  rows = min(batch_rows, store.rows)
  pipeline = loader.batches(
    store,
    batch_rows=rows,
    seed=seed,
    columns=tuple(dict.fromkeys(("x", key))),
  )
  taken = list(itertools.islice(pipeline, batches))
  measure = mixing.Mixing(store, rows, key=key)
  found = float(np.mean([measure.entropy(b["row"]) for b in taken]))
  return facts | {
    "keys": len(np.unique(store.whole(key)[key])),
    "entropy": float(np.mean([mixing.entropy(b[key]) for b in taken])),
    "entropy_of_uniform": found / measure.uniform if measure.uniform else 1.0,
  }
