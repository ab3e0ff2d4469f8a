"""Sources of raw rows for initialisation and for estimating thresholds."""

from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from saejax.data.batches import Batches
from saejax.sae.context import Batch, as_batch


class RowSource(Protocol):
  """A source of rows that can be sampled repeatedly."""

  def sample(self, rows: int) -> Batch:
    """Returns at most `rows` raw rows, spread over all rows."""
    ...


class Held:
  """The rows of a batch in memory."""

  def __init__(self, batch: Batch):
    self._batch = batch

  def sample(self, rows: int) -> Batch:
    """Returns evenly spaced rows."""
    count = jax.tree.leaves(self._batch)[0].shape[0]
    which = np.linspace(0, count - 1, min(rows, count)).astype(int)
    return jax.tree.map(lambda a: jnp.asarray(a[which]), self._batch)


class Stream:
  """The rows of a stream of batches; its position does not change."""

  def __init__(self, batches: Batches):
    self._batches = batches

  def sample(self, rows: int) -> Batch:
    """Returns the stream's sample, on the default device."""
    return jax.tree.map(jnp.asarray, as_batch(self._batches.sample(rows)))
