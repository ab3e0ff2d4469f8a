"""Contrastive losses of pairs of rows, over common and different latents.

Batches are pairs [R, 2, d]. Latents are split in halves: c, the first n/2,
common to both rows, and d, the rest, different between them.

References:
  Contrastive Sparse Autoencoders for Interpreting Planning of Chess-Playing
  Agents, 2024, arXiv:2406.04028.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from saejax.errors import InputError
from saejax.training.recipe import Record, mean


def common(record: Record) -> Float[Array, ""]:
  """|c_1 - c_2|_1, summed over latents, averaged over pairs.

  Args:
    record: the record of the batch.
  """
  c, _ = halves(record)
  return _over_pairs(record, jnp.abs(c[..., 0, :] - c[..., 1, :]))


def different(record: Record) -> Float[Array, ""]:
  """|d_1 d_2|_1 by elements, summed over latents, averaged over pairs.

  It also falls when d shrinks, and so acts as a sparsity penalty on that half.

  Args:
    record: the record of the batch.
  """
  _, d = halves(record)
  return _over_pairs(record, jnp.abs(d[..., 0, :] * d[..., 1, :]))


def halves(record: Record) -> tuple[Array, Array]:
  """c and d [*b, 2, n/2] of the pairs.

  Args:
    record: the record of the batch.

  Raises:
    InputError: the rows are not in pairs.
  """
  check_pairs(record.batch.x)
  c, d = jnp.split(record.forward.latents.dense(), 2, axis=-1)
  return c, d


def check_pairs(x: Float[Array, "*b d"]) -> None:
  """Raises an error for rows that are not in pairs.

  Args:
    x: rows.

  Raises:
    InputError: x is not [R, 2, d].
  """
  if x.ndim < 3 or x.shape[-2] != 2:
    raise InputError(
      "batch",
      x.shape,
      "contrast needs pairs of rows [R, 2, d]",
      "stack the two rows of each pair on the axis before the last",
    )


def _over_pairs(record: Record, values: Array) -> Float[Array, ""]:
  """Sum over latents, mean over pairs of which both rows have weight."""
  weight = record.batch.weight
  weight = None if weight is None else jnp.prod(weight, axis=-1)
  return mean(jnp.sum(values, axis=-1), weight)
