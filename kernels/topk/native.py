"""Exact top-k of rows, and of a whole batch, in one C++ call on a CPU.

Of a row: the largest entry of each of some lanes (entries i, i + lanes, ...) is found, and
by counting a lower bound of the k-th largest of these, which at least k entries
reach; the entries that reach it are few, and are sorted.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from saejax.kernels import native


def top_k(
  a: Float[Array, "b n"], k: int, *, ordered: bool
) -> tuple[Float[Array, "b k"], Int[Array, "b k"]]:
  """The k largest of each row, equal ones lowest index first.

  Args:
    a: scores; selected on in float32, in the total order of floats.
    k: entries kept, at most n.
    ordered: whether entries come largest first; else in index order.
  """
  n, shape = a.shape[-1], (*a.shape[:-1], k)
  lanes = max(k, n // max(1, math.isqrt(n // k)))
  values, indices = native.call(
    "Select",
    [
      jax.ShapeDtypeStruct(shape, jnp.float32),
      jax.ShapeDtypeStruct(shape, jnp.int32),
    ],
    a.astype(jnp.float32),
    lanes=lanes,
    ordered=ordered,
  )
  return values.astype(a.dtype), indices


def largest(
  a: Float[Array, "b n"], count: Float[Array, ""], *, size: int
) -> tuple[Int[Array, "e"], Int[Array, "e"], Bool[Array, "e"]]:
  """Rows and columns of the `count` largest of all entries, in index order.

  Equal ones are taken lowest index first.

  Args:
    a: scores; selected on in float32, in the total order of floats.
    count: how many, a whole number of at most `size`.
    size: length of the results.

  Returns:
    Rows, columns, and whether there is such an entry; 0, 0 where there is none.
  """
  out = jax.ShapeDtypeStruct((size,), jnp.int32)
  rows, columns = native.call(
    "Largest", [out, out], a.astype(jnp.float32), count.astype(jnp.float32)
  )
  filled = rows >= 0
  return jnp.maximum(rows, 0), jnp.maximum(columns, 0), filled
