"""Raw rows that can be read again: for initial weights and for thresholds."""

from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from saejax.data.batches import Batches
from saejax.sae.context import Batch, as_batch


class RowSource(Protocol):
  """Rows that can be sampled any number of times."""

  def sample(self, rows: int) -> Batch:
    """At most `rows` raw rows, spread over those there are."""
    ...


class Held:
  """The rows of a batch in memory."""

  def __init__(self, batch: Batch):
    self._batch = batch

  def sample(self, rows: int) -> Batch:
    """Evenly spaced rows."""
    count = jax.tree.leaves(self._batch)[0].shape[0]
    which = np.linspace(0, count - 1, min(rows, count)).astype(int)
    return jax.tree.map(lambda a: jnp.asarray(a[which]), self._batch)


class Stream:
  """The rows of a stream of batches, whose position stays."""

  def __init__(self, batches: Batches):
    self._batches = batches

  def sample(self, rows: int) -> Batch:
    """What the stream gives as a sample, on the default device."""
    return jax.tree.map(jnp.asarray, as_batch(self._batches.sample(rows)))
