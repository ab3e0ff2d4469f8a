"""Weights kept in bfloat16 between steps, with stochastic rounding.

A step computes in float32 from the stored weights and rounds its result to one of
the two nearest bfloat16, up with the probability of the distance from the lower
one. The mean of the rounded value is the value; rounding to nearest would drop
every update below 2^-9 of its weight.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt

from saejax.sae import axes
from saejax.sae.sae import SAE

DRAW = 0x726F756E  # folded into a step's key
LOW = 16  # bits of float32 that bfloat16 lacks


def stored(sae: SAE, dtype: str) -> SAE:
  """Rounds the matrices with a row per latent to the nearest of a dtype.

  Biases, thresholds and preps stay in float32.

  Args:
    sae: the SAE of one member.
    dtype: "float32" or "bfloat16".
  """
  matrix = lambda names: len(names) > 1 and names[0] in (axes.LATENT, axes.HEAD)
  return jax.tree.map(
    lambda leaf, names: leaf.astype(dtype) if matrix(names) else leaf,
    sae,
    axes.axes(sae),
  )


def widened(sae: SAE) -> SAE:
  """Converts stored weights to float32, exactly.

  Args:
    sae: the SAE, as it is stored.
  """
  narrow = [a.dtype == jnp.bfloat16 for a in jax.tree.leaves(sae)]
  if not any(narrow):
    return sae
  wide = lambda a: a.astype(jnp.float32) if a.dtype == jnp.bfloat16 else a
  return jax.tree.map(wide, sae)


def rounded(
  sae: SAE, like: SAE, key: PRNGKeyArray, step: Int[Array, ""]
) -> SAE:
  """Rounds weights stochastically to the dtypes in which they are stored.

  The draws are functions of the key, the step and an entry's own place, whatever
  devices it is on. Values that are stored exactly stay as they are.

  Args:
    sae: new weights of one member, in float32.
    like: its stored weights.
    key: key of the member.
    step: number of the step.
  """
  key = jax.random.fold_in(jax.random.fold_in(key, step), DRAW)
  leaves, structure = jax.tree.flatten(sae)
  found = []
  for i, (leaf, old) in enumerate(
    zip(leaves, jax.tree.leaves(like), strict=True)
  ):
    if old.dtype != leaf.dtype:
      leaf = stochastic(leaf, jax.random.fold_in(key, i))
    found.append(leaf)
  return structure.unflatten(found)


def stochastic(
  x: Float[Array, "n *d"], key: PRNGKeyArray
) -> Float[Array, "n *d"]:
  """Rounds float32 to bfloat16, up or down at random, without bias.

  Adds 16 random bits below the last one kept, and cuts.

  Args:
    x: values; not-finite ones are rounded to nearest.
    key: random key.
  """
  bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
  seeds = jax.random.bits(key, (2,), jnp.uint32)
  bits += _hash(x.shape, seeds) >> LOW
  bits &= jnp.uint32(0xFFFF << LOW)
  cut = jax.lax.bitcast_convert_type(bits, jnp.float32)
  return jnp.where(jnp.isfinite(x), cut, x).astype(jnp.bfloat16)


def _hash(
  shape: tuple[int, ...], seeds: UInt[Array, "2"]
) -> UInt[Array, "..."]:
  """32 bits for each entry, from its row and its place in the row.

  A counter hash, MurmurHash3's finaliser twice: threefry for each entry would take
  longer than the optimizer.
  """
  place = lambda axis: jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
  column = jnp.zeros(shape, jnp.uint32)
  for axis in range(1, len(shape)):
    column = column * jnp.uint32(shape[axis]) + place(axis)
  row = _mixed(place(0) ^ seeds[0])
  return _mixed(row + column * jnp.uint32(0x9E3779B1) ^ seeds[1])


def _mixed(h: UInt[Array, "..."]) -> UInt[Array, "..."]:
  for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
    h ^= h >> shift
    h *= jnp.uint32(factor)
  return h ^ (h >> 16)
