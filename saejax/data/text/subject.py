"""What a harvest needs of a model: tokens in, activations at one site out."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from saejax.errors import InputError
from saejax.models import config_file, hub, taps, tokenizer
from saejax.models import model as models

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
    max_positions: longest window the model takes; 0 for any.
    meta: what identifies model, tokenizer and site, JSON.
    files: small files kept in the store, by name ("tokenizer/...").
  """

  d: int
  encode: Callable[[str], np.ndarray]
  forward: Forward
  prefix: tuple[int, ...] = ()
  suffix: tuple[int, ...] = ()
  special: frozenset[int] = frozenset()
  max_positions: int = 0
  meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  files: Mapping[str, bytes] = dataclasses.field(default_factory=dict)


def of(name: str, layer: int, point: str) -> Subject:
  """A model of `saejax.models` at a layer and point.

  Windows are framed by CLS and SEP where the tokenizer has them, else by a
  BOS in front where it has one. CLS, SEP and BOS are never rows. The weights
  are read when the first batch comes.

  Raises:
    InputError: no such model, layer or point.
  """
  folder = hub.resolve(name)
  file = config_file.read(folder)
  family = models.FAMILIES[file.choice("model_type", models.FAMILIES, "")]
  config = family.read_config(file)
  site = taps.resolve(config, layer, point)
  words = tokenizer.load(folder)
  if words.cls is not None and words.sep is not None:
    prefix, suffix = (words.cls,), (words.sep,)
  else:
    prefix, suffix = () if words.bos is None else (words.bos,), ()

  def encode(text: str) -> np.ndarray:
    ids = words.encode(text)
    if ids.max(initial=0) >= config.vocabulary:
      raise InputError(
        "harvest.model",
        name,
        f"the tokenizer gave id {ids.max()}, and the weights have "
        f"{config.vocabulary} ids",
        "use the tokenizer and the weights of one model",
      )
    return ids

  return Subject(
    d=config.d,
    encode=encode,
    forward=_Forward(name, site.name),
    prefix=prefix,
    suffix=suffix,
    special=frozenset(
      i for i in (words.bos, words.cls, words.sep) if i is not None
    ),
    max_positions=config.max_positions,
    meta={
      "model": {"name": label(name), "weights": hub.weights_hash(folder)},
      "tokenizer": hub.tokenizer_hash(folder),
      "site": {"layer": layer, "point": point} | dataclasses.asdict(site),
    },
    files={
      f"tokenizer/{name}": (folder / name).read_bytes()
      for name in hub.TOKENIZER_FILES
      if (folder / name).exists()
    },
  )


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
    found = taps.read(
      self._model, jnp.asarray(ids), jnp.asarray(mask), [self._site]
    )
    return found[self._site]
