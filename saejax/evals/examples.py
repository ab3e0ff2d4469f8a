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
    activation: value of the latent, z_i.
    row: row number in the store.
    doc: document of the row.
    pos: position of the row's token in the document, in tokens.
    token: text of the token.
    context: text around the token, which is between the marks.
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
    store: store with provenance and a tokenizer.
    latent: index of the latent, in [0, n).
    count: maximum number of examples; rows where the latent is 0 are not
      examples, so that a dead latent has none.
    before: maximum number of tokens of context before the row's token.
    after: maximum number of tokens of context after it.
    mark: texts inserted before and after the row's token in the context.
    batch_rows: rows per batch on the device.

  Raises:
    InputError: there is no such latent, count is below 1, or the store has no
      text.
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
  """Finds the rows with the largest activations of a latent.

  Args:
    sae: the SAE.
    store: the rows.
    latent: index of the latent.
    count: maximum number of rows; rows where the latent is 0 are left out.
    batch_rows: rows per batch on the device.

  Returns:
    (activations, row numbers), largest activation first, ties by row number.
  """
  values = np.zeros(0, np.float32)
  rows = np.zeros(0, np.int64)
  index = jnp.asarray(latent, jnp.int32)
  for numbers, x in reading.batches(store, batch_rows=batch_rows):
    padded, real = reading.pad(x, batch_rows)
    activation = np.asarray(_activation(sae, padded, real, index))[: len(x)]
    keep = np.flatnonzero(activation > 0)
    values = np.concatenate([values, activation[keep]])
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
  """Computes z_i of each row, 0 for padding and non-finite rows."""
  use = real & jnp.all(jnp.isfinite(x), axis=-1)
  latents = sae.forward(jnp.where(use[:, None], x, 0)).latents
  if isinstance(latents, SparseLatents):
    hits = latents.indices == latent
    z = jnp.sum(jnp.where(hits, latents.values, 0), axis=-1)
  else:
    z = jnp.take(latents.dense(), latent, axis=-1)
  return jnp.where(use, z, 0).astype(jnp.float32)
