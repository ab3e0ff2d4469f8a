"""Base class of the parts of an SAE, and the axes of their arrays.

The axes of a part's array are its annotation: `W: Float[Array, "n d"]` has one
row per latent. The first axis decides how the array is treated:

    n       one row per latent: sharded over the mesh axis `latent`, and moved
            where latents are permuted, replaced or cut off
    h       one row per head, which makes many latents (KronSAE): sharded, but
            its latents cannot be moved one by one
    others  replicated, and left alone when latents move

`saejax.sae.axes.axes` gives them for every array of an SAE.
"""

import contextlib
import dataclasses
import functools
import inspect
import sys
import typing
from collections.abc import Callable, Iterator
from typing import Any

import flax.struct
import jax
import jaxtyping
import numpy as np

CLASS = "part"  # name of the static field that holds the class's name

Axes = tuple[str, ...]


class Part(flax.struct.PyTreeNode):
  """A frozen pytree whose arrays have named axes.

  Defining a class with an array field that names no axes, such as
  `theta: jax.Array`, raises a TypeError.

  A static field holds the class's name, because JAX (0.10 and 0.11) treats
  dataclass nodes of two classes with equal fields as equal tree structures.
  Their hashes differ, but where those collide in a cache, one class silently
  gets the program compiled for the other.
  """

  def __repr__(self) -> str:
    """The class and its fields; arrays are shown by dtype and shape."""
    return shown(self)

  def __init_subclass__(cls, **kwargs):
    cls.__annotations__ = {**inspect.get_annotations(cls), CLASS: str}
    name = f"{cls.__module__}.{cls.__qualname__}"
    field = flax.struct.field(
      pytree_node=False, default=name, repr=False, kw_only=True
    )
    setattr(cls, CLASS, field)
    if "__repr__" not in vars(cls):
      cls.__repr__ = Part.__repr__  # a dataclass's own would print every number
    super().__init_subclass__(**kwargs)
    for field in _array_fields(cls):
      # An annotation may name a class defined later: checked on first use.
      with contextlib.suppress(NameError):
        _declared(cls, field.name)


def shown(value: Any) -> str:
  """Returns the text of a part or a field, without the values of arrays.

  Args:
    value: the part, or the value of a field.
  """
  if isinstance(value, Part):
    fields = ", ".join(
      f"{field.name}={shown(getattr(value, field.name))}"
      for field in dataclasses.fields(value)
      if field.name != CLASS
    )
    return f"{type(value).__name__}({fields})"
  if isinstance(value, tuple):
    return f"({', '.join(map(shown, value))})"
  if isinstance(value, jax.Array | np.ndarray | jax.ShapeDtypeStruct):
    return f"{value.dtype}[{','.join(map(str, value.shape))}]"
  return repr(value)


def axes_of(cls: type, name: str, rank: int) -> Axes | None:
  """Returns the axes that a class declares for an array in a field.

  Args:
    cls: the class.
    name: name of the field.
    rank: number of axes of the array.

  Returns:
    Names of axes; None where none of the field's annotations has that rank.

  Raises:
    TypeError: the field declares no array, or one without named axes.
  """
  try:
    declared = _declared(cls, name)
  except NameError as error:
    raise TypeError(
      f"the annotation of {cls.__qualname__}.{name} cannot be evaluated: "
      f"{error}"
    ) from error
  if not declared:
    raise TypeError(
      f"{cls.__qualname__}.{name} holds an array but its annotation has none; "
      'annotate it with its axes, such as Float[Array, "n d"]'
    )
  for axes in declared:
    free = any(axis.startswith("*") for axis in axes)
    if len(axes) == rank or (free and len(axes) <= rank + 1):
      return axes
  return None


def _array_fields(cls: type) -> Iterator[dataclasses.Field]:
  """The fields that are nodes of the pytree."""
  for field in dataclasses.fields(cls):
    if field.metadata.get("pytree_node", True):
      yield field


@functools.cache
def _declared(cls: type, name: str) -> tuple[Axes, ...]:
  """The axes of each kind of array that the field may hold.

  Raises:
    TypeError: an array without named axes, or two that have equal ranks.
    NameError: the annotation uses a name that is not defined (yet).
  """
  owner = next(c for c in cls.__mro__ if name in inspect.get_annotations(c))
  annotation = inspect.get_annotations(owner)[name]
  where = f"{cls.__qualname__}.{name}"
  found = tuple(dict.fromkeys(_axes_in(annotation, owner, where)))
  if len({len(axes) for axes in found}) < len(found):
    raise TypeError(
      f"{where} may hold arrays of one rank and different axes, {annotation}; "
      "give each a field of its own"
    )
  return found


def _axes_in(annotation: Any, owner: type, where: str) -> Iterator[Axes]:
  """The axes of all arrays in an annotation, through unions and containers."""
  if isinstance(annotation, typing.ForwardRef):
    annotation = annotation.__forward_arg__
  if isinstance(annotation, str):
    module = sys.modules.get(owner.__module__)
    annotation = eval(annotation, dict(vars(module) if module else {}))
  # The value of an alias made by a `type` statement.
  annotation = getattr(annotation, "__value__", annotation)
  if typing.get_origin(annotation) in (Callable, typing.Callable):
    return
  if not isinstance(annotation, type):
    for part in typing.get_args(annotation):
      yield from _axes_in(part, owner, where)
  elif issubclass(annotation, jaxtyping.AbstractArray):
    axes = tuple(annotation.dim_str.split())
    if "..." in axes or "_" in axes:
      raise TypeError(_unnamed(where, annotation))
    yield axes
  elif issubclass(annotation, jax.Array | np.ndarray):
    raise TypeError(_unnamed(where, annotation))


def _unnamed(where: str, annotation: Any) -> str:
  return (
    f"{where} is an array without named axes, {annotation}; annotate it with "
    'them, such as Float[Array, "n d"], with n first for one row per latent'
  )
