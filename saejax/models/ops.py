"""Array functions that the model families share.

Matmuls run in the weights' dtype. Those in float32 have full precision on every
platform, since accelerators would round to TF32 or bfloat16 by default. Norms,
softmax and rotations are computed in float32.
"""

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from saejax.models import weights

ACTIVATIONS = {
  # 1 + erf as in PyTorch, and faster on CPU than the erfc of jax.nn.gelu.
  "gelu": lambda x: 0.5 * x * (1 + jax.lax.erf(x * 2**-0.5)),
  "gelu_accurate": partial(jax.nn.gelu, approximate=True),
  "gelu_fast": partial(jax.nn.gelu, approximate=True),
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


def joint(
  x: Float[Array, "B T i"], map: weights.Joint, widths: Sequence[int]
) -> list[Float[Array, "B T o"]]:
  """Computes x W_j + b_j for each of several maps that are stored as one.

  Args:
    x: vectors.
    map: W and b of all.
    widths: output width of each.
  """
  exact = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
  y = jnp.einsum("bti,iso->btso", x, map.W, precision=exact)
  y = y if map.b is None else y + map.b[None, None]
  stops = itertools.accumulate(width // y.shape[2] for width in widths[:-1])
  parts = jnp.split(y, list(stops), axis=-1)
  return [part.reshape(*y.shape[:2], -1) for part in parts]


def heads(x: Float[Array, "B T H*h"], width: int) -> Float[Array, "B T H h"]:
  """Divides vectors into heads.

  Args:
    x: vectors.
    width: width of a head.
  """
  return x.reshape(*x.shape[:2], -1, width)


def joined(z: Float[Array, "B T H h"]) -> Float[Array, "B T H*h"]:
  """Joins the heads of each token.

  Args:
    z: vectors per head.
  """
  return z.reshape(*z.shape[:2], -1)


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
  x: Float[Array, "*b d"],
  gain: Float[Array, "d"],
  eps: float,
  offset: float = 0.0,
) -> Float[Array, "*b d"]:
  """Computes x / sqrt(mean(x^2) + eps) * (offset + gain).

  Args:
    x: vectors.
    gain: gain.
    eps: addend of the mean square.
    offset: addend of the gain, 1 in Gemma.
  """
  h = x.astype(jnp.float32)
  h = h * jax.lax.rsqrt(jnp.mean(h * h, axis=-1, keepdims=True) + eps)
  gain = gain.reshape((1,) * (x.ndim - 1) + gain.shape).astype(jnp.float32)
  return (h * (offset + gain)).astype(x.dtype)


def soft_cap(x: Float[Array, "*b"], cap: float | None) -> Float[Array, "*b"]:
  """Computes cap tanh(x / cap), in float32; x itself where there is no cap.

  Args:
    x: scores or logits.
    cap: bound of the absolute values, or None.
  """
  if cap is None:
    return x
  return (cap * jnp.tanh(x.astype(jnp.float32) / cap)).astype(x.dtype)


def attention(
  q: Float[Array, "B T H h"],
  k: Float[Array, "B K S h"],
  v: Float[Array, "B K S h"],
  visible: Bool[Array, "B #T S"],
  scale: float | Float[Array, ""],
  cap: float | None = None,
  tap: Callable[[Array], Array] | None = None,
) -> Float[Array, "B T H h"]:
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
    cap: soft cap of the scores, see `soft_cap`.
    tap: reads or replaces the pattern, softmax(scale q k^T) [B, H, T, S], which
      is not computed by itself without one.
  """
  B, T, H, h = q.shape
  K = k.shape[1]
  # Query heads of a group are adjacent: [B, K, H/K * T, h].
  q = (q.astype(jnp.float32) * scale).astype(q.dtype)
  q = q.reshape(B, T, K, H // K, h)
  q = q.transpose(0, 2, 3, 1, 4).reshape(B, K, -1, h)
  k = k.swapaxes(2, 3)
  seen = visible[:, None]
  if seen.shape[2] > 1:
    seen = jnp.tile(seen, (1, 1, H // K, 1))
  scores = soft_cap(matmul(q, k).astype(jnp.float32), cap)
  # Not an added bias: XLA would write it out per head, four times as large.
  scores = jnp.where(seen, scores, jnp.finfo(jnp.float32).min)
  p = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
  total = jnp.sum(p, axis=-1, keepdims=True)
  if tap is not None:
    p = tap((p / total).reshape(B, H, T, -1)).reshape(p.shape)
    total = jnp.ones_like(total)
  z = matmul(p.astype(v.dtype), v) / total.astype(v.dtype)
  z = z.reshape(B, K, H // K, T, h).transpose(0, 3, 1, 2, 4)
  return z.reshape(B, T, H, h)


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
  """Positions of tokens, and which keys each of them sees.

  The keys are those of the same tokens, or those in a cache.

  Attributes:
    positions: positions of the tokens, [B, T].
    lengths: number of tokens of the text of each token, [B, T].
    visible: which keys each token sees, [B, #T, S].
    distance: position of each token minus those of the keys, [B, T, S].
    at: index in the cache of the keys of the first token, or None.
  """

  positions: Int[Array, "B T"]
  lengths: Int[Array, "B T"]
  visible: Bool[Array, "B #T S"]
  distance: Int[Array, "B T S"]
  at: Int[Array, ""] | None = None

  def within(self, window: int | None) -> "View":
    """Returns the view where only the last tokens are seen.

    Args:
      window: number of tokens that each sees, itself included; None for all.
    """
    if window is None:
      return self
    return self._replace(visible=self.visible & (self.distance < window))


def both_ways(mask: Bool[Array, "B T"]) -> View:
  """Returns the view of an encoder: each token sees all.

  Args:
    mask: which tokens are real.
  """
  return _view(positions(mask), mask, mask[:, None, :], mask[:, None, :])


def whole(mask: Bool[Array, "B T"]) -> View:
  """Returns the view of rows that have one text each.

  A token sees all tokens before it.

  Args:
    mask: which tokens are real.
  """
  return _view(positions(mask), mask, causal(mask), mask[:, None, :])


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
  text = same & mask[:, None, :]
  return _view(counted - start, mask, causal(mask) & same, text)


def _view(
  at: Int[Array, "B T"],
  mask: Bool[Array, "B T"],
  visible: Bool[Array, "B #T T"],
  text: Bool[Array, "B #T T"],
) -> View:
  lengths = jnp.sum(text, axis=-1, dtype=jnp.int32)
  lengths = jnp.broadcast_to(lengths, mask.shape)
  return View(at, lengths, visible, at[:, :, None] - at[:, None, :])


class Cache(NamedTuple):
  """Keys and values of a layer."""

  keys: Float[Array, "B K S h"]
  values: Float[Array, "B K S h"]


# Per layer, or stacked with leaves [L, ...] where the weights are, see `stack`.
# A layer's are arrays of their own, or XLA would copy those of all layers at each
# layer.
Caches: TypeAlias = Cache | tuple[Cache, ...]


def attend(
  view: View,
  q: Float[Array, "B T H h"],
  k: Float[Array, "B T K h"],
  v: Float[Array, "B T K h"],
  cache: Cache | None,
  *,
  scale: float | Float[Array, ""],
  cap: float | None = None,
  tap: Callable[[Array], Array] | None = None,
) -> tuple[Float[Array, "B T H h"], Cache | None]:
  """Computes attention to the keys of the tokens, or to those in a cache.

  Args:
    view: which keys each token sees, and where the cache gets the new ones.
      Without such a place the tokens are the first ones: they see one another,
      and their keys are put at the start of the cache.
    q: queries.
    k: keys of the tokens.
    v: values of the tokens.
    cache: keys and values of the tokens before in this layer, or None.
    scale: factor of the scores.
    cap: soft cap of the scores.
    tap: reads or replaces the pattern, see `attention`.

  Returns:
    (output of the heads, the cache with the new keys and values).
  """
  k, v = (x.transpose(0, 2, 1, 3) for x in (k, v))
  if cache is not None:
    at = 0 if view.at is None else view.at
    put = lambda whole, new: jax.lax.dynamic_update_slice_in_dim(
      whole, new, at, axis=2
    )
    cache = Cache(put(cache.keys, k), put(cache.values, v))
    if view.at is not None:
      k, v = cache
  return attention(q, k, v, view.visible, scale, cap, tap), cache


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
