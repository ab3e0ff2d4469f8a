"""Top-activating rows of a latent, with their text."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from saejax import errors
from saejax.data.store.reader import Store
from saejax.data.text import neighbours
from saejax.evals import reading
from saejax.sae.latents import SparseLatents
from saejax.sae.sae import SAE


@dataclasses.dataclass(frozen=True)
class Example:
  """One row on which a latent is active.

  Attributes:
    activation: z_i.
    row: row number in the store.
    doc: document it came from.
    pos: position of the token in the document, in tokens.
    token: the row's own token as text.
    context: text around it, the token between the marks.
  """

  activation: float
  row: int
  doc: int
  pos: int
  token: str
  context: str


def top_examples(
  sae: SAE,
  store: Store,
  latent: int,
  *,
  count: int = 5,
  before: int = 8,
  after: int = 4,
  mark: tuple[str, str] = ("[[", "]]"),
  batch_rows: int = 4096,
) -> list[Example]:
  """Finds the top-activating rows of a latent in a store, largest first.

  The store is read once, in order, with only `count` rows in memory.

  Args:
    sae: the SAE.
    store: rows with provenance and a tokenizer.
    latent: which, in [0, n).
    count: examples wanted; rows where the latent is 0 are never examples, so
      that there may be fewer (none for a dead latent).
    before: tokens of context before the row's own.
    after: tokens of context after it.
    mark: put around the row's own token in the context.
    batch_rows: rows on the device at once.

  Raises:
    InputError: there is no such latent.
  """
  if not 0 <= latent < sae.n:
    raise errors.InputError(
      "latent", latent, f"must be in [0, {sae.n})", f"use at most {sae.n - 1}"
    )
  if count < 1:
    raise errors.InputError(
      "count", count, "must be at least 1", "use 1 or more"
    )
  values, rows = top_rows(
    sae, store, latent, count=count, batch_rows=batch_rows
  )
  if not len(rows):
    return []
  where = store.provenance(rows)
  return [
    Example(
      activation=float(value),
      row=int(row),
      doc=int(doc),
      pos=int(pos),
      token=neighbours.text(store, int(row), 0, 0),
      context=neighbours.text(store, int(row), before, after, mark),
    )
    for value, row, doc, pos in zip(
      values, rows, where["doc"], where["pos"], strict=True
    )
  ]


def top_rows(
  sae: SAE, store: Store, latent: int, *, count: int, batch_rows: int = 4096
) -> tuple[Float[np.ndarray, "c"], Int[np.ndarray, "c"]]:
  """Activations and row numbers, largest first, ties by row number."""
  values = np.zeros(0, np.float32)
  rows = np.zeros(0, np.int64)
  index = jnp.asarray(latent, jnp.int32)
  for numbers, x in reading.batches(store, batch_rows=batch_rows):
    padded, real = reading.pad(x, batch_rows)
    found = np.asarray(_activation(sae, padded, real, index))[: len(x)]
    keep = np.flatnonzero(found > 0)
    values = np.concatenate([values, found[keep]])
    rows = np.concatenate([rows, numbers[keep]])
    order = np.lexsort((rows, -values))[:count]
    values, rows = values[order], rows[order]
  return values, rows


@jax.jit
def _activation(
  sae: SAE,
  x: Float[Array, "B d"],
  real: Bool[Array, "B"],
  latent: Int[Array, ""],
) -> Float[Array, "B"]:
  """z_i of each row, 0 on rows that are padding or not finite."""
  use = real & jnp.all(jnp.isfinite(x), axis=-1)
  latents = sae.forward(jnp.where(use[:, None], x, 0)).latents
  if isinstance(latents, SparseLatents):
    hits = latents.indices == latent
    z = jnp.sum(jnp.where(hits, latents.values, 0), axis=-1)
  else:
    z = jnp.take(latents.dense(), latent, axis=-1)
  return jnp.where(use, z, 0).astype(jnp.float32)
