"""Subjects of the user's own: functions, Flax NNX modules, PyTorch models.

Each returns a `subject.Subject` for `harvest.harvest(config, source=...)`. Its
identity in the store is the name that is given and a digest of the weights; a
change of the code needs another name.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from saejax.data.text import subject
from saejax.data.text import words as tokenizers
from saejax.errors import InputError
from saejax.models import functions, sites, taps, torch_hooks, torch_models


def from_function(
  function: functions.Function,
  params: Any,
  *,
  name: str,
  site: str | Sequence[str],
  vocabulary: int,
  words: str | tokenizers.Encode | None = None,
  special_tokens: str = "tokenizer",
  max_positions: int = 0,
) -> subject.Subject:
  """Returns a function of JAX as a subject, at a point that it taps.

  Args:
    function: (params, ids [B, T] int32, mask [B, T] bool, tap) -> anything, see
      `models.functions`. Windows are padded on the right; what it gives a token
      must not depend on padding.
    params: its weights, a pytree.
    name: name of the model, in the store's metadata.
    site: a point, or several of one width, whose rows are [sites, d].
    vocabulary: number of ids.
    words: the tokenizer: a folder, file or name as of a model, see
      `models.hub`; or a function text -> ids; None where documents are ids.
    special_tokens: tokens around windows, see `subject.at_site`; for a tokenizer
      that is a function there are none.
    max_positions: maximum number of tokens per window; 0 for no limit.

  Raises:
    InputError: there is no such point, its tensor is not [B, T, ...], or the
      tokenizer has no tokens to add, or some outside the vocabulary.
  """
  names = [site] if isinstance(site, str) else list(site)
  tokens = tokenizers.load(words, special_tokens, name, vocabulary)

  def forward(ids: np.ndarray, mask: np.ndarray) -> jax.Array:
    ids, mask = np.asarray(ids, np.int32), np.asarray(mask)
    found = functions.read(function, params, ids, mask, names)
    return _joined([found[one] for one in names], ids.shape)

  probe = (
    np.zeros((2, tokens.width), np.int32),
    np.ones((2, tokens.width), bool),
  )
  known = functions.points(function, params, *probe)
  for one in names:
    if one not in known:
      functions.read(function, params, *probe, [one])  # raises, with a list
    _check_axes(one, known[one].shape, probe[0].shape)
  widths = {math.prod(known[one].shape[2:]) for one in names}
  if len(widths) > 1:
    raise InputError(
      "site",
      ", ".join(names),
      f"must have one width, and has {sorted(widths)}",
      "harvest each into a store of its own",
    )
  return subject.Subject(
    d=widths.pop(),
    forward=forward,
    sites=len(names),
    vocabulary=vocabulary,
    max_positions=max_positions,
    meta={
      "model": {"name": name, "weights": functions.digest(params)},
      "site": {"point": names[0] if len(names) == 1 else names},
      "tokenizer": tokens.identity,
    },
    **tokens.fields,
  )


def from_nnx(
  module: Any,
  *,
  name: str,
  site: str | Sequence[str],
  vocabulary: int,
  call: Callable[[Any, Array, Array], Any] | None = None,
  **settings: Any,
) -> subject.Subject:
  """Returns a Flax NNX module as a subject, at the path of a submodule.

  Args:
    module: the module, in eval mode.
    name, site, vocabulary: as of `from_function`; points are paths of
      submodules, see `functions.from_nnx`.
    call: runs it on ids and mask; module(ids, mask) by default.
    **settings: words, special_tokens, max_positions, as of `from_function`.

  Raises:
    InputError: as `from_function`, or the module is in training mode.
  """
  function, params = functions.from_nnx(module, call)
  return from_function(
    function, params, name=name, site=site, vocabulary=vocabulary, **settings
  )


def from_torch(
  model: Any,
  *,
  name: str,
  site: taps.Site | str,
  call: Callable[[Any, Any, Any], Any] | None = None,
  words: str | tokenizers.Encode | None = None,
  special_tokens: str = "tokenizer",
  vocabulary: int = 0,
  max_positions: int = 0,
) -> subject.Subject:
  """Returns a PyTorch model as a subject, at a site of any of its modules.

  A site that is pooled gives one row per window.

  Args:
    model: a module of PyTorch, in eval mode.
    name: name of the model, in the store's metadata.
    site: a site, or the path of a module, see `models.torch_hooks`.
    call: runs the model on its ids and mask [B, T] int64; by default as models
      of transformers are run.
    words, special_tokens: as of `from_function`.
    vocabulary: number of ids; that of the model's input embeddings by default.
    max_positions: as of `from_function`; by default that of its config.

  Raises:
    InputError: as `from_function`; PyTorch is not installed; or the model is in
      training mode.
  """
  site = sites.at(site)
  if site.port == "pair":
    raise InputError(
      "site.port", site.port, "is two subjects", "use pair_from_torch"
    )
  ends = _Torch(model, site, call)
  return _of_torch(
    ends, site, 0, name, words, special_tokens, vocabulary, max_positions
  )


def pair_from_torch(
  model: Any,
  *,
  name: str,
  site: taps.Site | str,
  call: Callable[[Any, Any, Any], Any] | None = None,
  words: str | tokenizers.Encode | None = None,
  special_tokens: str = "tokenizer",
  vocabulary: int = 0,
  max_positions: int = 0,
) -> tuple[subject.Subject, subject.Subject]:
  """Returns input and output of a module as the source and target of a harvest.

  Both are read in one forward pass:

      source, target = pair_from_torch(model, name="mine", site="h.3.mlp")
      harvest.harvest(config, source=source, target=target)

  Args:
    model, name, call: as of `from_torch`.
    site: the site or the path of the module.
    words, special_tokens, vocabulary, max_positions: as of `from_torch`.
  """
  site = dataclasses.replace(sites.at(site), port="pair")
  ends = _Torch(model, site, call)
  of_end = functools.partial(
    _of_torch,
    name=name,
    words=words,
    special_tokens=special_tokens,
    vocabulary=vocabulary,
    max_positions=max_positions,
  )
  both = [dataclasses.replace(site, port=port) for port in ("in", "out")]
  return of_end(ends, both[0], 0), of_end(ends, both[1], 1)


def _of_torch(
  ends: "_Torch",
  site: taps.Site,
  end: int,
  name: str,
  words: str | tokenizers.Encode | None,
  special_tokens: str,
  vocabulary: int,
  max_positions: int,
) -> subject.Subject:
  """The subject of one end of a site."""
  config: Any = getattr(ends.model, "config", None)
  positions = getattr(config, "max_position_embeddings", None)
  vocabulary = vocabulary or ends.vocabulary()
  tokens = tokenizers.load(words, special_tokens, name, vocabulary)
  ids = np.zeros((2, tokens.width), np.int32)
  x = ends(ids, np.ones(ids.shape, bool), end)
  return subject.Subject(
    d=x.shape[-1],
    forward=lambda ids, mask: ends(ids, mask, end),
    vocabulary=vocabulary,
    max_positions=max_positions or positions or 0,
    one_row=site.pool != "none",
    meta={
      "model": {"name": name, "weights": ends.digest},
      "site": {"point": site.name, **dataclasses.asdict(site)},
      "tokenizer": tokens.identity,
    },
    **tokens.fields,
  )


class _Torch:
  """Runs a model of PyTorch on tokens and reads a site, or a pair."""

  def __init__(
    self,
    model: Any,
    site: taps.Site,
    call: Callable[[Any, Any, Any], Any] | None,
  ):
    if site.branch != "both":
      raise _not_of_tokens(site, "branch", "both")
    if site.rows != "mask" and site.pool == "none":
      raise _not_of_tokens(site, "rows", "mask")
    if site.call == sites.ALL:
      raise _not_of_tokens(site, "call", "a number")
    if model.training:
      raise InputError(
        "model",
        type(model).__name__,
        "must be in eval mode, so that one input gives one output",
        "call model.eval()",
      )
    self.model, self._call = model, call or torch_models.run
    self._reader = torch_hooks.Reader(model, [site])
    self._last: tuple[Any, Any] = None, None

  def __call__(self, ids: np.ndarray, mask: np.ndarray, end: int) -> jax.Array:
    # Source and target ask for both ends of a pair with the same array.
    if self._last[0] is not ids:
      self._last = ids, self._read(ids, mask)
    return self._last[1][end]

  def _read(self, ids: np.ndarray, mask: np.ndarray) -> tuple[Array, ...]:
    torch = torch_models.library()
    first = next(self.model.parameters(), torch.zeros(()))
    given = [
      torch.tensor(a, dtype=torch.long, device=first.device)
      for a in (ids, mask)
    ]
    run = lambda: self._call(self.model, *given)
    (found,) = self._reader(run, mask=mask).values()
    (site,) = self._reader.sites
    found = found if isinstance(found, tuple) else (found,)
    if site.pool != "none":
      found = tuple(
        jnp.broadcast_to(x[:, None], (*ids.shape, x.shape[-1])) for x in found
      )
    for x in found:
      _check_axes(site.module, x.shape, ids.shape)
    return tuple(_joined([x], ids.shape) for x in found)

  def vocabulary(self) -> int:
    """Number of ids of the input embeddings; 0 where they are unknown."""
    try:
      table = self.model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
      return 0
    return getattr(table, "num_embeddings", 0)

  @functools.cached_property
  def digest(self) -> str:
    return torch_models.digest(self.model)


def _not_of_tokens(site: taps.Site, field: str, wanted: str) -> InputError:
  return InputError(
    f"site.{field}",
    getattr(site, field),
    f"must be {wanted} in a harvest of text, where each token is a row",
    "read it with models.torch_hooks, and harvest the arrays",
  )


def _joined(found: Sequence[Array], shape: tuple[int, ...]) -> Array:
  """Rows [B, T, d] of one site, or [B, T, sites, d] of several."""
  x = [one.reshape(*shape, -1) for one in found]
  return x[0] if len(x) == 1 else jnp.stack(x, axis=2)


def _check_axes(
  site: str, shape: tuple[int, ...], tokens: tuple[int, ...]
) -> None:
  if len(shape) < 3 or tuple(shape[:2]) != tuple(tokens):
    raise InputError(
      "site.layout",
      site,
      f"must give [B, T, d] for ids [B, T]; for {tuple(tokens)} it gives "
      f"{tuple(shape)}",
      "name another site, or correct its layout",
    )
