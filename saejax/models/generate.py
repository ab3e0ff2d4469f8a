"""Text that a causal model writes by itself, kept as token ids.

Every row begins with the same prompt, by default BOS alone; then one token at a
time is drawn from softmax(logits / temperature), cut to the nucleus of `top_p`,
in one compiled scan with a cache of keys and values. The ids are kept as drawn:
decoding them and encoding the text again may give others.

References:
  Cho et al., FaithfulSAE, 2025, arXiv:2506.17673 (data from BOS); Holtzman et
  al., The Curious Case of Neural Text Degeneration, 2019, arXiv:1904.09751
  (nucleus sampling).
"""

import dataclasses
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from saejax import errors
from saejax.models import model as model_lib
from saejax.models import ops

NONE = -1  # in place of a token that was not drawn


@dataclasses.dataclass(frozen=True, eq=False)
class Samples:
  """What was drawn.

  Attributes:
    ids: [samples, tokens] int32 without the prompt; -1 after a sample's end.
    lengths: [samples] tokens of each, its end not counted.
  """

  ids: Int[np.ndarray, "s t"]
  lengths: Int[np.ndarray, "s"]

  @property
  def tokens(self) -> int:
    """Tokens of all samples."""
    return int(self.lengths.sum())

  @property
  def unique(self) -> int:
    """Number of different samples: short ones repeat."""
    return len(np.unique(self.ids, axis=0))

  def documents(self) -> list[Int[np.ndarray, "t"]]:
    """The ids of each sample that has any."""
    found = zip(self.ids, self.lengths, strict=True)
    return [ids[:length] for ids, length in found if length]


def generate(
  model: model_lib.Model,
  *,
  total_tokens: int,
  max_tokens: int,
  prompt: Sequence[int],
  end: int | None = None,
  temperature: float = 1.0,
  top_p: float = 1.0,
  seed: int = 0,
  batch_rows: int = 64,
) -> Samples:
  """Samples until there are enough tokens.

  Args:
    model: a language model of `saejax.models`.
    total_tokens: tokens wanted; the last batch is kept whole, so there may be
      more.
    max_tokens: most tokens of a sample.
    prompt: ids before each sample, at least one; FaithfulSAE's is BOS.
    end: id that ends a sample and is not part of it; None where there is none.
    temperature: divides the logits; 0 takes the likeliest token.
    top_p: probability of the set of likeliest tokens that are drawn from.
    seed: batch i of samples is a function of seed and i.
    batch_rows: samples drawn at once.

  Raises:
    InputError: a setting out of range, a model that is no language model or
      has no language head, or a sample longer than its positions.
  """
  _check(model, prompt, end, max_tokens, temperature, top_p)
  for name, value in (
    ("total_tokens", total_tokens),
    ("batch_rows", batch_rows),
  ):
    if value < 1:
      raise _refusal(name, value, "must be at least 1")
  draw = partial(
    _batch,
    model,
    prompt=jnp.asarray(list(prompt), jnp.int32),
    rows=batch_rows,
    max_tokens=max_tokens,
    end=end,
    temperature=temperature,
    top_p=top_p,
  )
  found, tokens = [], 0
  while tokens < total_tokens:
    key = jax.random.fold_in(jax.random.key(seed), len(found))
    found.append(np.asarray(draw(key)))
    added = int((found[-1] != NONE).sum())
    if not added:
      raise _refusal("prompt", list(prompt), "every sample ends at once")
    tokens += added
  ids = np.concatenate(found)
  return Samples(ids, (ids != NONE).sum(axis=1))


def _check(model, prompt, end, max_tokens, temperature, top_p) -> None:
  if not model.causal:
    raise _refusal("model", model.name, "must be a language model")
  _ = model.head  # refuses a model without one
  ids = range(model.vocabulary)
  if not len(prompt) or not all(i in ids for i in prompt):
    rule = f"must be ids in [0, {model.vocabulary}), at least one"
    raise _refusal("prompt", list(prompt), rule)
  if end is not None and end not in ids:
    rule = f"must be an id in [0, {model.vocabulary}): no sample would end"
    raise _refusal("end", end, rule)
  most = model.max_positions - len(prompt)
  if not 1 <= max_tokens <= most:
    rule = f"must be in [1, {most}], by the positions of {model.name}"
    raise _refusal("max_tokens", max_tokens, rule)
  if not 0 <= temperature < float("inf"):
    raise _refusal("temperature", temperature, "must be at least 0")
  if not 0 < top_p <= 1:
    raise _refusal("top_p", top_p, "must be in (0, 1]")


def _refusal(name: str, value: object, rule: str) -> errors.InputError:
  return errors.InputError(f"generate.{name}", value, rule, "change it")


@partial(
  jax.jit,
  static_argnames=("rows", "max_tokens", "end", "temperature", "top_p"),
)
def _batch(
  model: model_lib.Model,
  key: PRNGKeyArray,
  *,
  prompt: Int[Array, "p"],
  rows: int,
  max_tokens: int,
  end: int | None,
  temperature: float,
  top_p: float,
) -> Int[Array, "r t"]:
  """One batch of samples, -1 after the end of each."""
  before = prompt.shape[0]
  cache = empty_cache(model, rows, before + max_tokens)

  def step(carry, t):
    cache, last, done = carry
    given = prompt[jnp.minimum(t, before - 1)]
    token = jnp.where(t < before, given, last)
    logits, cache = next_logits(model, cache, token, t)
    drawn = choose(
      jax.random.fold_in(key, t), logits, temperature=temperature, top_p=top_p
    )
    if end is not None:
      done = done | ((drawn == end) & (t >= before - 1))
    return (cache, drawn, done), jnp.where(done, NONE, drawn)

  start = (cache, jnp.zeros((rows,), jnp.int32), jnp.zeros((rows,), bool))
  steps = jnp.arange(before + max_tokens - 1)
  _, ids = jax.lax.scan(step, start, steps)
  return ids[before - 1 :].T


def choose(
  key: PRNGKeyArray,
  logits: Float[Array, "B V"],
  *,
  temperature: float = 1.0,
  top_p: float = 1.0,
) -> Int[Array, "B"]:
  """Draws a token of each row."""
  if temperature == 0:
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)
  logits = logits.astype(jnp.float32) / temperature
  if top_p < 1:
    logits = nucleus(logits, top_p)
  return jax.random.categorical(key, logits).astype(jnp.int32)


def nucleus(logits: Float[Array, "B V"], top_p: float) -> Float[Array, "B V"]:
  """-inf outside the fewest likeliest tokens of probability top_p or more.

  A token stays if those before it in order have less than top_p together.
  """
  order = jnp.argsort(-logits, axis=-1)
  p = jax.nn.softmax(jnp.take_along_axis(logits, order, axis=-1))
  kept = jnp.cumsum(p, axis=-1) - p < top_p
  kept = jnp.take_along_axis(kept, jnp.argsort(order, axis=-1), axis=-1)
  return jnp.where(kept, logits, -jnp.inf)


Cache = tuple[tuple[Array, Array], ...]


def empty_cache(model: model_lib.Model, rows: int, length: int) -> Cache:
  """Keys and values [rows, length, K, h] of each layer, all 0."""
  config = model.config
  heads = getattr(config, "key_heads", config.heads)
  head = getattr(config, "head", config.d // config.heads)
  zeros = jnp.zeros((rows, length, heads, head), model.params["token"].dtype)
  return ((zeros, zeros),) * config.layers


def next_logits(
  model: model_lib.Model,
  cache: Cache,
  token: Int[Array, "B"],
  at: Int[Array, ""],
  *,
  tap: model_lib.Tap = model_lib.untouched,
) -> tuple[Float[Array, "B V"], Cache]:
  """Logits after one more token, and the cache with its keys and values.

  Args:
    model: a language model.
    cache: of the tokens 0 .. at-1 of all rows.
    token: the next of each row.
    at: its position.
    tap: reads or replaces h [B, 1, d], as in `Model.__call__`.
  """
  new = list(cache)
  length = cache[0][0].shape[1]
  visible = jnp.broadcast_to(jnp.arange(length) <= at, (len(token), 1, length))

  def attend(l, q, k, v, scale):
    put = partial(jax.lax.dynamic_update_slice_in_dim, start_index=at, axis=1)
    keys, values = put(cache[l][0], k), put(cache[l][1], v)
    new[l] = keys, values
    return ops.attention(q, keys, values, visible, scale)

  ids = token[:, None]
  view = ops.View(jnp.full(ids.shape, at), attend)
  logits = model(ids, jnp.ones(ids.shape, bool), tap=tap, view=view)
  return logits[:, 0], tuple(new)
