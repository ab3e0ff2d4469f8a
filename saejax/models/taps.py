"""Sites of a model: what they are called, and reading or rewriting them.

A name is one of
  - `layers.3.resid_post`, ours;
  - `blocks.3.hook_resid_post`, TransformerLens's (there for a model loaded
    without processing: its default folds norms and centres weights);
  - `model.layers.3`, a module of transformers, whose output is meant;
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
  """Where activations are taken: enough to find the tensor in any framework.

  Attributes:
    name: of the tap in our forward.
    module: dotted path of the layer as transformers names it.
    call: which call of that module in one forward; -1 is the last.
    port: "in" or "out", the module's first input or its output.
    index: element of an output that is a tuple, or None. Versions differ in
      whether these modules return a tuple or the tensor itself.
    layout: axes of the tensor, B rows of T tokens of width D.
    rows: which rows count: "mask", those of the attention mask.
    branch: halves of a guided batch; "both" is all of it.
    pool: over tokens; "none" keeps them.
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
  """The site of a model at a layer and a point.

  Raises:
    InputError: no such layer or point; the message lists those there are.
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
  """The layer and point that a name means.

  Args:
    name: one of the three forms above.
    family: of the model, where known: transformers' names are then taken from
      that family alone, and TransformerLens's mean what they mean there (in
      BERT its resid_mid and resid_post lie before the norm, and are refused).

  Raises:
    InputError: no such name; the message lists the forms and points.
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
    "must name a tapped tensor",
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
      # `layers.3` alone would not say that a module of transformers is meant,
      # but is what LlamaModel calls it.
      yield f"(?:{prefix})?{pattern}{suffix}", point


def read(
  model: model_lib.Model,
  ids: Int[Array, "B T"],
  mask: Bool[Array, "B T"],
  sites: collections.abc.Sequence[str],
  *,
  segment: Int[Array, "B T"] | None = None,
) -> dict[str, Float[Array, "B T d"]]:
  """The tensors at `sites`, by the names given.

  Compiled: what no site depends on (later layers, logits) is dead code, and
  XLA removes it.

  Args:
    model: the model.
    ids: token ids.
    mask: which are real.
    sites: names in one of the forms above.
    segment: of rows that hold several texts, see `ops.segmented`.

  Raises:
    InputError: no such site, or an id outside the vocabulary.
  """
  model.check(ids, mask)
  names = tuple(_canonical(model, site) for site in sites)
  found = _read(model, ids, mask, names, segment)
  return {site: found[name] for site, name in zip(sites, names, strict=True)}


@partial(jax.jit, static_argnames="names")
def _read(
  model: model_lib.Model,
  ids: Array,
  mask: Array,
  names: tuple[str, ...],
  segment: Array | None,
) -> dict[str, Array]:
  found = {}

  def tap(name: str, h: Array) -> Array:
    if name in names:
      found[name] = h
    return h

  view = None if segment is None else ops.segmented(mask, segment)
  model.hidden(ids, mask, tap=tap, view=view)
  return found


def _canonical(model: model_lib.Model, site: str) -> str:
  return resolve(model, *parse(site, model.family)).name


def write(
  model: model_lib.Model,
  ids: Int[Array, "B T"],
  mask: Bool[Array, "B T"],
  edits: collections.abc.Mapping[str, collections.abc.Callable[[Array], Array]],
) -> Float[Array, "B T o"]:
  """The model's output with h replaced by `edits[site](h)` at each site.

  Not compiled here, since edits are closures: wrap the caller in jax.jit.

  Raises:
    InputError: no such site, an id outside the vocabulary, or a causal model
      without a language head.
    ValueError: an edit changes the shape or dtype, or two name one site.
  """
  named = {_canonical(model, site): edit for site, edit in edits.items()}
  if len(named) < len(edits):
    raise ValueError(f"edits name one site twice: {list(edits)}")

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
