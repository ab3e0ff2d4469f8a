"""Sites of a model: their names, and reading and rewriting the tensors there.

A site is a point of a layer, or a point outside layers; `family` lists the points
and the shapes of their tensors. A name is one of
  - `layers.3.resid_post` or `embed`, the name in saejax;
  - `blocks.3.hook_resid_post`, the name in TransformerLens (for a model loaded
    without processing, since its default folds norms and centres weights);
  - `model.layers.3`, the output of a module of transformers;
    `model.layers.3:in` is its input. Parts of an output, such as the queries of
    GPT-2's `attn.c_attn`, have no such name.
"""

import collections.abc
import dataclasses
import itertools
import re
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from saejax import errors
from saejax.models import edits as edits_lib
from saejax.models import family as family_lib
from saejax.models import mesh, ops, stack
from saejax.models import model as model_lib

POINTS = family_lib.POINTS


@dataclasses.dataclass(frozen=True)
class Site:
  """The location of activations, sufficient to find them in any framework.

  Sites of our own families have the defaults from `rows` on; `models.sites` and
  `models.torch_hooks` read and write all others.

  Attributes:
    name: name of the tap.
    module: dotted path of the module, in transformers for our own families.
    call: number of the call of the module in a forward pass; -1 is the last, and
      "all" are all of them.
    port: "in" for the module's first input, "out" for its output, "diff" for
      output - input, "pair" for both.
    index: element of an output that is a tuple, or its name, or None for the
      first. Versions differ in whether modules return a tuple or the tensor.
    layout: axes of the module's tensor: "BTD" for B rows of T tokens of width D,
      "BT(HD)" for H heads of width D joined; "BT(QKV)" where the heads of
      queries, keys and values are joined in this order, and "BT(H3D)" where each
      head's query, key and value are, of which the site is one part. Others name
      their axes in the same way, with C or D for the width, such as "BCHW".
    rows: selection of rows: "mask" for those of the attention mask, or "all".
    branch: selection of the halves of a guided batch: "both", or "uncond" for
      the first half and "cond" for the second.
    pool: pooling over tokens: "none", "mean", "max", "sum" or "last".
    columns: (groups, start, stop) where the site is part of the width, which is
      divided into equal groups; the part is columns start to stop of each.
  """

  name: str
  module: str
  call: int | str = -1
  port: str = "out"
  index: int | str | None = None
  layout: str = family_lib.PLAIN
  rows: str = "mask"
  branch: str = "both"
  pool: str = "none"
  columns: tuple[int, int, int] | None = None


def resolve(
  model: model_lib.Model | model_lib.Config, layer: int | None, point: str
) -> Site:
  """Returns the site of a model at a layer and point.

  Args:
    model: the model or its settings.
    layer: number of the layer, from 0. A point outside layers has none; the
      first layer is taken for it too at `embed`, the last at `final_norm`.
    point: a point of the model, see `family.POINTS`.

  Raises:
    InputError: there is no such layer or point; lists those that exist.
  """
  config = model.config if isinstance(model, model_lib.Model) else model
  family = model_lib.FAMILIES[config.family]
  points = family.points(config)
  if point not in points:
    raise errors.InputError(
      "harvest.point", point, "must be a point of the model", _one_of(points)
    )
  layers = range(config.layers)
  if point in family_lib.OUTER_POINTS:
    layers = layers[:1] if point == "embed" else layers[-1:]
    layer = layers[0] if layer is None else layer
  if isinstance(layer, bool) or layer not in layers:
    rule = f"must be a layer of the model, which has {config.layers}"
    if point in family_lib.OUTER_POINTS:
      rule = f"must be {layers[0]} for {point}, which is outside the layers"
    raise errors.InputError("harvest.layer", layer, rule, _one_of(layers))
  outer = point in family_lib.OUTER_POINTS
  module, port, index, layout = family.sites[point]
  name = point if outer else f"layers.{layer}.{point}"
  return Site(
    name,
    module.format(layer),
    port=port,
    index=index,
    layout=layout,
    columns=_columns(config, point, layout),
  )


def _columns(
  config: model_lib.Config, point: str, layout: str
) -> tuple[int, int, int] | None:
  """The part that queries, keys or values are of a joined tensor."""
  if layout == family_lib.INTERLEAVED:
    start = "qkv".index(point) * config.head
    return config.heads, start, start + config.head
  if layout == family_lib.FUSED:
    sizes = [n * config.head for n in (config.heads, *[config.key_heads] * 2)]
    ends = list(itertools.accumulate(sizes, initial=0))
    at = "qkv".index(point)
    return 1, ends[at], ends[at + 1]
  return None


def _one_of(candidates: collections.abc.Iterable) -> str:
  some = [str(c) for c in itertools.islice(candidates, 201)]
  rest = ["..."] if len(some) > 200 else []
  return "choose one of " + ", ".join(some[:200] + rest)


def parse(name: str, family: str | None = None) -> tuple[int | None, str]:
  """Parses the name of a site.

  Args:
    name: a name in one of the three forms above.
    family: family of the model, or None for any, where the name must be of the
      same point in all that have it. For "bert", the names resid_mid and
      resid_post of TransformerLens are refused, since they are before the norm
      there.

  Returns:
    (layer, point); the layer is None for a point outside layers.

  Raises:
    InputError: there is no such name; lists the forms and points.

  >>> parse("blocks.3.hook_resid_post")
  (3, 'resid_post')
  """
  known = model_lib.FAMILIES
  families = [known[family]] if family else list(known.values())
  found = {
    (int(match[1]) if match.groups() else None, point)
    for one in families
    for pattern, point in _patterns(one)
    if (match := re.fullmatch(pattern, name)) is not None
  }
  if len(found) == 1:
    return found.pop()
  several = ", not of several, as in different families or parts of it"
  raise errors.InputError(
    "harvest.point",
    name,
    f"must be the name of a site{several if found else ''}",
    f"write layers.LAYER.POINT with POINT {_one_of(POINTS)}"
    " (or a name of TransformerLens, or a module of transformers with its layer)",
  )


def _patterns(
  family: family_lib.Family,
) -> collections.abc.Iterator[tuple[str, str]]:
  """Patterns of the names of a family's points, in all forms."""
  layer = lambda path: re.escape(path.format("LAYER")).replace(
    "LAYER", r"(\d+)"
  )
  for point in family.sites:
    outer = point in family_lib.OUTER_POINTS
    yield layer(point if outer else f"layers.{{}}.{point}"), point
    if point in family.hooks:
      yield layer(family.hooks[point]), point
  places = [(place, point) for point, place in family.sites.items()]
  places += [
    (family_lib.Place(p), point) for p, point in family.aliases.items()
  ]
  for place, point in places:
    suffix = ":in" if place.port == "in" else "(?::out)?"
    path = layer(place.module.removeprefix(family.prefix))
    # LlamaModel has modules `layers.3`, without the prefix.
    yield f"(?:{re.escape(family.prefix)})?{path}{suffix}", point


def read(
  model: model_lib.Model,
  ids: Int[Array, "B T"],
  mask: Bool[Array, "B T"],
  sites: collections.abc.Sequence[str],
  *,
  segment: Int[Array, "B T"] | None = None,
) -> dict[str, Float[Array, "B T ..."]]:
  """Computes the tensors at sites.

  The function is compiled, and XLA removes layers that no site depends on, which
  holds for scanned layers too.

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
  tensors = mesh.settled(tensors, model.mesh)
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

  def keep(name: str, h: Array) -> Array:
    tensors[name] = h
    return h

  tap = stack.Edits({name: partial(keep, name) for name in names})
  view = None if segment is None else ops.segmented(mask, segment)
  model.hidden(ids, mask, tap=tap, view=view)
  return tensors


def patterns(
  model: model_lib.Model,
  ids: Int[Array, "B T"],
  mask: Bool[Array, "B T"],
  layers: collections.abc.Sequence[int],
) -> Float[Array, "L B H T T"]:
  """Computes the attention patterns of layers: query by key, rows of sum 1.

  A query at padding may see no key; its pattern is then uniform over all.

  Args:
    model: the model.
    ids: token ids.
    mask: which tokens are real.
    layers: numbers of the layers, from 0.

  Raises:
    InputError: there is no such layer, or an id is outside the vocabulary.
  """
  model.check(ids, mask)
  for layer in layers:
    resolve(model, layer, "z")
  names = tuple(f"layers.{layer}.{family_lib.PATTERN}" for layer in layers)
  tensors = _read(model, ids, mask, names, None)
  tensors = mesh.settled(tensors, model.mesh)
  return jnp.stack([tensors[name] for name in names])


def _canonical(model: model_lib.Model, site: str) -> str:
  return resolve(model, *parse(site, model.family)).name


def named(
  model: model_lib.Model, edits: collections.abc.Mapping[str, edits_lib.AnyEdit]
) -> dict[str, edits_lib.Edit]:
  """Returns edits by the names of their sites in saejax.

  Args:
    model: the model.
    edits: edits by name of a site in any of the forms above.

  Raises:
    InputError: there is no such site, or two edits have one site.
  """
  found: dict[str, edits_lib.Edit] = {}
  for site, edit in edits.items():
    try:
      name = _canonical(model, site)
    except errors.InputError as error:
      raise error.renamed(edits_lib.FIELD) from None
    if name in found:
      raise errors.InputError(
        edits_lib.FIELD,
        list(edits),
        f"must be of different sites, but two are of {name}",
        "join them in one function",
      )
    found[name] = edits_lib.prepared(edit)
  return found


def write(
  model: model_lib.Model,
  ids: Int[Array, "B T"],
  mask: Bool[Array, "B T"],
  edits: collections.abc.Mapping[str, edits_lib.AnyEdit],
  *,
  prompt: Int[Array, "B"] | None = None,
) -> Float[Array, "B T o"]:
  """Computes the model's output with h replaced by the edit of each site.

  The function is not compiled, since edits may be closures; use it inside
  jax.jit. An edit by an SAE should leave alone the rows that its harvest
  dropped, see `data.text.rules`.

  Args:
    model: the model.
    ids: token ids.
    mask: which tokens are real.
    edits: edits of h, of the shape of the point, by name of a site in any of
      the forms above; functions of h, or see `edits`.
    prompt: number of tokens of each row's prompt, by default all; the others
      are generated ones to an edit.

  Returns:
    Logits of a causal model, the last hidden state of an encoder.

  Raises:
    InputError: there is no such site, two edits have one site, an edit changes
      the shape or dtype, an id is outside the vocabulary, or the model is
      causal and has no language head.
  """
  if model.causal:
    _ = model.head  # refuses a model without one
  h = hidden(model, ids, mask, edits, prompt=prompt)
  return model.logits(h) if model.causal else h


def hidden(
  model: model_lib.Model,
  ids: Int[Array, "B T"],
  mask: Bool[Array, "B T"],
  edits: collections.abc.Mapping[str, edits_lib.AnyEdit],
  *,
  prompt: Int[Array, "B"] | None = None,
) -> Float[Array, "B T d"]:
  """Computes the last hidden state with h replaced by the edit of each site.

  Args:
    model, ids, mask, edits, prompt: as for `write`.

  Raises:
    InputError: as `write`, but for the head.
  """
  found = named(model, edits)
  model.check(ids, mask)
  about = context(ids, mask, prompt=prompt)
  tap, _ = edits_lib.tap(found, about, edits_lib.starts(found, len(ids)))
  return model.hidden(about.ids, about.mask, tap=tap)


def context(
  ids: Int[Array, "B T"],
  mask: Bool[Array, "B T"],
  *,
  prompt: Int[Array, "B"] | None = None,
) -> edits_lib.Context:
  """Returns the context of the edits of a whole forward pass.

  Args:
    ids, mask, prompt: as for `write`.
  """
  ids, mask = jnp.where(mask, ids, 0), jnp.asarray(mask)
  positions = ops.positions(mask)
  prompt = jnp.sum(mask, axis=1) if prompt is None else jnp.asarray(prompt)
  return edits_lib.Context(
    ids=ids,
    mask=mask,
    positions=positions,
    step=positions - prompt.astype(jnp.int32)[:, None],
    sequence=jnp.arange(len(ids), dtype=jnp.int32),
  )
