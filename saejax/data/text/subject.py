"""The subject of a harvest: a model that maps tokens to activations at a site."""

import collections
import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from saejax.errors import InputError
from saejax.models import checkpoint, hub, taps, tokenizer
from saejax.models import family as family_lib
from saejax.models import mesh as mesh_lib
from saejax.models import model as models

# Positions at the start of a text whose residual norm is up to a hundred times
# that of others from some layer on, whatever token is there (SmolLM2-135M: above
# 20,000 against a median of 144 at layer 11, benchmarks/first_position.py). The
# multiple of the median misses some layers.
# GPT-2 has it at the starting token, whose first position no special token takes:
# Sun et al., Massive Activations in Large Language Models, 2024, arXiv:2402.17762.
# Families without an entry have only the multiple of the median.
SINKS = {"gpt2": 1, "llama": 1, "mistral": 1}
# Choices of the special tokens around windows, see `at_site`.
SPECIAL_TOKENS = ("tokenizer", "add", "none")
Forward = Callable[[np.ndarray, np.ndarray], Float[Array, "B T ..."]]
SCORES = {"entropy": "entropy of the prediction of the next token, in nats"}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
  """A frozen model with a site; `at_site` builds one from a model's name.

  Any function of tokens can be harvested by filling the fields.

  Attributes:
    d: width of the site.
    encode: text -> ids [T], without special tokens around them.
    encode_first: text, n -> the first n of these ids; None encodes it whole.
    forward: ids [B, T] int32, mask [B, T] bool -> x [B, T, d], or
      [B, T, sites, d] where there are several sites.
    sites: number of sites.
    score: ids, mask -> one number per token [B, T]; None for no score.
    prefix: ids before each window.
    suffix: ids after each window.
    special: ids that are never rows, at any position.
    drop_first: number of positions at the start of each window, with prefix,
      that are never rows.
    vocabulary: number of ids of the model; 0 for no limit.
    max_positions: maximum number of tokens per window; 0 for no limit.
    one_row: whether a window is one row, at its last token, as where
      activations are pooled over tokens.
    window_bytes: number of tokens -> lower bound of the bytes of a forward pass
      per window; None counts x only.
    meta: identity of model, tokenizer and site, JSON-serialisable.
    files: small files to write into the store, by name ("tokenizer/...").
  """

  d: int
  encode: Callable[[str], np.ndarray]
  forward: Forward
  encode_first: Callable[[str, int], np.ndarray] | None = None
  sites: int = 1
  score: Forward | None = None
  prefix: tuple[int, ...] = ()
  suffix: tuple[int, ...] = ()
  special: frozenset[int] = frozenset()
  drop_first: int = 0
  vocabulary: int = 0
  max_positions: int = 0
  one_row: bool = False
  window_bytes: Callable[[int], int] | None = None
  meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  files: Mapping[str, bytes] = dataclasses.field(default_factory=dict)

  def bytes_of(self, tokens: int) -> int:
    """Returns a lower bound of the bytes of a forward pass per window.

    Args:
      tokens: tokens per window.
    """
    ids_and_rows = tokens * (32 + 8 * self.d * self.sites)
    if self.score is not None:
      ids_and_rows += 8 * tokens * self.vocabulary
    return ids_and_rows + (self.window_bytes or (lambda _: 0))(tokens)


def at_site(
  name: str,
  layer: int | Sequence[int],
  point: str,
  *,
  special_tokens: str = "tokenizer",
  score: str = "",
  mesh: Mesh | None = None,
) -> Subject:
  """Returns a model of `saejax.models` at a point of one or several layers.

  CLS, SEP, BOS and the tokens around windows are never rows. The weights are
  read at the first batch.

  Args:
    name: name of the model, see `models.hub`.
    layer, point: the site, or one site per layer.
    special_tokens: tokens around windows: "tokenizer" for those that the
      tokenizer adds to a text (none for GPT-2); "add" for CLS and SEP if it has
      them, otherwise BOS in front; "none" for no tokens.
    score: one of `SCORES`, or "" for none.
    mesh: devices of the model, see `models.mesh`; None for the default one. They
      are no part of its identity.

  Raises:
    InputError: there is no such model, layer or point, the mesh does not divide
      the sizes of the model, the tokenizer has no
      tokens to add, its special tokens are not in the vocabulary, or a score is
      wanted of a model without a language head.
  """
  path = hub.resolve(name)
  files = checkpoint.at(path)
  family, config = _settings(files)
  if mesh is not None:
    mesh_lib.check(mesh, config)
  sites = _sites(config, layer, point)
  if score and not family.causal:
    raise InputError(
      "harvest.score",
      score,
      f"needs a model that predicts the next token, and {name} is an encoder",
      "name a causal language model",
    )
  words = tokenizer.load(path)
  prefix, suffix = frame(words, special_tokens, name)
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

  def checked(ids: np.ndarray) -> np.ndarray:
    models.check_ids(
      ids, config.vocabulary, name, field="harvest.model", remedy=remedy
    )
    return ids

  forward = _Forward(name, [site.name for site in sites], mesh)
  return Subject(
    d=math.prod(family_lib.shape(config, point)),
    encode=lambda text: checked(words.encode(text)),
    encode_first=lambda text, n: checked(words.encode_first(text, n)),
    forward=forward,
    sites=len(sites),
    score=forward.entropy if score else None,
    prefix=prefix,
    suffix=suffix,
    special=special,
    drop_first=SINKS.get(config.family, 0),
    vocabulary=config.vocabulary,
    max_positions=config.max_positions,
    window_bytes=functools.partial(_window_bytes, config),
    meta={
      "model": {"name": label(name), "weights": files.weights_hash()},
      "tokenizer": files.tokenizer_hash(),
      "site": {"layer": layer, "point": point} | _described(sites),
    },
    files=tokenizer_files(files),
  )


def tokenizer_files(files: checkpoint.Checkpoint) -> dict[str, bytes]:
  """Returns the files of a tokenizer by their names in a store.

  Args:
    files: the checkpoint.
  """
  return {
    f"tokenizer/{file}": files.read_bytes(file)
    for file in filter(files.has, hub.TOKENIZER_FILES)
  }


def _settings(
  files: checkpoint.Checkpoint,
) -> tuple[family_lib.Family, models.Config]:
  file = files.config()
  family = models.FAMILIES[file.choice("model_type", models.FAMILIES, "")]
  return family, family.read_config(file)


def outer_layer(name: str, point: str) -> int:
  """Returns the layer that a point outside layers belongs to.

  Args:
    name: path, `package:NAME/path` or Hugging Face name, see `hub.resolve`.
    point: "embed", of the first layer, or "final_norm", of the last.
  """
  if point == "embed":
    return 0
  return _settings(checkpoint.at(hub.resolve(name)))[1].layers - 1


def _sites(
  config: models.Config, layer: int | Sequence[int], point: str
) -> list[taps.Site]:
  """The site of each layer."""
  if isinstance(layer, int):
    return [taps.resolve(config, layer, point)]
  try:
    return [taps.resolve(config, one, point) for one in layer]
  except InputError as error:
    if error.field != "harvest.layer":
      raise
    raise error.renamed("harvest.layers") from error


def _described(sites: Sequence[taps.Site]) -> dict[str, Any]:
  """The fields of a site; a list where those of several differ."""
  found = [dataclasses.asdict(site) for site in sites]
  for one in found:
    del one["columns"]  # follows from the layout, and stores have no such field
  return {
    name: value
    if all(one[name] == value for one in found)
    else [one[name] for one in found]
    for name, value in found[0].items()
  }


def frame(
  words: tokenizer.Tokenizer, special_tokens: str, name: str
) -> tuple[tuple[int, ...], tuple[int, ...]]:
  """Returns the special tokens before and after each window.

  Args:
    words: the tokenizer.
    special_tokens: one of `SPECIAL_TOKENS`, see `at_site`.
    name: name of the model, for errors.

  Raises:
    InputError: the tokenizer has no tokens to add.
  """
  if special_tokens == "none":
    return (), ()
  if special_tokens == "tokenizer":
    return words.prefix, words.suffix
  if special_tokens != "add":
    rule = f"must be one of {', '.join(SPECIAL_TOKENS)}"
    raise InputError("special_tokens", special_tokens, rule, "choose one")
  if words.cls is not None and words.sep is not None:
    return (words.cls,), (words.sep,)
  if words.bos is not None:
    return (words.bos,), ()
  raise InputError(
    "harvest.special_tokens",
    special_tokens,
    f"the tokenizer of {name} must have CLS and SEP, or BOS",
    "choose tokenizer or none",
  )


def _window_bytes(config: models.Config, tokens: int) -> int:
  """Returns the bytes of attention or the MLP of one layer, in float32."""
  attention = 4 * config.d + config.heads * tokens
  return 4 * tokens * max(attention, 2 * config.d + config.d_mlp)


def label(name: str) -> str:
  """Returns a model's name for metadata: the last part of a path.

  Args:
    name: name or path of the model.
  """
  path = pathlib.Path(name).expanduser()
  return path.resolve().name if path.exists() else name


class _Forward:
  """Reads the sites of a model, which is loaded at the first call."""

  def __init__(self, name: str, sites: Sequence[str], mesh: Mesh | None):
    self.name, self.sites, self.mesh = name, sites, mesh

  @functools.cached_property
  def _model(self) -> models.Model:
    return models.load(self.name, mesh=self.mesh)

  def read(
    self, ids: np.ndarray, mask: np.ndarray, sites: Sequence[str]
  ) -> dict[str, jax.Array]:
    """Tensors of the model at any of its sites."""
    return taps.read(self._model, ids, mask, sites)

  def rows(self, found: Mapping[str, jax.Array], shape: tuple) -> jax.Array:
    """Rows at the own sites, of tensors for ids of a shape."""
    # Heads are joined: the width of a row is that of all of them.
    x = [found[site].reshape(*shape, -1) for site in self.sites]
    return x[0] if len(x) == 1 else jnp.stack(x, axis=2)

  def __call__(self, ids: np.ndarray, mask: np.ndarray) -> jax.Array:
    return self.rows(self.read(ids, mask, self.sites), ids.shape)

  def entropy(self, ids: np.ndarray, mask: np.ndarray) -> jax.Array:
    """Entropy of the prediction at each token [B, T], in nats."""
    self._model.check(ids, mask)
    return mesh_lib.settled(_entropy(self._model, ids, mask), self.mesh)


def shared(subjects: Sequence[Subject]) -> list[Subject]:
  """Returns subjects of which those of one model are read in one forward pass.

  Others than those of `at_site` are returned as they are. A batch is computed
  once where it is asked for again before a few others.

  Args:
    subjects: the subjects.
  """
  of_model: dict[str, list[_Forward]] = {}
  for one in subjects:
    if isinstance(one.forward, _Forward):
      of_model.setdefault(one.forward.name, []).append(one.forward)
  together = {
    name: _Together(forwards)
    for name, forwards in of_model.items()
    if len(forwards) > 1
  }
  return [
    dataclasses.replace(
      one,
      forward=functools.partial(together[one.forward.name], one.forward),
    )
    if isinstance(one.forward, _Forward) and one.forward.name in together
    else one
    for one in subjects
  ]


class _Together:
  """Reads the sites of several forwards of one model, and keeps the last few."""

  def __init__(self, forwards: Sequence[_Forward]):
    self._forwards = forwards
    self._last: collections.deque = collections.deque(maxlen=4)

  def __call__(
    self, forward: _Forward, ids: np.ndarray, mask: np.ndarray
  ) -> jax.Array:
    for known, real, found in self._last:
      if np.array_equal(known, ids) and np.array_equal(real, mask):
        return forward.rows(found, ids.shape)
    sites = dict.fromkeys(site for one in self._forwards for site in one.sites)
    found = self._forwards[0].read(ids, mask, list(sites))
    self._last.append((ids, mask, found))
    return forward.rows(found, ids.shape)


@jax.jit
def _entropy(model: models.Model, ids: Array, mask: Array) -> Array:
  log_p = jax.nn.log_softmax(model(ids, mask).astype(jnp.float32))
  return -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)
