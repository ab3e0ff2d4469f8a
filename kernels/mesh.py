"""The active mesh, and the mesh axes over which ops shard their arrays.

Ops stay plain `jnp` until a mesh with an axis `data` or `latent` is set
(`jax.set_mesh`). Then the few ops where the compiler's own partitioning is bad
run per shard: rows of a batch lie on `data`, rows of W on `latent`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

DATA = "data"
LATENT = "latent"


def size(axis: str) -> int:
  """Number of shards along `axis` of the active mesh, 1 without a mesh.

  Args:
    axis: name of the mesh axis.
  """
  mesh = jax.sharding.get_abstract_mesh()
  return 1 if mesh.empty else dict(mesh.shape).get(axis, 1)


def axis_or_none(axis: str, length: int) -> str | None:
  """Returns `axis` if it has several shards that divide `length`, else None.

  Args:
    axis: name of the mesh axis.
    length: length of the array dimension to be sharded.
  """
  shards = size(axis)
  return axis if shards > 1 and length % shards == 0 else None


def per_shard(
  body: Callable, in_specs: tuple[P, ...], out_specs: P | tuple[P, ...]
) -> Callable:
  """Wraps `body` to run on each shard of the active mesh.

  Args:
    body: function of the local blocks of its arguments.
    in_specs: partitioning of each argument.
    out_specs: partitioning of the results.
  """
  return jax.shard_map(
    body, in_specs=in_specs, out_specs=out_specs, check_vma=False
  )


def psum(x: jax.Array, axis: str | None) -> jax.Array:
  """Sum over the shards of `axis`; x itself where there is none.

  Args:
    x: array on each shard; only inside `per_shard`.
    axis: name of the mesh axis, or None.
  """
  return x if axis is None else jax.lax.psum(x, axis)


def own(
  indices: jax.Array, rows: int, axis: str | None
) -> tuple[jax.Array, jax.Array]:
  """Local indices of this shard's rows (0 for others), and a mask of them.

  Args:
    indices: indices of rows over all shards.
    rows: number of rows per shard.
    axis: mesh axis over which rows are sharded; None if they are not.
  """
  if axis is None:
    return indices, jnp.ones_like(indices, bool)
  local = indices - jax.lax.axis_index(axis) * rows
  mine = (local >= 0) & (local < rows)
  return jnp.where(mine, local, 0), mine
