"""What is in a store, for people: sizes, mixing of batches, checksums."""

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
) -> dict[str, Any]:
  """Sizes, moments and mixing of a store, after checking all its shards.

  Args:
    path: folder of the store.
    batch_rows: rows a batch, for the mixing; at most those of the store.
    batches: batches to look at.
    seed: of the loader.

  Returns:
    A JSON-able dict; "entropy" is the mean normalised entropy of the
    documents in a batch as the loader gives it (below 0.8 is poorly mixed),
    "documents" the number of documents.

  Raises:
    InputError: no store, or a shard is missing, corrupt or not the recorded.
  """
  store = stores.open(path)
  store.verify()
  batch_rows = min(batch_rows, store.rows)
  mixing = []
  pipeline = loader.batches(store, batch_rows=batch_rows, seed=seed)
  for batch in itertools.islice(pipeline, batches):
    mixing.append(entropy(store.provenance(batch["row"])["doc"]))
  stats = {
    key: value
    for key, value in store.stats.items()
    if key not in ("mean", "variance")
  }
  shards = [shard for line in store.lines for shard in line["shards"].values()]
  return stats | {
    "path": str(store.path),
    "d": store.d,
    "dtype": store.meta["dtype"],
    "buckets": len(store.lines),
    "shards": len(shards),
    "bytes": sum(size for size, _ in shards),
    "documents": len(np.unique(store.columns("doc")["doc"])),
    "entropy": float(np.mean(mixing)),
  }


def entropy(doc: Int[np.ndarray, "b"]) -> float:
  """Entropy of the documents in a batch over that of all rows different.

  H = -sum p ln p / ln b; 1 where every row has a document of its own.
  """
  p = np.unique(doc, return_counts=True)[1] / len(doc)
  return float(-(p * np.log(p)).sum() / np.log(max(len(doc), 2)))
