"""Array functions that the model families share.

Matmuls run in the weights' dtype. Those in float32 have full precision on every
platform, since accelerators would round to TF32 or bfloat16 by default. Norms,
softmax and rotations are computed in float32.
"""

import collections.abc
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from saejax.models import weights

ACTIVATIONS = {
  # 1 + erf as in PyTorch, and faster on CPU than the erfc of jax.nn.gelu.
  "gelu": lambda x: 0.5 * x * (1 + jax.lax.erf(x * 2**-0.5)),
  "gelu_new": partial(jax.nn.gelu, approximate=True),
  "gelu_pytorch_tanh": partial(jax.nn.gelu, approximate=True),
  "relu": jax.nn.relu,
  "silu": jax.nn.silu,
  "swish": jax.nn.silu,
}


def matmul(x: Float[Array, "*b i"], W: Float[Array, "*c i o"]) -> Array:
  """Computes x W, at full precision for float32.

  Args:
    x: vectors.
    W: matrix.
  """
  exact = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
  return jnp.matmul(x, W, precision=exact)


def linear(
  x: Float[Array, "B T i"], map: weights.Linear
) -> Float[Array, "B T o"]:
  """Computes x W + b.

  Args:
    x: vectors.
    map: W and b.
  """
  y = matmul(x, map.W)
  return y if map.b is None else y + map.b[None, None]


def layer_norm(
  x: Float[Array, "B T d"], norm: weights.Norm, eps: float
) -> Float[Array, "B T d"]:
  """Computes (x - mean) / sqrt(var + eps) * gain + bias.

  Args:
    x: vectors.
    norm: gain and bias.
    eps: addend of the variance.
  """
  h = x.astype(jnp.float32)
  h = h - jnp.mean(h, axis=-1, keepdims=True)
  h = h * jax.lax.rsqrt(jnp.mean(h * h, axis=-1, keepdims=True) + eps)
  return h.astype(x.dtype) * norm.gain[None, None] + norm.bias[None, None]


def rms_norm(
  x: Float[Array, "B T d"], gain: Float[Array, "d"], eps: float
) -> Float[Array, "B T d"]:
  """Computes x / sqrt(mean(x^2) + eps) * gain.

  Args:
    x: vectors.
    gain: gain.
    eps: addend of the mean square.
  """
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
  """Computes softmax(scale q k^T) v, with each key head shared by H/K queries.

  A query that sees no key (padding) gets the mean of all values, which is finite
  and affects no other query. Heads are put before positions, and the division
  follows the product with v, which is faster on CPU than a plain einsum.

  Args:
    q: queries.
    k: keys.
    v: values.
    visible: which keys (last axis) each query sees.
    scale: factor of the scores.
  """
  B, T, H, h = q.shape
  K = k.shape[2]
  # Query heads of a group are adjacent: [B, K, H/K * T, h].
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
  """Returns a causal attention mask: a token sees real tokens up to itself.

  Args:
    mask: which tokens are real.

  >>> causal(jnp.ones((1, 2), bool)).tolist()
  [[[True, False], [True, True]]]
  """
  T = mask.shape[-1]
  return mask[:, None, :] & jnp.tri(T, dtype=bool)[None]


def positions(mask: Bool[Array, "B T"]) -> Int[Array, "B T"]:
  """Returns positions that count real tokens from 0, regardless of padding.

  With padding on the right these are the column numbers, as in transformers;
  with padding on the left they equal the `position_ids` of transformers'
  `generate`. Padding has the position of a neighbour.

  Args:
    mask: which tokens are real.

  >>> positions(jnp.array([[False, True, True]])).tolist()
  [[0, 0, 1]]
  """
  return jnp.maximum(jnp.cumsum(mask, axis=-1, dtype=jnp.int32) - 1, 0)


class View(NamedTuple):
  """Positions and attention of a causal forward pass.

  Attributes:
    positions: positions of the tokens, [B, T].
    attend: attention, (layer, q [B, T, H, h], k and v [B, T, K, h], scale) ->
      [B, T, H*h].
  """

  positions: Int[Array, "B T"]
  attend: collections.abc.Callable[[int, Array, Array, Array, float], Array]


def whole(mask: Bool[Array, "B T"]) -> View:
  """Returns the view of rows that have one text each.

  A token sees all tokens before it.

  Args:
    mask: which tokens are real.
  """
  return _seen(positions(mask), causal(mask))


def segmented(mask: Bool[Array, "B T"], segment: Int[Array, "B T"]) -> View:
  """Returns the view of rows that have several texts each.

  A token sees the tokens of its text before it; positions start at 0 in each
  text.

  Args:
    mask: which tokens are real.
    segment: number of the text of each token, a run of equal numbers per text.
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
  """Gathers rows of a table; ids outside it give rows of NaN.

  Negative ids are outside too: they do not count from the end of the table.

  Args:
    table: the rows.
    ids: token ids or positions.

  >>> embed(jnp.ones((2, 1)), jnp.array([1, -1])).tolist()
  [[1.0], [nan]]
  """
  return table.at[ids].get(
    mode="fill", fill_value=jnp.nan, wrap_negative_indices=False
  )
