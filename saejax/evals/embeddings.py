"""What edits of a site cost an embedding model: cosine and nearest neighbours.

A window of text has as embedding e the mean of the last hidden state over its real
tokens, of norm 1. With e' the embedding with the activations of a site replaced,

  cosine      mean over windows of <e, e'>
  retrieval   share of windows whose nearest other window (largest cosine) is the
              same among the e' as among the e

Edits act on the tokens that are rows of a harvest, as in `evals.in_model`.

References:
  Reimers, Gurevych, Sentence-BERT, 2019, arXiv:1908.10084 (mean pooling).
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from saejax.errors import InputError
from saejax.evals import in_model
from saejax.models import edits as edits_lib
from saejax.models import taps
from saejax.models.model import Model

_BLOCK = 1024  # windows whose neighbours are found at once


@dataclasses.dataclass(frozen=True, eq=False)
class Embeddings:
  """Embeddings of windows; see the module's docstring.

  Attributes:
    names: names of the edits, E of them.
    clean: embeddings of the model [N, d].
    edited: those with each edit [E, N, d].
  """

  names: tuple[str, ...]
  clean: np.ndarray
  edited: np.ndarray

  def cosine(self, name: str) -> float:
    """The mean cosine with the model's own embedding.

    Args:
      name: name of an edit.
    """
    edited = self.edited[self.names.index(name)]
    return float(np.mean(np.sum(self.clean * edited, axis=-1)))

  def retrieval(self, name: str) -> float:
    """The share of windows that keep their nearest neighbour.

    Args:
      name: name of an edit.
    """
    edited = self.edited[self.names.index(name)]
    return float(np.mean(nearest(self.clean) == nearest(edited)))

  def record(self) -> dict[str, Any]:
    """Both measures by edit, for results.json."""
    found: dict[str, Any] = {"windows": len(self.clean)}
    for name in self.names:
      found[name] = {
        "cosine": self.cosine(name),
        "retrieval": self.retrieval(name),
      }
    return found


def evaluate(
  model: Model,
  site: str,
  edits: Mapping[str, edits_lib.AnyEdit],
  batches: Iterable[in_model.Tokens],
  *,
  limit: float = np.inf,
) -> Embeddings:
  """Computes embeddings of windows with and without edits of a site.

  Args:
    model: an embedding model, whose tokens are pooled by their mean.
    site, edits, batches, limit: as for `in_model.evaluate`.

  Raises:
    InputError: there is no such site, or fewer than two windows have a row.
  """
  site = taps.resolve(model, *taps.parse(site, model.family)).name
  prepared = [edits_lib.prepared(edit) for edit in edits.values()]
  clean, edited = [], []
  for batch in batches:
    used = batch.keep.any(axis=1)
    ids, mask = jnp.asarray(batch.ids), jnp.asarray(batch.mask)
    keep, most = jnp.asarray(batch.keep), jnp.float32(limit)
    h = in_model.hidden(model, ids, mask)
    clean.append(np.asarray(pooled(h, mask))[used])
    parts = [
      in_model.edited_hidden(model, site, edit, ids, mask, keep, most)
      for edit in prepared
    ]
    edited.append(np.stack([np.asarray(pooled(h, mask))[used] for h in parts]))
  if sum(map(len, clean)) < 2:
    raise InputError(
      "corpus",
      f"{sum(map(len, clean))} windows with rows",
      "must have at least two, whose neighbours are compared",
      "give more text",
    )
  return Embeddings(
    tuple(edits), np.concatenate(clean), np.concatenate(edited, axis=1)
  )


@jax.jit
def pooled(h: jax.Array, mask: jax.Array) -> jax.Array:
  """The mean over real tokens, of norm 1: [B, T, d] -> [B, d].

  Args:
    h: last hidden state.
    mask: which tokens are real.
  """
  h = jnp.where(mask[..., None], h, 0).astype(jnp.float32)
  count = jnp.sum(mask, axis=1, keepdims=True, dtype=jnp.float32)
  mean = jnp.sum(h, axis=1) / jnp.maximum(count, 1)
  norm = jnp.linalg.norm(mean, axis=-1, keepdims=True)
  return mean / jnp.maximum(norm, 1e-30)


def nearest(e: np.ndarray) -> np.ndarray:
  """The number of the row with the largest cosine with each row, itself left out.

  Args:
    e: rows of norm 1, [N, d].

  >>> nearest(np.array([[1.0, 0.0], [0.0, 1.0], [0.8, 0.6]])).tolist()
  [2, 2, 0]
  """
  found = []
  for start in range(0, len(e), _BLOCK):
    c = e[start : start + _BLOCK] @ e.T
    rows = np.arange(len(c))
    c[rows, start + rows] = -np.inf
    found.append(c.argmax(axis=1))
  return np.concatenate(found)
