"""Rows in chunks of equal size.

The last chunk is filled with rows of zeros: a number of rows without divisors,
such as 2,039, would otherwise go row by row.
"""

import jax.numpy as jnp
from jaxtyping import Array


def split(most: int, *arrays: Array) -> tuple[Array, ...]:
  """Arrays [rows, ...] as [chunks, size, ...], as few chunks as possible.

  Args:
    most: rows per chunk, at least 1.
    *arrays: arrays with equally many rows.
  """
  rows = arrays[0].shape[0]
  chunks = max(1, -(-rows // most))
  size = -(-rows // chunks)
  padding = chunks * size - rows

  def one(a: Array) -> Array:
    if padding:
      a = jnp.pad(a, ((0, padding), *[(0, 0)] * (a.ndim - 1)))
    return a.reshape(chunks, size, *a.shape[1:])

  return tuple(map(one, arrays))


def join(a: Array, rows: int) -> Array:
  """The inverse of `split` for one array: [chunks, size, ...] as [rows, ...].

  Args:
    a: chunks.
    rows: number of rows before they were filled.
  """
  return a.reshape(-1, *a.shape[2:])[:rows]
