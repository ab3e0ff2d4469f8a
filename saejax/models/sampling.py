"""Draws of the next token from logits.

A token is drawn from softmax(logits / temperature) restricted to the tokens that
pass, in this order as in transformers,
  top_k   the k likeliest tokens;
  top_p   of these, the nucleus: the fewest likeliest tokens whose probability is
          at least top_p;
  min_p   tokens at least min_p times as likely as the likeliest.
Of equally likely tokens the one with the lower id comes first.

References:
  Fan et al., Hierarchical Neural Story Generation, 2018, arXiv:1805.04833
  (top_k); Holtzman et al., The Curious Case of Neural Text Degeneration, 2019,
  arXiv:1904.09751 (top_p); Nguyen et al., Turning Up the Heat: Min-p Sampling,
  2024, arXiv:2407.01082.
"""

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray


class Sampling(flax.struct.PyTreeNode):
  """Settings of the draw; None for no such restriction.

  Attributes:
    temperature: divisor of the logits; None selects the likeliest token.
    top_k: number of tokens that may be drawn.
    top_p: minimum probability of the nucleus.
    min_p: least probability of a token, over that of the likeliest.
  """

  temperature: float | None = 1.0
  top_k: int | None = None
  top_p: float | None = None
  min_p: float | None = None


GREEDY = Sampling(None)


def choose(
  keys: PRNGKeyArray, logits: Float[Array, "B V"], sampling: Sampling
) -> Int[Array, "B"]:
  """Draws a token per row.

  Args:
    keys: key of each row, [B].
    logits: logits of the next token.
    sampling: settings of the draw.

  >>> key = jax.random.split(jax.random.key(0), 1)
  >>> choose(key, jnp.array([[0.0, 9.0]]), GREEDY).tolist()
  [1]
  """
  if sampling.temperature is None:
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)
  logits = logits.astype(jnp.float32) / sampling.temperature
  if (sampling.top_k, sampling.top_p, sampling.min_p) != (None, None, None):
    logits = jnp.where(allowed(logits, sampling), logits, -jnp.inf)
  return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


def allowed(
  logits: Float[Array, "B V"], sampling: Sampling
) -> Bool[Array, "B V"]:
  """Returns which tokens may be drawn.

  Args:
    logits: logits over the temperature.
    sampling: settings of the draw.

  >>> logits = jnp.log(jnp.array([[0.1, 0.6, 0.3]]))
  >>> allowed(logits, Sampling(top_p=0.5)).tolist()
  [[False, True, False]]
  """
  ordered = jnp.sort(logits, axis=-1, descending=True)
  count = _number(jax.nn.softmax(ordered), sampling)
  last = jnp.take_along_axis(ordered, count - 1, axis=-1)
  above, tied = logits > last, logits == last
  room = count - jnp.sum(above, axis=-1, keepdims=True)
  return above | (tied & (jnp.cumsum(tied, axis=-1) <= room))


def _number(p: Float[Array, "B V"], sampling: Sampling) -> Int[Array, "B 1"]:
  """Number of tokens that may be drawn, of probabilities in falling order."""
  inside = jnp.ones(p.shape, bool)
  if sampling.top_k is not None:
    inside &= jnp.arange(p.shape[-1])[None] < sampling.top_k
  if sampling.top_p is not None:
    kept = jnp.where(inside, p, 0)
    before = jnp.cumsum(kept, axis=-1) - kept
    inside &= before < sampling.top_p * jnp.sum(kept, axis=-1, keepdims=True)
  if sampling.min_p is not None:
    inside &= p >= sampling.min_p * p[:, :1]
  return jnp.maximum(jnp.sum(inside, axis=-1, keepdims=True), 1)
