"""Generation of tokens by a causal model, as two compiled programs.

`prefill` passes the prompts through the model at once and draws the first token
of each; `proceed` draws further ones, one forward pass each, in a loop that ends
when all rows are done. Prompts are padded on the left, so that each row's next
token is at the same place of the cache, and token c of the cache has the position
c - start in the row's text.
"""

from collections.abc import Mapping
from functools import partial

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from saejax.models import edits as edits_lib
from saejax.models import model as model_lib
from saejax.models import ops, sampling, stack

NONE = -1  # id at places after the end of a sample


class Rows(flax.struct.PyTreeNode):
  """Rows of a batch, which stay as they are.

  Attributes:
    start: number of padding tokens before each prompt.
    limit: maximum length of each text, prompt and generated tokens.
    sequence: number of the sequence.
    keys: key of the draws of each row.
    ends: ids that end a row.
    sampling: settings of the draws.
    edits: edits by name of site.
  """

  start: Int[Array, "B"]
  limit: Int[Array, "B"]
  sequence: Int[Array, "B"]
  keys: PRNGKeyArray
  ends: Int[Array, "e"]
  sampling: sampling.Sampling
  edits: Mapping[str, edits_lib.Edit]


class Progress(flax.struct.PyTreeNode):
  """The tokens of a batch so far.

  Attributes:
    cache: keys and values.
    states: states of the edits.
    ids: generated ids, -1 where there are none, [B, tokens].
    last: the latest token of each row.
    done: which rows are complete.
    count: number of tokens drawn per row.
  """

  cache: ops.Caches
  states: edits_lib.States
  ids: Int[Array, "B t"]
  last: Int[Array, "B"]
  done: Bool[Array, "B"]
  count: Int[Array, ""]


def empty_cache(model: model_lib.Model, rows: int, length: int) -> ops.Caches:
  """Returns a cache of zeros.

  Args:
    model: the model.
    rows: number of rows.
    length: maximum number of tokens per row, padding included.
  """
  config = model.config
  shape = (rows, config.key_heads, length, config.head)
  dtype = model.params["token"].dtype
  layer = lambda *axes: ops.Cache(
    *(jnp.zeros(axes + shape, dtype) for _ in "kv")
  )
  if isinstance(model.params["layers"], tuple):
    return tuple(layer() for _ in range(config.layers))
  return layer(config.layers)


def _length(cache: ops.Caches) -> int:
  return jax.tree.leaves(cache)[0].shape[-2]


def next_logits(
  model: model_lib.Model,
  cache: ops.Caches,
  token: Int[Array, "B"],
  at: Int[Array, ""],
  *,
  start: Int[Array, "B"] | None = None,
  limit: Int[Array, "B"] | None = None,
  tap: stack.Tap = stack.untouched,
) -> tuple[Float[Array, "B V"], ops.Caches]:
  """Computes the logits after one more token per row.

  Args:
    model: a language model.
    cache: keys and values of the tokens before place `at`.
    token: the new token of each row.
    at: place of the new tokens in the cache.
    start: place of each row's first token, by default 0.
    limit: lengths of texts, on which some kinds of rotary positions depend. Keys
      are not rotated anew as the text grows, so this is the length it may reach,
      by default that of the cache.
    tap: reads or replaces h [B, 1, d], as in `Model.__call__`.

  Returns:
    (logits, the cache with the new keys and values).
  """
  length, rows = _length(cache), len(token)
  start = jnp.zeros((rows,), jnp.int32) if start is None else start
  limit = jnp.full((rows,), length, jnp.int32) if limit is None else limit
  place = jnp.arange(length)[None, None]
  view = ops.View(
    positions=(at - start)[:, None],
    lengths=limit[:, None],
    visible=(place <= at) & (place >= start[:, None, None]),
    distance=jnp.broadcast_to(at - place, (rows, 1, length)),
    at=at,
  )
  h, cache = model.resume(token[:, None], view, cache, tap=tap)
  return model.logits(h[:, -1:])[:, 0], cache


@partial(jax.jit, static_argnames=("length",))
def prefill(
  model: model_lib.Model,
  rows: Rows,
  ids: Int[Array, "B P"],
  done: Bool[Array, "B"],
  *,
  length: int,
) -> Progress:
  """Computes the keys and values of prompts, and draws their first token.

  Args:
    model: a causal model.
    rows: the rows.
    ids: prompts, with padding on the left.
    done: rows that nothing is drawn for.
    length: maximum number of tokens, of prompt, padding and generated ones.
  """
  B, P = ids.shape
  mask = jnp.arange(P)[None] >= rows.start[:, None]
  view = ops.whole(mask)
  limits = jnp.broadcast_to(rows.limit[:, None], ids.shape)
  context = edits_lib.Context(
    ids=ids,
    mask=mask,
    positions=view.positions,
    step=view.positions - (P - rows.start)[:, None],
    sequence=rows.sequence,
  )
  before = edits_lib.starts(rows.edits, B)
  tap, states = edits_lib.tap(rows.edits, context, before)
  h, cache = model.resume(
    ids,
    view._replace(lengths=limits),
    empty_cache(model, B, length),
    tap=tap,
  )
  progress = Progress(
    cache=cache,
    states=states,
    ids=jnp.full((B, length - P), NONE, jnp.int32),
    last=ids[:, -1],
    done=done,
    count=jnp.asarray(0, jnp.int32),
  )
  return _draw(rows, progress, model.logits(h[:, -1:])[:, 0])


@partial(jax.jit, donate_argnames=("progress",))
def proceed(
  model: model_lib.Model,
  rows: Rows,
  progress: Progress,
  until: Int[Array, ""],
) -> Progress:
  """Draws tokens until all rows are done or have a number of them.

  Args:
    model: a causal model.
    rows: the rows.
    progress: the tokens so far.
    until: number of tokens per row.
  """
  prompt = _length(progress.cache) - progress.ids.shape[1]

  def go_on(progress: Progress) -> Array:
    return (progress.count < until) & ~jnp.all(progress.done)

  def step(progress: Progress) -> Progress:
    at = prompt + progress.count - 1
    position = (at - rows.start)[:, None]
    context = edits_lib.Context(
      ids=progress.last[:, None],
      mask=jnp.ones(position.shape, bool),
      positions=position,
      step=jnp.full(position.shape, progress.count - 1),
      sequence=rows.sequence,
    )
    tap, states = edits_lib.tap(rows.edits, context, progress.states)
    logits, cache = next_logits(
      model,
      progress.cache,
      progress.last,
      at,
      start=rows.start,
      limit=rows.limit,
      tap=tap,
    )
    return _draw(rows, progress.replace(cache=cache, states=states), logits)

  return jax.lax.while_loop(go_on, step, progress)


def _draw(
  rows: Rows, progress: Progress, logits: Float[Array, "B V"]
) -> Progress:
  at = progress.count
  keys = jax.vmap(jax.random.fold_in, (0, None))(rows.keys, at)
  drawn = sampling.choose(keys, logits, rows.sampling)
  done = progress.done | jnp.isin(drawn, rows.ends)
  column = jnp.where(done, NONE, drawn)[:, None]
  return progress.replace(
    ids=jax.lax.dynamic_update_slice(progress.ids, column, (0, at)),
    last=drawn,
    done=done,
    count=at + 1,
  )
