"""Samples of a causal model, as token ids.

Every row starts with a prompt, such as BOS. Tokens are drawn one at a time from
softmax(logits / temperature), truncated to the nucleus of `top_p`, in one
compiled scan with a cache of keys and values. The ids are returned as drawn:
decoding them and encoding the text again may give other ids.

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
from saejax.models import ops, stack

NONE = -1  # id at places after the end of a sample


@dataclasses.dataclass(frozen=True, eq=False)
class Samples:
  """Samples of a model.

  Attributes:
    ids: token ids without the prompt, -1 after the end of a sample, [samples,
      tokens] int32.
    lengths: number of tokens per sample, without the end token, [samples].
  """

  ids: Int[np.ndarray, "s t"]
  lengths: Int[np.ndarray, "s"]

  @property
  def tokens(self) -> int:
    """Number of tokens of all samples."""
    return int(self.lengths.sum())

  @property
  def unique(self) -> int:
    """Number of distinct samples; short ones may repeat."""
    return len(np.unique(self.ids, axis=0))

  def documents(self) -> list[Int[np.ndarray, "t"]]:
    """Returns the ids of each sample that has at least one."""
    pairs = zip(self.ids, self.lengths, strict=True)
    return [ids[:length] for ids, length in pairs if length]


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
  """Samples from a model until a number of tokens is reached.

  Args:
    model: a language model of `saejax.models`.
    total_tokens: minimum number of tokens; the last batch is kept whole.
    max_tokens: maximum number of tokens per sample.
    prompt: ids before each sample, at least one; BOS in FaithfulSAE.
    end: id that ends a sample and is not part of it; None for no such id.
    temperature: divisor of the logits; 0 selects the most likely token.
    top_p: minimum probability of the nucleus that tokens are drawn from.
    seed: seed of the samples; batch i is a function of seed and i.
    batch_rows: samples per batch.

  Raises:
    InputError: a setting is out of range, the model is not a language model or
      has no language head, or samples are longer than its positions.
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
  drawn, tokens = [], 0
  while tokens < total_tokens:
    key = jax.random.fold_in(jax.random.key(seed), len(drawn))
    drawn.append(np.asarray(draw(key)))
    added = int((drawn[-1] != NONE).sum())
    if not added:
      raise _refusal("prompt", list(prompt), "every sample is empty")
    tokens += added
  ids = np.concatenate(drawn)
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
    rule = f"must be None or in [0, {model.vocabulary})"
    raise _refusal("end", end, rule)
  most = model.max_positions - len(prompt)
  if not 1 <= max_tokens <= most:
    rule = (
      f"must be in [1, {most}], the positions of {model.name} after the prompt"
    )
    raise _refusal("max_tokens", max_tokens, rule)
  if not 0 <= temperature < float("inf"):
    raise _refusal("temperature", temperature, "must be at least 0")
  if not 0 < top_p <= 1:
    raise _refusal("top_p", top_p, "must be in (0, 1]")


def _refusal(name: str, value: object, rule: str) -> errors.InputError:
  return errors.InputError(f"generate.{name}", value, rule, "correct it")


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
  """Draws one batch of samples, with -1 after the end of each."""
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
  """Draws a token per row.

  Args:
    key: key of the draw.
    logits: logits of the next token.
    temperature: divisor of the logits; 0 selects the most likely token.
    top_p: minimum probability of the nucleus.

  >>> choose(jax.random.key(0), jnp.array([[0.0, 9.0]]), temperature=0).tolist()
  [1]
  """
  if temperature == 0:
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)
  logits = logits.astype(jnp.float32) / temperature
  if top_p < 1:
    logits = nucleus(logits, top_p)
  return jax.random.categorical(key, logits).astype(jnp.int32)


def nucleus(logits: Float[Array, "B V"], top_p: float) -> Float[Array, "B V"]:
  """Sets logits outside the nucleus to -inf.

  The nucleus is the smallest set of most likely tokens whose probability is at
  least top_p.

  Args:
    logits: logits of the next token.
    top_p: minimum probability of the nucleus.

  >>> nucleus(jnp.log(jnp.array([[0.6, 0.3, 0.1]])), 0.5)[0, 1:].tolist()
  [-inf, -inf]
  """
  order = jnp.argsort(-logits, axis=-1)
  p = jax.nn.softmax(jnp.take_along_axis(logits, order, axis=-1))
  inside = jnp.cumsum(p, axis=-1) - p < top_p
  inside = jnp.take_along_axis(inside, jnp.argsort(order, axis=-1), axis=-1)
  return jnp.where(inside, logits, -jnp.inf)


def empty_cache(model: model_lib.Model, rows: int, length: int) -> ops.Cache:
  """Returns a cache of zeros.

  Args:
    model: the model.
    rows: number of rows.
    length: maximum number of tokens per row.
  """
  config = model.config
  shape = (config.layers, rows, length, config.key_heads, config.head)
  zeros = jnp.zeros(shape, model.params["token"].dtype)
  return ops.Cache(zeros, zeros)


def next_logits(
  model: model_lib.Model,
  cache: ops.Cache,
  token: Int[Array, "B"],
  at: Int[Array, ""],
  *,
  tap: stack.Tap = stack.untouched,
) -> tuple[Float[Array, "B V"], ops.Cache]:
  """Computes the logits after one more token per row.

  Rotary positions that depend on the length of the text are those of a text as
  long as the cache, since its keys are not rotated anew.

  Args:
    model: a language model.
    cache: keys and values of the tokens before position `at`.
    token: the new token of each row.
    at: position of the new tokens.
    tap: reads or replaces h [B, 1, d], as in `Model.__call__`.

  Returns:
    (logits, the cache with the new keys and values).
  """
  length = cache.keys.shape[2]
  ids = token[:, None]
  full = lambda x, S: jnp.broadcast_to(x, (len(token), 1, S))
  distance = at - jnp.arange(length)
  view = ops.View(
    positions=full(at, 1)[:, 0],
    lengths=full(length, 1)[:, 0],
    visible=full(distance >= 0, length),
    distance=full(distance, length),
    at=at,
  )
  h, cache = model.resume(ids, view, cache, tap=tap)
  return model.logits(h)[:, 0], cache
