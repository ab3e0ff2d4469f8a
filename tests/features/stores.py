"""A small store of text, whose words are the ids, for exports and prompts."""

import numpy as np

from saejax.data.store import create
from tests import toy

ROWS, DOCUMENTS, D = 300, 6, 8
END = 999  # id of the end of a text


class Words:
  """A tokenizer whose words are the ids."""

  eos, sep = END, None

  def decode(self, ids):
    return "".join(f" {i}" for i in ids)


def rows():
  """x [300, 8]."""
  return np.asarray(toy.rows(ROWS, D, seed=5))


def store(folder, shuffle_seed=None):
  """Six documents of 50 tokens, of which every seventh was dropped."""
  keep = np.arange(ROWS) % 7 != 3
  columns = {
    "x": rows(),
    "doc": np.repeat(np.arange(DOCUMENTS), ROWS // DOCUMENTS),
    "pos": np.tile(np.arange(ROWS // DOCUMENTS), DOCUMENTS),
    "tok": np.arange(ROWS),
  }
  return create.write_store(
    folder,
    {name: values[keep] for name, values in columns.items()},
    bucket_rows=128,
    shard_rows=64,
    chunk_rows=32,
    shuffle_seed=shuffle_seed,
    about={
      "model": {"name": "toy"},
      "site": {"name": "layers.2.mid", "layer": 2, "module": "model.layers.2"},
    },
  )
