"""Exact top-k over the last axis, also where that axis is sharded.

Sharded n: each shard takes its own k largest, and the k largest among the
candidates of all shards are found as `shards` says. This is exact, ties
included.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from saejax.kernels import dispatch, mesh
from saejax.kernels.topk import native, ref, shards, xla

IMPLEMENTATIONS = {"ref": ref.top_k, "xla": xla.top_k}


@partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def top_k(
  a: Float[Array, "*b n"], k: int, implementation: str | None = None
) -> tuple[Float[Array, "*b k"], Int[Array, "*b k"]]:
  """The k largest of each row, largest first, equal ones lowest index first.

  Args:
    a: scores [*b, n].
    k: entries kept, in [1, n].
    implementation: "ref" or "xla"; None lets the op choose.

  Returns:
    (values, indices), both [*b, k]; the gradient flows to the chosen entries.

  Raises:
    ValueError: k outside [1, n].
  """
  n = a.shape[-1]
  if not 1 <= k <= n:
    raise ValueError(f"k must be in [1, n={n}], got {k}")
  select = IMPLEMENTATIONS[implementation] if implementation else k_largest
  rows = a.reshape(-1, n)
  batch_axis = mesh.axis_or_none(mesh.DATA, rows.shape[0])
  latent_axis = mesh.axis_or_none(mesh.LATENT, n)
  if batch_axis or latent_axis:
    values, indices = mesh.per_shard(
      partial(select_on_shard, select=select, k=k, axis=latent_axis),
      (P(batch_axis, latent_axis),),
      (P(batch_axis), P(batch_axis)),
    )(rows)
  else:
    values, indices = select(rows, k)
  shape = (*a.shape[:-1], k)
  return values.reshape(shape), indices.reshape(shape)


@top_k.defjvp
def _top_k_jvp(k, implementation, primals, tangents):
  values, indices = top_k(*primals, k, implementation)
  moved = jnp.take_along_axis(tangents[0], indices, axis=-1)
  zero = jnp.zeros(indices.shape, jax.dtypes.float0)
  return (values, indices), (moved, zero)


def k_largest(
  a: Float[Array, "b n"], k: int, *, ordered: bool = True
) -> tuple[Float[Array, "b k"], Int[Array, "b k"]]:
  """The k largest of each row on one device, equal ones lowest index first.

  Args:
    a: scores.
    k: entries kept, at most n.
    ordered: whether entries come largest first; else in index order, which is
      faster in plain JAX.
  """
  return dispatch.run(
    a,
    xla=partial(xla.top_k if ordered else xla.top_k_set, k=k),
    native=partial(native.top_k, k=k, ordered=ordered),
  )


def select_on_shard(a, *, select, k: int, axis: str | None):
  """Exact top-k of rows whose columns are split over `axis`; in shard_map.

  Args:
    a: local columns of the scores [b, n / shards].
    select: selection of the k largest of each row.
    k: entries kept, at most n.
    axis: mesh axis over which columns are split; None if they are not.

  Returns:
    (values, indices), both [b, k], with the indices over all shards.
  """
  local = a.shape[-1]
  values, indices = select(a, min(k, local))
  return of_all_shards(values, indices, local, select=select, k=k, axis=axis)


def of_all_shards(
  values: Float[Array, "b c"],
  indices: Int[Array, "b c"],
  local: int,
  *,
  select,
  k: int,
  axis: str | None,
  score: Callable[[Array], Array] = lambda a: a,
) -> tuple[Float[Array, "b k"], Int[Array, "b k"]]:
  """Exact top-k among every shard's own largest entries; in shard_map.

  Args:
    values: the min(k, local) largest entries on this shard.
    indices: their columns on this shard.
    local: columns per shard.
    select: selection of the k largest of each row.
    k: entries kept.
    axis: mesh axis over which columns are split; None if they are not.
    score: function of the values by which `select` ranks them.
  """
  if axis is None:
    return values, indices
  indices = indices + jax.lax.axis_index(axis) * local
  among = partial(shards.gathered, select=select, k=k, axis=axis)
  if 8 * values.size * mesh.size(axis) > shards.GATHER_BYTES:
    among = partial(shards.counted, select=select, k=k, axis=axis, score=score)
  # Compilers for TPUs otherwise exchange anew for each use of the indices.
  return jax.lax.optimization_barrier(among(values, indices))
