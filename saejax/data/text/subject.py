"""What a harvest needs of a model: tokens in, activations at one site out."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from saejax.errors import InputError
from saejax.models import config_file, hub, taps, tokenizer
from saejax.models import model as models

# Which special tokens are put round windows.
SPECIAL_TOKENS = ("tokenizer", "add", "none")
Forward = Callable[[np.ndarray, np.ndarray], Float[Array, "B T d"]]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
  """A frozen model with a site; `of` makes one of a model's name.

  Any function of tokens can be harvested: fill the fields.

  Attributes:
    d: width of the site.
    encode: text -> ids [T], without special tokens round them.
    forward: ids [B, T] int32, mask [B, T] bool -> x [B, T, d].
    prefix: ids before each window.
    suffix: ids after each window.
    special: ids that are never rows, wherever they stand.
    vocabulary: number of ids that the model takes; 0 for any.
    max_positions: longest window the model takes; 0 for any.
    window_bytes: bytes that a forward takes for a window of so many tokens, at
      the least; None where only x is counted.
    meta: what identifies model, tokenizer and site, JSON.
    files: small files kept in the store, by name ("tokenizer/...").
  """

  d: int
  encode: Callable[[str], np.ndarray]
  forward: Forward
  prefix: tuple[int, ...] = ()
  suffix: tuple[int, ...] = ()
  special: frozenset[int] = frozenset()
  vocabulary: int = 0
  max_positions: int = 0
  window_bytes: Callable[[int], int] | None = None
  meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  files: Mapping[str, bytes] = dataclasses.field(default_factory=dict)

  def bytes_of(self, tokens: int) -> int:
    """Bytes that a window takes, at the least."""
    ids_and_rows = tokens * (32 + 8 * self.d)
    return ids_and_rows + (self.window_bytes or (lambda _: 0))(tokens)


def of(
  name: str, layer: int, point: str, *, special_tokens: str = "tokenizer"
) -> Subject:
  """A model of `saejax.models` at a layer and point.

  CLS, SEP, BOS and what frames windows are never rows. The weights are read
  when the first batch comes.

  Args:
    name: of the model, see `models.hub`.
    layer, point: the site.
    special_tokens: what frames windows: "tokenizer", what the tokenizer itself
      puts round a text, which is nothing in GPT-2; "add", CLS and SEP where it
      has them, else BOS in front; "none", nothing.

  Raises:
    InputError: no such model, layer or point, or tokens to add; or special
      tokens that the weights do not have.
  """
  folder = hub.resolve(name)
  file = config_file.read(folder)
  family = models.FAMILIES[file.choice("model_type", models.FAMILIES, "")]
  config = family.read_config(file)
  site = taps.resolve(config, layer, point)
  words = tokenizer.load(folder)
  prefix, suffix = _frame(words, special_tokens, name)
  roles = (i for i in (words.bos, words.cls, words.sep) if i is not None)
  special = frozenset((*roles, *prefix, *suffix))
  remedy = "use the tokenizer and the weights of one model"
  models.check_ids(
    np.asarray(prefix + suffix, np.int64),
    config.vocabulary,
    name,
    field="harvest.model",
    remedy=remedy,
  )

  def encode(text: str) -> np.ndarray:
    ids = words.encode(text)
    models.check_ids(
      ids, config.vocabulary, name, field="harvest.model", remedy=remedy
    )
    return ids

  return Subject(
    d=config.d,
    encode=encode,
    forward=_Forward(name, site.name),
    prefix=prefix,
    suffix=suffix,
    special=special,
    vocabulary=config.vocabulary,
    max_positions=config.max_positions,
    window_bytes=functools.partial(_window_bytes, config),
    meta={
      "model": {"name": label(name), "weights": hub.weights_hash(folder)},
      "tokenizer": hub.tokenizer_hash(folder),
      "site": {"layer": layer, "point": point} | dataclasses.asdict(site),
    },
    files={
      f"tokenizer/{file}": hub.read_bytes(folder / file)
      for file in hub.TOKENIZER_FILES
      if hub.is_there(folder / file)
    },
  )


def _frame(
  words: tokenizer.Tokenizer, special_tokens: str, name: str
) -> tuple[tuple[int, ...], tuple[int, ...]]:
  """What stands before and after each window."""
  if special_tokens == "none":
    return (), ()
  if special_tokens == "tokenizer":
    return words.prefix, words.suffix
  if special_tokens != "add":
    rule = f"must be one of {', '.join(SPECIAL_TOKENS)}"
    raise InputError("special_tokens", special_tokens, rule, "change it")
  if words.cls is not None and words.sep is not None:
    return (words.cls,), (words.sep,)
  if words.bos is not None:
    return (words.bos,), ()
  raise InputError(
    "harvest.special_tokens",
    special_tokens,
    f"the tokenizer of {name} must have CLS and SEP, or BOS, and has neither",
    "choose tokenizer or none",
  )


def _window_bytes(config: models.Config, tokens: int) -> int:
  """Attention, or the MLP, of one layer and window, in float32."""
  attention = 4 * config.d + config.heads * tokens
  return 4 * tokens * max(attention, 2 * config.d + config.d_mlp)


def label(name: str) -> str:
  """A model's name in metadata: of a path, the last folder only."""
  path = pathlib.Path(name).expanduser()
  return path.resolve().name if path.is_dir() else name


class _Forward:
  """The site of a model that is loaded at the first call."""

  def __init__(self, name: str, site: str):
    self._name, self._site = name, site

  @functools.cached_property
  def _model(self) -> models.Model:
    return models.load(self._name)

  def __call__(self, ids: np.ndarray, mask: np.ndarray) -> jax.Array:
    return taps.read(self._model, ids, mask, [self._site])[self._site]
