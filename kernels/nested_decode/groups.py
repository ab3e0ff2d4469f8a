"""Products of runs of neighbouring latents with their rows of a dense matrix.

    part_g = sum over latents i with ends_{g-1} <= i < ends_g of z_i W_i

With latents sharded over `latent` the runs do not end where shards do. A shard
multiplies only the parts of runs that it holds, and all runs are summed over the
shards by one collective; a slice of a sharded array would be moved to where the
result is to lie, forward and backward.
"""

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from saejax.kernels import mesh

Part = Float[Array, "*b d"]


def decode(
  z: Float[Array, "*b n"],
  W: Float[Array, "n d"],
  ends: Sequence[int],
  dtype: str = "float32",
) -> list[Part]:
  """The product of each run of latents, accumulated in float32.

  Args:
    z: latents.
    W: dense matrix, row i is latent i.
    ends: first latent after each run, not decreasing, at most n; the first run
      starts at 0.
    dtype: dtype of the operands.

  Raises:
    ValueError: ends that decrease or exceed n.
  """
  n = W.shape[0]
  if list(ends) != sorted(ends) or any(not 0 <= end <= n for end in ends):
    raise ValueError(f"ends must rise from 0 to n={n}, got {tuple(ends)}")
  rows = z.reshape(-1, n)
  whole = [end for start, end in itertools.pairwise((0, *ends)) if end > start]
  found: Any
  if mesh.axis_or_none(mesh.LATENT, n) and whole:
    found = _split(rows, W, tuple(whole), dtype)
  else:
    found = _held(0, tuple(whole), dtype, rows, W)
  part = dict(zip(whole, found, strict=True))
  shape = (*z.shape[:-1], W.shape[-1])
  return [
    part[end].reshape(shape) if end > start else jnp.zeros(shape)
    for start, end in itertools.pairwise((0, *ends))
  ]


def _held(
  first: int, ends: tuple[int, ...], dtype: str, z: Array, W: Array
) -> list[Array]:
  """The products of the latents first, first + 1, ..., which z and W hold."""
  parts = []
  for start, end in itertools.pairwise((0, *ends)):
    low, high = (min(max(at - first, 0), W.shape[0]) for at in (start, end))
    if low == high:
      parts.append(jnp.zeros((z.shape[0], W.shape[1])))
      continue
    parts.append(
      jnp.matmul(
        z[:, low:high].astype(dtype),
        W[low:high].astype(dtype),
        preferred_element_type=jnp.float32,
      )
    )
  return parts


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _split(z, W, ends, dtype):
  data = mesh.axis_or_none(mesh.DATA, z.shape[0])

  def body(z, W):
    held = lambda first, z, W: _held(first, ends, dtype, z, W)
    return mesh.psum(_on_own_latents(held, z, W), mesh.LATENT)

  specs = (P(data, mesh.LATENT), P(mesh.LATENT))
  return mesh.per_shard(body, specs, [P(data)] * len(ends))(z, W)


def _split_forward(z, W, ends, dtype):
  return _split(z, W, ends, dtype), (z, W)


def _split_backward(ends, dtype, saved, cotangents):
  z, W = saved
  data = mesh.axis_or_none(mesh.DATA, z.shape[0])

  def gradients(first, z, W, *g):
    parts = lambda z, W: _held(first, ends, dtype, z, W)
    return jax.vjp(parts, z, W)[1](list(g))

  def body(z, W, *g):
    d_z, d_W = _on_own_latents(gradients, z, W, *g)
    return d_z, mesh.psum(d_W, data)

  latents = (P(data, mesh.LATENT), P(mesh.LATENT))
  specs = (*latents, *[P(data)] * len(ends))
  return mesh.per_shard(body, specs, latents)(z, W, *cotangents)


_split.defvjp(_split_forward, _split_backward)


def _on_own_latents(f, z: Array, W: Array, *args: Array):
  """f(first latent of this shard, z, W, *args), the first known while tracing."""
  shards, size = mesh.size(mesh.LATENT), W.shape[0]
  ways = [
    lambda *args, first=shard * size: f(first, *args) for shard in range(shards)
  ]
  return jax.lax.switch(jax.lax.axis_index(mesh.LATENT), ways, z, W, *args)
