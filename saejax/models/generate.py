"""Text of a causal model after prompts, drawn token by token.

The prompts pass through the model at once, then one token of each row at a time,
with a cache of keys and values. `edits` rewrite activations in both, see `edits`.
The ids are returned as drawn: decoding them and encoding the text again may give
other ids.

Programs are compiled per number of rows, and per length of prompts rounded up to
a power of two.

References:
  Cho et al., FaithfulSAE, 2025, arXiv:2506.17673 (`samples`, data from BOS).
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int

from saejax import errors
from saejax.models import decoding, mesh, sampling, stops, taps, tokenizer
from saejax.models import edits as edits_lib
from saejax.models import model as model_lib

NONE = decoding.NONE  # id at places after the end of a sample
END, STOP, LENGTH = "end", "stop", "length"  # reasons why a sample ends
SHORTEST = 16  # tokens that prompts are padded to at least
CACHE = 64  # the cache's length is a multiple of this
Prompts = Sequence[str] | Sequence[Sequence[int]] | Int[np.ndarray, "s p"]


@dataclasses.dataclass(frozen=True, eq=False)
class Samples:
  """Samples of a model, a row per prompt.

  Attributes:
    ids: token ids without the prompt, -1 after the end of a sample, [samples,
      tokens] int32.
    lengths: number of tokens per sample, without the end token, [samples].
    reasons: why each sample ends: "end" at an end token, "stop" at a stop
      string, "length" at the maximum number of tokens.
    texts: the text of each sample, without a stop string; empty where no
      tokenizer was given.
  """

  ids: Int[np.ndarray, "s t"]
  lengths: Int[np.ndarray, "s"]
  reasons: tuple[str, ...]
  texts: tuple[str, ...] = ()

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
  prompts: Prompts,
  *,
  max_tokens: int,
  words: tokenizer.Tokenizer | None = None,
  end: int | Sequence[int] | None = None,
  stop: Sequence[str] = (),
  temperature: float = 1.0,
  top_k: int | None = None,
  top_p: float = 1.0,
  min_p: float = 0.0,
  edits: Mapping[str, edits_lib.AnyEdit] | None = None,
  mask: Bool[np.ndarray, "s p"] | None = None,
  seed: int = 0,
  batch_rows: int = 64,
  first: int = 0,
) -> Samples:
  """Samples one continuation per prompt.

  Args:
    model: a language model of `saejax.models`.
    prompts: texts, or token ids of each prompt, at least one. A text is encoded
      after the ids that the tokenizer puts before texts, such as BOS.
    max_tokens: maximum number of tokens per sample.
    words: the model's tokenizer, for texts.
    end: ids that end a sample and are not part of it; by default the tokenizer's
      end token, () for none.
    stop: strings that end a sample. The ids include the token that completes
      one; the text ends before it.
    temperature, top_k, top_p, min_p: see `sampling`; temperature 0 selects the
      likeliest token, and by default every token may be drawn.
    edits: edits of activations, by name of site, see `edits` and `taps`.
    mask: which ids are real, where prompts are an array with padding on either
      side.
    seed: seed of the samples; sample i is a function of seed, i and its prompt,
      up to rounding, which depends on the shapes of batches.
    batch_rows: maximum number of prompts at a time.
    first: number of the first sample.

  Raises:
    InputError: a setting or prompt is out of range, the model is not a language
      model or has no language head, there is no site of an edit's name, or an
      edit changes shapes or dtypes.
  """
  _ = _causal(model).head  # refuses a model without one
  _check("batch_rows", batch_rows, batch_rows >= 1, "must be at least 1")
  ids = _ids(model, prompts, mask, words, max_tokens)
  if end is None:
    end = () if words is None or words.eos is None else words.eos
  shared = {
    "sampling": _sampling(temperature, top_k, top_p, min_p),
    "ends": _ends(model, end),
    "edits": taps.named(model, edits or {}),
  }
  text = stops.Text(words, _stops(stop, words))
  batches = -(-len(ids) // batch_rows)
  size = -(-len(ids) // batches)
  size += -size % mesh.replicas(model.mesh)
  found, reasons, texts = [], [], []
  for start in range(0, len(ids), size):
    part = ids[start : start + size]
    numbers = np.arange(start, start + size, dtype=np.int32) + first
    padded, rows = _padded(part, size, numbers, max_tokens, seed, shared)
    drawn, why, said = _run(model, rows, padded, part, max_tokens, text)
    found.append(drawn)
    reasons += why
    texts += said if words else []
  drawn = np.concatenate(found)
  lengths = (drawn != NONE).sum(axis=1)
  return Samples(drawn, lengths, tuple(reasons), tuple(texts))


def samples(
  model: model_lib.Model,
  *,
  prompt: Sequence[int],
  total_tokens: int,
  max_tokens: int,
  batch_rows: int = 64,
  **settings: Any,
) -> Samples:
  """Samples after one prompt until a number of tokens is reached.

  Args:
    model: a language model of `saejax.models`.
    prompt: ids before each sample, at least one; BOS in FaithfulSAE.
    total_tokens: minimum number of tokens; the last batch is kept whole.
    max_tokens: maximum number of tokens per sample.
    batch_rows: samples per batch.
    **settings: further settings of `generate`.

  Raises:
    InputError: as `generate`, or every sample is empty.
  """
  for name, value in (
    ("total_tokens", total_tokens),
    ("batch_rows", batch_rows),
  ):
    _check(name, value, value >= 1, "must be at least 1")
  parts: list[Samples] = []
  while sum(part.tokens for part in parts) < total_tokens:
    parts.append(
      generate(
        model,
        [prompt] * batch_rows,
        max_tokens=max_tokens,
        batch_rows=batch_rows,
        first=len(parts) * batch_rows,
        **settings,
      )
    )
    empty = not parts[-1].tokens
    _check("prompt", list(prompt), not empty, "every sample is empty")
  join = lambda name: tuple(
    itertools.chain.from_iterable(getattr(part, name) for part in parts)
  )
  return Samples(
    np.concatenate([part.ids for part in parts]),
    np.concatenate([part.lengths for part in parts]),
    join("reasons"),
    join("texts"),
  )


# --- a batch -----------------------------------------------------------------


def _padded(
  prompts: Sequence[np.ndarray],
  size: int,
  numbers: np.ndarray,
  max_tokens: int,
  seed: int,
  shared: Mapping[str, Any],
) -> tuple[np.ndarray, decoding.Rows]:
  """Prompts with padding on the left, and the rows; those left over are 0."""
  width = 1 << (max(SHORTEST, *map(len, prompts)) - 1).bit_length()
  ids = np.zeros((size, width), np.int32)
  start = np.full((size,), width - 1, np.int32)
  for r, prompt in enumerate(prompts):
    start[r] = width - len(prompt)
    ids[r, start[r] :] = prompt
  keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), numbers)
  limit = width - start + np.int32(max_tokens)
  return ids, decoding.Rows(
    start=jnp.asarray(start),
    limit=jnp.asarray(limit),
    sequence=jnp.asarray(numbers),
    keys=keys,
    **shared,
  )


def _run(
  model: model_lib.Model,
  rows: decoding.Rows,
  ids: np.ndarray,
  prompts: Sequence[np.ndarray],
  max_tokens: int,
  text: stops.Text,
) -> tuple[np.ndarray, list[str], list[str]]:
  """Ids, reasons and texts of the samples of a batch."""
  count = len(prompts)
  length = -(-(ids.shape[1] + max_tokens) // CACHE) * CACHE
  never = np.arange(len(ids)) >= count
  progress = decoding.prefill(model, rows, ids, never, length=length)
  progress = mesh.settled(progress, model.mesh)
  stopped: dict[int, tuple[int, str]] = {}  # row -> (tokens, text)
  for until in text.looks(max_tokens):
    if until > 1:  # the first token is drawn by `prefill`
      progress = decoding.proceed(model, rows, progress, until)
      progress = mesh.settled(progress, model.mesh)
    done = np.array(progress.done)
    if text.stops:
      drawn = np.asarray(progress.ids)[:count]
      for r in set(range(count)) - set(stopped):
        if cut := text.cut(prompts[r], drawn[r][drawn[r] != NONE]):
          stopped[r], done[r] = cut, True
      progress = progress.replace(done=jnp.asarray(done))
    if done.all():
      break
  found = np.array(progress.ids)[:count, :max_tokens]
  for r, (tokens, _) in stopped.items():
    found[r, tokens:] = NONE
  lengths = (found != NONE).sum(axis=1)
  ended = np.asarray(progress.done)[:count]
  reasons = [
    STOP if r in stopped else END if ended[r] else LENGTH for r in range(count)
  ]
  texts = [
    stopped[r][1] if r in stopped else text.after(prompts[r], found[r, :n])
    for r, n in enumerate(lengths)
  ]
  return found, reasons, texts


# --- checks ------------------------------------------------------------------


def _check(
  name: str, value: Any, holds: bool, rule: str, remedy: str = "correct it"
) -> None:
  if not holds:
    raise _refusal(name, value, rule, remedy)


def _refusal(
  name: str, value: Any, rule: str, remedy: str
) -> errors.InputError:
  return errors.InputError(f"generate.{name}", value, rule, remedy)


def _causal(model: model_lib.Model) -> model_lib.Model:
  _check("model", model.name, model.causal, "must be a language model")
  return model


def _ids(
  model: model_lib.Model,
  prompts: Prompts,
  mask: np.ndarray | None,
  words: tokenizer.Tokenizer | None,
  max_tokens: int,
) -> list[np.ndarray]:
  """Ids of each prompt, checked."""
  name = "prompts"
  listed = not isinstance(prompts, str) and len(prompts) > 0
  wrap = "give a list of prompts"
  _check(name, prompts, listed, "must be one prompt or more", wrap)
  found = []
  for r, prompt in enumerate(prompts):
    if isinstance(prompt, str):
      if words is None:
        raise _refusal(name, prompt, "text needs a tokenizer", "set words")
      prompt = [*words.prefix, *words.encode(prompt)]
    many = np.ndim(prompt) == 1
    _check(name, prompt, many, "must be a text or a list of ids", wrap)
    ids = np.asarray(prompt)
    if mask is not None:
      fits = np.shape(mask) == (len(prompts), *ids.shape)
      _check("mask", np.shape(mask), fits, "must have the shape of prompts")
      ids = ids[np.asarray(mask, bool)[r]]
    some = "must have at least one id; start with BOS or text"
    _check(name, f"[{r}] = []", len(ids) > 0, some)
    whole = np.issubdtype(ids.dtype, np.integer)
    _check(name, prompt, whole, "must be ids, which are integers")
    model_lib.check_ids(
      ids, model.vocabulary, model.name, field=f"generate.{name}"
    )
    found.append(ids.astype(np.int32))
  longest = max(map(len, found))
  room = model.max_positions - 1
  limit = f"must have at most {room} tokens, the positions of {model.name}"
  _check(name, f"{longest} tokens", longest <= room, limit, "shorten it")
  most = model.max_positions - longest
  rule = f"must be in [1, {most}], the positions of {model.name} after prompts"
  _check("max_tokens", max_tokens, 1 <= max_tokens <= most, rule)
  return found


def _ends(model: model_lib.Model, end: int | Sequence[int]) -> jax.Array:
  ids = [end] if isinstance(end, int | np.integer) else list(end)
  rule = f"must be ids in [0, {model.vocabulary}), or None"
  known = all(i in range(model.vocabulary) for i in ids)
  _check("end", end, known, rule)
  return jnp.asarray(ids, jnp.int32)


def _stops(
  stop: Sequence[str], words: tokenizer.Tokenizer | None
) -> tuple[str, ...]:
  given = not isinstance(stop, str) and all(stop)
  _check("stop", stop, given, "must be a list of strings, none of them empty")
  known = words is not None or not len(stop)
  _check("stop", stop, known, "needs a tokenizer", "set words")
  return tuple(stop)


def _sampling(
  temperature: float, top_k: int | None, top_p: float, min_p: float
) -> sampling.Sampling:
  warm = 0 <= temperature < float("inf")
  _check("temperature", temperature, warm, "must be at least 0")
  _check("top_p", top_p, 0 < top_p <= 1, "must be in (0, 1]")
  _check("min_p", min_p, 0 <= min_p <= 1, "must be in [0, 1]")
  counted = top_k is None or top_k >= 1
  _check("top_k", top_k, counted, "must be None or at least 1")
  if temperature == 0:
    return sampling.GREEDY
  return sampling.Sampling(
    temperature=float(temperature),
    top_k=None if top_k is None else int(top_k),
    top_p=None if top_p == 1 else float(top_p),
    min_p=None if min_p == 0 else float(min_p),
  )
