"""Sites of a model: their names, and reading and rewriting the tensors there.

A name is one of
  - `layers.3.resid_post`, the name in saejax;
  - `blocks.3.hook_resid_post`, the name in TransformerLens (for a model loaded
    without processing, since its default folds norms and centres weights);
  - `model.layers.3`, the output of a module of transformers;
    `model.layers.3:in` is its input.
"""

import collections.abc
import dataclasses
import itertools
import re
from functools import partial

import jax
from jaxtyping import Array, Bool, Float, Int

from saejax import errors
from saejax.models import model as model_lib
from saejax.models import ops

POINTS = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")


@dataclasses.dataclass(frozen=True)
class Site:
  """The location of activations, sufficient to find them in any framework.

  Attributes:
    name: name of the tap.
    module: dotted path of the module in transformers.
    call: number of the call of the module in a forward pass; -1 is the last.
    port: "in" for the module's first input, "out" for its output.
    index: element of an output that is a tuple, or None. Versions differ in
      whether these modules return a tuple or the tensor.
    layout: axes of the tensor: B rows of T tokens of width D.
    rows: selection of rows: "mask" for those of the attention mask.
    branch: selection of the halves of a guided batch: "both".
    pool: pooling over tokens: "none".
  """

  name: str
  module: str
  call: int = -1
  port: str = "out"
  index: int | None = None
  layout: str = "BTD"
  rows: str = "mask"
  branch: str = "both"
  pool: str = "none"


def resolve(
  model: model_lib.Model | model_lib.Config, layer: int, point: str
) -> Site:
  """Returns the site of a model at a layer and point.

  Args:
    model: the model or its settings.
    layer: number of the layer, from 0.
    point: one of `POINTS`.

  Raises:
    InputError: there is no such layer or point; lists those that exist.
  """
  if point not in POINTS:
    raise errors.InputError(
      "harvest.point", point, "must be a point of a layer", _one_of(POINTS)
    )
  if isinstance(layer, bool) or layer not in range(model.layers):
    raise errors.InputError(
      "harvest.layer",
      layer,
      f"must be a layer of the model, which has {model.layers}",
      _one_of(range(model.layers)),
    )
  module, port, index = model_lib.FAMILIES[model.family].SITES[point]
  name = f"layers.{layer}.{point}"
  return Site(name, module.format(layer), port=port, index=index)


def _one_of(candidates: collections.abc.Iterable) -> str:
  some = [str(c) for c in itertools.islice(candidates, 201)]
  rest = ["..."] if len(some) > 200 else []
  return "choose one of " + ", ".join(some[:200] + rest)


def parse(name: str, family: str | None = None) -> tuple[int, str]:
  """Parses the name of a site.

  Args:
    name: a name in one of the three forms above.
    family: family of the model, or None for any. Names of transformers must be
      of this family. For "bert", the names resid_mid and resid_post of
      TransformerLens are refused, since they are before the norm there.

  Returns:
    (layer, point).

  Raises:
    InputError: there is no such name; lists the forms and points.

  >>> parse("blocks.3.hook_resid_post")
  (3, 'resid_post')
  """
  match = re.fullmatch(r"layers\.(\d+)\.(\w+)", name)
  if match is not None and match[2] in POINTS:
    return int(match[1]), match[2]
  match = re.fullmatch(r"blocks\.(\d+)\.hook_(\w+)", name)
  if match is not None and match[2] in _transformer_lens(family):
    return int(match[1]), _transformer_lens(family)[match[2]]
  for pattern, point in _modules(family):
    match = re.fullmatch(pattern, name)
    if match is not None:
      return int(match[1]), point
  raise errors.InputError(
    "harvest.point",
    name,
    "must be the name of a site",
    f"write layers.LAYER.POINT with POINT {_one_of(POINTS)}"
    " (or blocks.LAYER.hook_POINT, or a module of transformers with its layer)",
  )


def _transformer_lens(family: str | None) -> dict[str, str]:
  if family != "bert":
    return {point: point for point in POINTS}
  return {
    "resid_pre": "resid_pre",
    "attn_out": "attn_out",
    "normalized_resid_mid": "resid_mid",
    "mlp_out": "mlp_out",
    "normalized_resid_post": "resid_post",
  }


def _modules(
  family: str | None,
) -> collections.abc.Iterator[tuple[str, str]]:
  """Patterns of transformers' module names, with or without base prefix."""
  known = model_lib.FAMILIES
  for module in [known[family]] if family else known.values():
    paths = [(path, port, p) for p, (path, port, _) in module.SITES.items()]
    paths += [(path, "out", point) for path, point in module.ALIASES.items()]
    for path, port, point in paths:
      bare = re.escape(path.removeprefix(module.PREFIX).format("LAYER"))
      pattern = bare.replace("LAYER", r"(\d+)")
      suffix = ":in" if port == "in" else "(?::out)?"
      prefix = re.escape(module.PREFIX)
      # LlamaModel has modules `layers.3`, without the prefix.
      yield f"(?:{prefix})?{pattern}{suffix}", point


def read(
  model: model_lib.Model,
  ids: Int[Array, "B T"],
  mask: Bool[Array, "B T"],
  sites: collections.abc.Sequence[str],
  *,
  segment: Int[Array, "B T"] | None = None,
) -> dict[str, Float[Array, "B T d"]]:
  """Computes the tensors at sites.

  The function is compiled, and XLA removes layers that no site depends on.

  Args:
    model: the model.
    ids: token ids.
    mask: which tokens are real.
    sites: names in any of the forms above.
    segment: text of each token where rows have several, see `ops.segmented`.

  Returns:
    Tensors by the names in `sites`.

  Raises:
    InputError: there is no such site, or an id is outside the vocabulary.
  """
  model.check(ids, mask)
  names = tuple(_canonical(model, site) for site in sites)
  tensors = _read(model, ids, mask, names, segment)
  return {site: tensors[name] for site, name in zip(sites, names, strict=True)}


@partial(jax.jit, static_argnames="names")
def _read(
  model: model_lib.Model,
  ids: Array,
  mask: Array,
  names: tuple[str, ...],
  segment: Array | None,
) -> dict[str, Array]:
  tensors = {}

  def tap(name: str, h: Array) -> Array:
    if name in names:
      tensors[name] = h
    return h

  view = None if segment is None else ops.segmented(mask, segment)
  model.hidden(ids, mask, tap=tap, view=view)
  return tensors


def _canonical(model: model_lib.Model, site: str) -> str:
  return resolve(model, *parse(site, model.family)).name


def write(
  model: model_lib.Model,
  ids: Int[Array, "B T"],
  mask: Bool[Array, "B T"],
  edits: collections.abc.Mapping[str, collections.abc.Callable[[Array], Array]],
) -> Float[Array, "B T o"]:
  """Computes the model's output with h replaced by edits[site](h) at each site.

  Edits are closures, so the function is not compiled; use it inside jax.jit. An
  edit by an SAE should leave alone the rows that its harvest dropped, see
  `data.text.rules`.

  Args:
    model: the model.
    ids: token ids.
    mask: which tokens are real.
    edits: functions of h [B, T, d], by name of a site in any of the forms
      above.

  Returns:
    Logits of a causal model, the last hidden state of an encoder.

  Raises:
    InputError: there is no such site, an id is outside the vocabulary, or the
      model is causal and has no language head.
    ValueError: an edit changes the shape or dtype, or two edits have one site.
  """
  named = {_canonical(model, site): edit for site, edit in edits.items()}
  if len(named) < len(edits):
    raise ValueError(f"edits must be of different sites, got {list(edits)}")

  def tap(name: str, h: Array) -> Array:
    if name not in named:
      return h
    edited = named[name](h)
    if edited.shape != h.shape or edited.dtype != h.dtype:
      raise ValueError(
        f"the edit of {name} must return {h.dtype} {h.shape},"
        f" got {edited.dtype} {edited.shape}"
      )
    return edited

  return model(ids, mask, tap=tap)
