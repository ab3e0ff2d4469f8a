"""Sites in the tensors of any model: where their rows are, and how to put back.

The module of a `taps.Site` gives a tensor with the axes of its layout. The rows
of the site are [B, ..., D]: examples, the other axes in order, and the width,
where heads are joined. `rows` takes them out of the tensor and `replaced` puts
edited ones back; both take NumPy, JAX and PyTorch arrays and return the same kind.
"""

import collections.abc
import copy
import math
import re
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from saejax import errors
from saejax.models import taps

PORTS = ("in", "out", "diff", "pair")
ROWS = ("mask", "all")
BRANCHES = ("both", "uncond", "cond")  # halves of a guided batch, in this order
POOLS = ("none", "mean", "max", "sum", "last")
LAST, ALL = -1, "all"  # calls


def at(site: taps.Site | str) -> taps.Site:
  """Returns a site; a name is "MODULE" or "MODULE:PORT", with B, T, D for axes.

  Args:
    site: a site or such a name.

  Raises:
    InputError: a field of the site has an unknown value.

  >>> at("model.layers.3:in").module
  'model.layers.3'
  """
  if isinstance(site, str):
    module, _, port = site.partition(":")
    site = taps.Site(name=site, module=module, port=port or "out")
  for field, known in (
    ("port", PORTS),
    ("rows", ROWS),
    ("branch", BRANCHES),
    ("pool", POOLS),
  ):
    value = getattr(site, field)
    if value not in known:
      rule = f"must be one of {', '.join(known)}"
      raise errors.InputError(f"site.{field}", value, rule, "choose one")
  call = site.call
  if call != ALL and (type(call) is not int or call < LAST):
    raise errors.InputError(
      "site.call",
      call,
      'must be the number of a call, from 0, or -1 for the last, or "all"',
      "correct it",
    )
  _names(site.layout)
  return site


# --- tensors of a module's output ----------------------------------------------


def pick(output: Any, site: taps.Site) -> Any:
  """Returns the site's tensor in what a module takes or returns.

  Args:
    output: a tensor, tuple, list, mapping, or object with attributes.
    site: the site, whose index says which element.

  Raises:
    InputError: there is no such element, or it is no tensor.
  """
  index = site.index
  if _is_tensor(output):
    if index in (None, 0):
      return output
    raise _no_element(site, "a tensor")
  if isinstance(output, collections.abc.Mapping):
    named = dict(output)
  elif isinstance(output, tuple | list):
    named = dict(enumerate(output))
  else:
    named = dict(getattr(output, "__dict__", {}))
  found = _element(named, index)
  if not _is_tensor(found):
    names = ", ".join(map(str, named)) or "no elements"
    raise _no_element(site, f"a {type(output).__name__} of {names}")
  return found


def _element(named: dict, index: int | str | None) -> Any:
  if index in named:
    return named[index]
  if isinstance(index, str):
    return None
  values = list(named.values())
  at_index = index or 0
  return values[at_index] if -len(values) <= at_index < len(values) else None


def put(output: Any, site: taps.Site, value: Any) -> Any:
  """Returns a module's output with the site's tensor replaced; a new object.

  Args:
    output: what `pick` found the tensor in.
    site: the site.
    value: the tensor to put there.
  """
  if _is_tensor(output):
    return value
  index: Any = site.index or 0
  if isinstance(output, tuple):
    parts = list(output)
    parts[index] = value
    is_named = hasattr(output, "_fields")
    return type(output)(*parts) if is_named else type(output)(parts)
  changed = copy.copy(output)
  if isinstance(output, collections.abc.Mapping):
    keys = list(output)
    changed[index if index in keys else keys[index]] = value
  elif isinstance(output, list):
    changed[index] = value
  else:
    names = list(vars(output))
    setattr(changed, index if isinstance(index, str) else names[index], value)
  return changed


def _is_tensor(value: Any) -> bool:
  return hasattr(value, "shape") and hasattr(value, "dtype")


def _no_element(site: taps.Site, found: str) -> errors.InputError:
  return errors.InputError(
    "site.index",
    site.index,
    f"must be a tensor in what {site.module} gives, which is {found}",
    "correct it",
  )


# --- rows of a tensor -----------------------------------------------------------


class Axes(NamedTuple):
  """A layout for tensors of some number of axes.

  Attributes:
    order: axes of the tensor in the order batch, positions, width.
    joined: number of axes at the end of `order` that are the width.
  """

  order: tuple[int, ...]
  joined: int


def rows(x: Any, site: taps.Site) -> Any:
  """Takes the rows of a site out of the tensor of its module.

  Args:
    x: the tensor, with the axes of the site's layout.
    site: the site.

  Returns:
    [B, ..., D]; half of the examples where the site is a branch.

  Raises:
    InputError: the tensor has other axes, or halves are wanted of an odd number.
  """
  return _part(_aligned(x, site), site)[0]


def replaced(x: Any, site: taps.Site, edited: Any) -> Any:
  """Returns the tensor of a module with the rows of a site replaced.

  Args:
    x: the tensor.
    site: the site.
    edited: rows of the shape that `rows` returns.
  """
  whole = _aligned(x, site)
  _, batch, columns = _part(whole, site)
  if batch is not None or columns is not None:
    groups, columns = columns or (1, slice(None))
    split = whole.reshape(*whole.shape[:-1], groups, -1)
    part = split[batch or slice(None)][..., columns]
    at_part = (batch or slice(None), Ellipsis, columns)
    edited = _set(split, at_part, edited.reshape(part.shape))
  axes = _axes(x, site)
  edited = edited.reshape([x.shape[i] for i in axes.order])
  return _permuted(edited, tuple(np.argsort(axes.order).tolist()))


def _aligned(x: Any, site: taps.Site) -> Any:
  """The tensor with axes batch, positions and one of the whole width."""
  axes = _axes(x, site)
  x = _permuted(x, axes.order)
  lead = x.shape[: x.ndim - axes.joined]
  return x.reshape(*lead, math.prod(x.shape[len(lead) :]))


def _part(
  whole: Any, site: taps.Site
) -> tuple[Any, slice | None, tuple[int, slice] | None]:
  """The rows in an aligned tensor, and where: examples, and columns."""
  part, batch, columns = whole, None, None
  if site.branch != "both":
    if whole.shape[0] % 2:
      raise errors.InputError(
        "site.branch",
        site.branch,
        f"needs two halves, and {site.module} has {whole.shape[0]} examples",
        "use both, or run the model with guidance",
      )
    half = whole.shape[0] // 2
    batch = slice(half) if site.branch == "uncond" else slice(half, None)
    part = part[batch]
  if site.columns is not None:
    groups, start, stop = site.columns
    width = whole.shape[-1] // groups
    if whole.shape[-1] % groups or not 0 <= start < stop <= width:
      raise errors.InputError(
        "site.columns",
        site.columns,
        f"must be within the width of {site.module}, {whole.shape[-1]}",
        "correct it",
      )
    columns = groups, slice(start, stop)
    lead = part.shape[:-1]
    part = part.reshape(*lead, groups, width)[..., start:stop]
    part = part.reshape(*lead, groups * (stop - start))
  return part, batch, columns


def _permuted(x: Any, order: tuple[int, ...]) -> Any:
  return x.permute(*order) if hasattr(x, "permute") else x.transpose(*order)


def _set(x: Any, where: tuple, value: Any) -> Any:
  if hasattr(x, "at"):  # JAX
    return x.at[where].set(value)
  x = x.clone() if hasattr(x, "clone") else x.copy()
  x[where] = value
  return x


def _names(layout: str) -> list[str]:
  """The axes in a layout; that of the width may be several in brackets."""
  names = re.findall(r"\(\w+\)|\w", layout)
  widths = [name for name in names if name in "CD" or name[0] == "("]
  if (
    "".join(names) != layout
    or len(set(names)) < len(names)
    or names.count("B") != 1
    or len(widths) != 1
  ):
    raise errors.InputError(
      "site.layout",
      layout,
      "must have each axis once: B for examples, C, D or (...) for the width",
      'write it as "BTD", "BCHW", "BT(HD)" or "BD"',
    )
  return names


def _axes(x: Any, site: taps.Site) -> Axes:
  names = _names(site.layout)
  width = next(i for i, n in enumerate(names) if n in "CD" or n[0] == "(")
  inside = len(names[width]) - 2
  joined = 1
  if len(names) < x.ndim == len(names) - 1 + inside:
    names[width : width + 1] = list(names[width].strip("()"))
    joined = inside
  if x.ndim != len(names):
    raise errors.InputError(
      "site.layout",
      site.layout,
      f"must name the axes of {site.module}, of shape {tuple(x.shape)}",
      "correct it, such as BTD for examples, tokens, width",
    )
  batch = names.index("B")
  last = list(range(width, width + joined))
  rest = [i for i in range(x.ndim) if i != batch and i not in last]
  return Axes((batch, *rest, *last), joined)


# --- rows of a table -------------------------------------------------------------


def pooled(
  x: Float[Array, "B *t D"], site: taps.Site, mask: Bool[Array, "B T"] | None
) -> Array:
  """Pools rows over the positions of each example, by the site's pool.

  Args:
    x: rows of the site, JAX.
    site: the site; its rows say whether the mask counts.
    mask: which positions are real; None for all.

  Returns:
    [B, D], or x where the site is not pooled.
  """
  if site.pool == "none":
    return x
  flat = x.reshape(x.shape[0], -1, x.shape[-1])
  keep = _kept(flat, site, mask)[..., None]
  if site.pool == "max":
    return jnp.max(jnp.where(keep, flat, -jnp.inf), axis=1).astype(x.dtype)
  if site.pool == "last":
    places = jnp.arange(flat.shape[1])[None, :, None]
    last = jnp.argmax(jnp.where(keep, places, -1), axis=1, keepdims=True)
    return jnp.take_along_axis(flat, last, axis=1)[:, 0]
  total = jnp.sum(jnp.where(keep, flat.astype(jnp.float32), 0), axis=1)
  if site.pool == "mean":
    total = total / jnp.maximum(jnp.sum(keep.astype(jnp.float32), axis=1), 1)
  return total.astype(x.dtype)


def _kept(flat: Array, site: taps.Site, mask: Array | None) -> Array:
  """Which positions of the rows [B, P, D] are rows of the site, [B, P]."""
  shape = flat.shape[:2]
  if mask is None or site.rows == "all":
    return jnp.ones(shape, bool)
  mask = jnp.asarray(mask)
  if mask.shape != shape:
    raise errors.InputError(
      "mask",
      mask.shape,
      f"must be of the examples and positions of {site.module}, {shape}",
      'correct it, or use all positions: rows="all"',
    )
  return mask.astype(bool)


def table(
  x: Float[Array, "B *t D"],
  site: taps.Site,
  mask: Bool[Array, "B T"] | None = None,
  *,
  first: int = 0,
) -> dict[str, np.ndarray]:
  """Returns the rows of a site as columns with provenance, for a store.

  Args:
    x: rows of the site, [B, ..., D], or [B, D] where they are pooled.
    site: the site.
    mask: which positions are real; None for all.
    first: number of the first example.

  Returns:
    x [N, D]; doc [N] int64, number of the example; pos [N] int32, place among
    the positions of the example, h * W + w for pictures.
  """
  flat = x.reshape(x.shape[0], -1, x.shape[-1])
  keep = np.ones(flat.shape[:2], bool)
  if site.pool == "none":
    keep = np.asarray(_kept(flat, site, mask))
  doc, pos = np.nonzero(keep)
  return {
    "x": np.asarray(flat)[keep],
    "doc": first + doc.astype(np.int64),
    "pos": pos.astype(np.int32),
  }
