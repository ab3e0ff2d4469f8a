"""What edits of a site cost an embedding model: cosine and nearest neighbours.

A window of text has as embedding e the mean of the last hidden state over its real
tokens, of norm 1. With e' the embedding with the activations of a site replaced,

  cosine      mean over windows of <e, e'>
  retrieval   share of windows whose nearest other window (largest cosine) is the
              same among the e' as among the e

Edits act on the tokens that are rows of a harvest, see `splices`.

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
from saejax.evals import splices
from saejax.models import edits as edits_lib
from saejax.models.model import Model

_BLOCK = 1024  # windows whose neighbours are found at once


@dataclasses.dataclass(frozen=True, eq=False)
class Embeddings:
  """Embeddings of windows; see the module's docstring.

  Attributes:
    names: names of the edits, E of them.
    window: number of each window [N], ascending.
    clean: embeddings of the model [N, d].
    edited: those with each edit [E, N, d].
  """

  names: tuple[str, ...]
  window: np.ndarray
  clean: np.ndarray
  edited: np.ndarray

  def cosine(self, name: str) -> float:
    """The mean cosine with the model's own embedding.

    Args:
      name: name of an edit.
    """
    edited = self.edited[self.names.index(name)]
    cosines = np.sum(self.clean * edited, axis=-1)
    return float(np.mean(cosines, dtype=np.float64))

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

  def merged(self, other: "Embeddings") -> "Embeddings":
    """The windows of both, in the order of their numbers.

    Args:
      other: embeddings of other windows, with the same edits.

    Raises:
      ValueError: it is of other edits.
    """
    if self.names != other.names:
      raise ValueError(f"edits must be {self.names}, got {other.names}")
    window = np.concatenate([self.window, other.window])
    order = np.argsort(window, kind="stable")
    return Embeddings(
      self.names,
      window[order],
      np.concatenate([self.clean, other.clean])[order],
      np.concatenate([self.edited, other.edited], axis=1)[:, order],
    )


def evaluate(
  model: Model,
  site: str,
  edits: Mapping[str, edits_lib.AnyEdit],
  batches: Iterable[splices.Tokens],
  *,
  source: str = "",
  limit: float = np.inf,
) -> Embeddings:
  """Computes embeddings of windows with and without edits of a site.

  Args:
    model: an embedding model, whose tokens are pooled by their mean.
    site, edits, batches, source, limit: as for `in_model.evaluate`.

  Raises:
    InputError: there is no such site, or fewer than two windows have a row.
  """
  site, names = splices.name(model, site), tuple(edits)
  prepared = [splices.prepared(model, edit) for edit in edits.values()]
  total, first = nothing(names, model.d), 0
  for batch in batches:
    read = splices.Reading(model, site, batch, source=source, limit=limit)
    changed = (read.edited(edit) for edit in prepared)
    total = total.merged(part(names, read, batch, changed, first=first))
    first += len(batch.ids)
  check_counted(total)
  return total


def check_counted(found: Embeddings) -> None:
  """Refuses embeddings of fewer than two windows.

  Args:
    found: the embeddings.

  Raises:
    InputError: there are fewer.
  """
  if len(found.window) < 2:
    raise InputError(
      "corpus",
      f"{len(found.window)} windows with rows",
      "must have at least two, whose neighbours are compared",
      "give more text",
    )


def nothing(names: tuple[str, ...], d: int) -> Embeddings:
  """Returns the embeddings of no window.

  Args:
    names: names of the edits.
    d: width of the last hidden state.
  """
  clean = np.zeros((0, d), np.float32)
  edited = np.zeros((len(names), 0, d), np.float32)
  return Embeddings(names, np.zeros(0, np.int64), clean, edited)


def part(
  names: tuple[str, ...],
  read: splices.Reading,
  batch: splices.Tokens,
  changed: Iterable[jax.Array],
  *,
  first: int,
) -> Embeddings:
  """Computes the embeddings of one batch.

  Args:
    names: names of the edits.
    read: the batch at the site.
    batch: the tokens.
    changed: activations of the site with each edit.
    first: number of its first window.
  """
  used = batch.keep.any(axis=1)
  of_windows = lambda h: np.asarray(pooled(h, read.mask))[used]
  clean = of_windows(read.hidden())
  edited = [of_windows(read.hidden(h)) for h in changed]
  return Embeddings(
    names,
    first + np.nonzero(used)[0],
    clean,
    np.stack(edited) if edited else np.zeros((0, *clean.shape), clean.dtype),
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
