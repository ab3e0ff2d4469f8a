"""Runs the layers of a model, one after another or as a scan, with taps.

Layers that are a tuple are unrolled: each becomes part of the program. Layers
whose weights are stacked (leaves [L, ...], see `stacked`) are scanned, except
those that a tap reads or rewrites, which are unrolled: the program, and the time
to compile it, do not grow with the number of layers then.
"""

import collections.abc
import dataclasses
from typing import Any, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Tap: TypeAlias = collections.abc.Callable[[str, Array], Array]
Block: TypeAlias = collections.abc.Callable[..., tuple[Array, Any]]
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Edits:
  """A tap that is known to act at some sites only.

  Attributes:
    at: function of the tensor, by name of the site.
  """

  at: collections.abc.Mapping[str, collections.abc.Callable[[Array], Array]]

  def __call__(self, name: str, h: Array) -> Array:
    """Returns the edited tensor.

    Args:
      name: name of the site.
      h: the tensor there.
    """
    return self.at[name](h) if name in self.at else h


untouched = Edits({})  # a tap that returns every tensor unchanged


def run(
  block: Block,
  layers: Any,
  h: Float[Array, "B T d"],
  tap: Tap,
  cache: Any,
) -> tuple[Float[Array, "B T d"], Any]:
  """Runs the layers.

  Args:
    block: (number of the layer, its weights, h, its cache, tap) -> (h, cache),
      with a tap that gets the name of a point; the number is traced in a scan.
    layers: weights per layer, a tuple or stacked.
    h: residual stream.
    tap: tap of the model; in a scan no layer that it acts on, see `Edits`.
    cache: keys and values per layer, as `layers` are, or None.
  """
  if isinstance(layers, tuple):
    caches = [None] * len(layers) if cache is None else list(cache)
    for l, p in enumerate(layers):
      h, caches[l] = block(l, p, h, caches[l], _of_layer(tap, l))
    return h, None if cache is None else tuple(caches)

  def one(carry, l, tap):
    h, cache = carry
    p, own = jax.tree.map(lambda a: a[l], (layers, cache))
    h, own = block(l, p, h, own, tap)
    return h, jax.tree.map(lambda a, new: a.at[l].set(new), cache, own)

  def body(carry, l):
    return one(carry, l, lambda point, h: h), None

  for part in _parts(jax.tree.leaves(layers)[0].shape[0], tap):
    if len(part) > 1:
      (h, cache), _ = jax.lax.scan(body, (h, cache), jnp.asarray(part))
    else:
      h, cache = one((h, cache), part[0], _of_layer(tap, part[0]))
  return h, cache


def _of_layer(tap: Tap, l: int) -> Tap:
  layer = f"layers.{l}."
  if not isinstance(tap, Edits):
    return lambda point, h: tap(f"{layer}{point}", h)
  own = (name for name in tap.at if name.startswith(layer))
  return Edits({name.removeprefix(layer): tap.at[name] for name in own})


def named(
  tap: Tap, name: str
) -> collections.abc.Callable[[Array], Array] | None:
  """Returns the function of a tap at a site, None unless the tap names the site.

  For tensors that are computed only where a tap acts on them.

  Args:
    tap: the tap; one that is not an `Edits` names no site.
    name: name of the site.
  """
  return tap.at.get(name) if isinstance(tap, Edits) else None


def _parts(count: int, tap: Tap) -> list[list[int]]:
  """Runs of layers without taps, and each layer with taps by itself."""
  tapped = set(range(count))
  if isinstance(tap, Edits):
    names = (name.split(".") for name in tap.at)
    tapped = {int(parts[1]) for parts in names if parts[0] == "layers"}
  found: list[list[int]] = []
  for l in range(count):
    if l in tapped or not found or found[-1][-1] in tapped:
      found.append([l])
    else:
      found[-1].append(l)
  return found


def pick(values: tuple, l: int | Array) -> Any:
  """Returns a layer's entry of static values, as an array in a scan.

  Equal values stay static.

  Args:
    values: number or bool per layer.
    l: number of the layer.
  """
  if isinstance(l, int):
    return values[l]
  return values[0] if len(set(values)) == 1 else jnp.asarray(values)[l]


def choose(flag: bool | Array, yes: T, no: T) -> T:
  """Returns one of two trees of arrays, by a flag that may be traced.

  Args:
    flag: the flag, see `pick`.
    yes: tree if it is true.
    no: tree if it is false.
  """
  if isinstance(flag, bool):
    return yes if flag else no
  return jax.tree.map(lambda a, b: jnp.where(flag, a, b), yes, no)


def stacked(layers: tuple) -> Any:
  """Stacks the weights of layers, leaf by leaf.

  Args:
    layers: weights per layer, of equal structure and shapes.
  """
  trees = [jax.tree.flatten(layer) for layer in layers]
  leaves = [list(found) for found, _ in trees]
  whole = []
  for i in range(len(leaves[0])):
    whole.append(jnp.stack([own[i] for own in leaves]))
    for own in leaves:
      own[i] = None
  return jax.tree.unflatten(trees[0][1], whole)
