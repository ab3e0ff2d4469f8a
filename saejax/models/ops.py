"""The array functions that the three model families share.

Matmuls run in the weights' dtype (float32 ones at full precision on every
platform, where accelerators would round to TF32 or bfloat16 by default);
norms, softmax and rotations are computed in float32.
"""

import collections.abc
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from saejax.models import weights

ACTIVATIONS = {
  # 1 + erf rather than the erfc of jax.nn.gelu: faster on CPU, and what
  # PyTorch computes.
  "gelu": lambda x: 0.5 * x * (1 + jax.lax.erf(x * 2**-0.5)),
  "gelu_new": partial(jax.nn.gelu, approximate=True),
  "gelu_pytorch_tanh": partial(jax.nn.gelu, approximate=True),
  "relu": jax.nn.relu,
  "silu": jax.nn.silu,
  "swish": jax.nn.silu,
}


def matmul(x: Float[Array, "*b i"], W: Float[Array, "*c i o"]) -> Array:
  """x W at full precision where they are float32."""
  exact = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
  return jnp.matmul(x, W, precision=exact)


def linear(
  x: Float[Array, "B T i"], map: weights.Linear
) -> Float[Array, "B T o"]:
  """x W + b."""
  y = matmul(x, map.W)
  return y if map.b is None else y + map.b[None, None]


def layer_norm(
  x: Float[Array, "B T d"], norm: weights.Norm, eps: float
) -> Float[Array, "B T d"]:
  """(x - mean) / sqrt(var + eps) * gain + bias."""
  h = x.astype(jnp.float32)
  h = h - jnp.mean(h, axis=-1, keepdims=True)
  h = h * jax.lax.rsqrt(jnp.mean(h * h, axis=-1, keepdims=True) + eps)
  return h.astype(x.dtype) * norm.gain[None, None] + norm.bias[None, None]


def rms_norm(
  x: Float[Array, "B T d"], gain: Float[Array, "d"], eps: float
) -> Float[Array, "B T d"]:
  """x / sqrt(mean(x^2) + eps) * gain."""
  h = x.astype(jnp.float32)
  h = h * jax.lax.rsqrt(jnp.mean(h * h, axis=-1, keepdims=True) + eps)
  return h.astype(x.dtype) * gain[None, None]


def attention(
  q: Float[Array, "B T H h"],
  k: Float[Array, "B T K h"],
  v: Float[Array, "B T K h"],
  visible: Bool[Array, "B #T T"],
  scale: float,
) -> Float[Array, "B T H*h"]:
  """softmax(scale q k^T) v, each of the K key heads shared by H/K queries.

  A query that sees nothing (padding) gets the mean of all values: finite, and
  seen by no other row. Heads go before positions and the division comes after
  the product with v: faster on CPU than the plain einsum.

  Args:
    visible: which keys (last axis) each query sees.
  """
  B, T, H, h = q.shape
  K = k.shape[2]
  # Query heads of a group lie one after another: [B, K, H/K * T, h].
  q = (q * scale).reshape(B, T, K, H // K, h)
  q = q.transpose(0, 2, 3, 1, 4).reshape(B, K, -1, h)
  k, v = k.transpose(0, 2, 3, 1), v.transpose(0, 2, 1, 3)
  lowest = jnp.finfo(jnp.float32).min
  bias = jnp.where(visible, 0.0, lowest)[:, None]
  if bias.shape[2] > 1:
    bias = jnp.tile(bias, (1, 1, H // K, 1))
  scores = matmul(q, k).astype(jnp.float32) + bias
  p = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
  total = jnp.sum(p, axis=-1, keepdims=True)
  z = matmul(p.astype(v.dtype), v) / total.astype(v.dtype)
  z = z.reshape(B, K, H // K, T, h).transpose(0, 3, 1, 2, 4)
  return z.reshape(B, T, H * h)


def causal(mask: Bool[Array, "B T"]) -> Bool[Array, "B T T"]:
  """Each position sees the real tokens up to itself."""
  T = mask.shape[-1]
  return mask[:, None, :] & jnp.tri(T, dtype=bool)[None]


def positions(mask: Bool[Array, "B T"]) -> Int[Array, "B T"]:
  """Positions count real tokens from 0, so padding on either side moves none.

  With padding on the right these are the column numbers, as in transformers;
  with padding on the left they are what transformers' `generate` passes as
  `position_ids`. Padding itself takes a neighbour's position.
  """
  return jnp.maximum(jnp.cumsum(mask, axis=-1, dtype=jnp.int32) - 1, 0)


class View(NamedTuple):
  """What the tokens of a causal forward see of each other.

  Attributes:
    positions: [B, T], for rotations or the table of positions.
    attend: from (layer, q [B, T, H, h], k and v [B, T, K, h], scale) to
      [B, T, H*h].
  """

  positions: Int[Array, "B T"]
  attend: collections.abc.Callable[[int, Array, Array, Array, float], Array]


def whole(mask: Bool[Array, "B T"]) -> View:
  """A row is one text: each token sees all before it."""
  return _seen(positions(mask), causal(mask))


def segmented(mask: Bool[Array, "B T"], segment: Int[Array, "B T"]) -> View:
  """A row holds several texts, none of which sees another.

  Args:
    mask: which tokens are real.
    segment: numbers the texts; one text is a run of equal numbers. Positions
      begin at 0 in each.
  """
  counted = positions(mask)
  new = segment[:, 1:] != segment[:, :-1]
  new = jnp.pad(new, ((0, 0), (1, 0)))
  start = jax.lax.cummax(jnp.where(new, counted, 0), axis=1)
  same = segment[:, :, None] == segment[:, None, :]
  return _seen(counted - start, causal(mask) & same)


def _seen(at: Int[Array, "B T"], visible: Bool[Array, "B T T"]) -> View:
  return View(at, lambda l, q, k, v, scale: attention(q, k, v, visible, scale))


def embed(table: Float[Array, "V d"], ids: Int[Array, "..."]) -> Array:
  """Rows of a table; an id outside it gives a row of NaN, never a wrong one.

  A negative id is outside: it would else count from the end of the table.
  """
  return table.at[ids].get(
    mode="fill", fill_value=jnp.nan, wrap_negative_indices=False
  )
