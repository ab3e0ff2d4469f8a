"""Reads and checks the tensors of a checkpoint by name."""

import contextlib
import pathlib
import re
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from saejax import errors
from saejax.models import checkpoint, hub, lazy
from saejax.models import mesh as mesh_lib

# Tensors that some checkpoints have beside their weights.
BUFFER = re.compile(
  r"(^|\.)(position_ids|(attn|attention)\.(masked_)?bias|rotary_emb\.inv_freq)$"
)


class Linear(NamedTuple):
  """An affine map x W + b with W [in, out]; b is None for a linear map."""

  W: Float[Array, "i o"]
  b: Float[Array, "o"] | None


class Joint(NamedTuple):
  """Affine maps of one input, stored as one; b is None for linear maps.

  Part s has the s-th share of the outputs of each map, one map after the other;
  there are as many parts as a mesh divides the maps into.
  """

  W: Float[Array, "i s o"]
  b: Float[Array, "s o"] | None


class Map(NamedTuple):
  """An affine map that is not read yet, as `Linear`."""

  W: lazy.Lazy
  b: lazy.Lazy | None

  def split(self, widths: Sequence[int]) -> "list[Map]":
    """Returns the maps to consecutive parts of the output.

    Args:
      widths: width of each part.
    """
    Ws = self.W.split(widths)
    bs = [None] * len(Ws) if self.b is None else self.b.split(widths)
    return [Map(W, b) for W, b in zip(Ws, bs, strict=True)]


class Norm(NamedTuple):
  """Gain and bias of a layer norm."""

  gain: Float[Array, "d"]
  bias: Float[Array, "d"]


class Weights:
  """The tensors of one checkpoint, built by `open_path`.

  Args:
    folder: folder or file of the model, for errors.
    sources: (open file, stored name) of each tensor, by name.
    dtype: dtype that tensors are converted to.
    mesh: devices that they are placed on, see `mesh`; None for the default one.

  Attributes:
    folder: folder or file of the model.
    dtype: dtype of the tensors.
    mesh: the devices.
  """

  def __init__(
    self,
    folder: pathlib.Path,
    sources: checkpoint.Sources,
    dtype: jnp.dtype,
    mesh: Mesh | None = None,
  ):
    self.folder = folder
    self.dtype = dtype
    self.mesh = mesh
    self._sources = sources
    self._prefix = ""
    self._read = set()

  def strip_prefix(self, anchor: str, *prefixes: str) -> None:
    """Sets the prefix of names to the one for which a tensor exists.

    A model is saved with or without the name of its base model before its
    names.

    Args:
      anchor: name of a tensor, without prefix.
      *prefixes: possible prefixes.

    Raises:
      InputError: the tensor does not exist with any of the prefixes.
    """
    matches = [p for p in prefixes if p + anchor in self._sources]
    if not matches:
      names = " or ".join(p + anchor for p in prefixes)
      raise self._missing(names)
    self._prefix = matches[0]

  def holds(self, key: str) -> bool:
    """Returns whether a tensor exists.

    Args:
      key: name of the tensor, with its prefix.
    """
    return key in self._sources

  def stored(self, name: str, *shape: int, absolute: bool = False) -> lazy.Lazy:
    """Returns a tensor, whose parts are checked as they are read.

    Args:
      name: name of the tensor.
      *shape: its required shape.
      absolute: whether the name includes the prefix.

    Raises:
      InputError: the tensor is missing or of another shape; when it is read,
        that it is unreadable, of another type, or has an entry that is not
        finite in the model's dtype.
    """
    key = name if absolute else self._prefix + name
    self._read.add(key)
    if key not in self._sources:
      raise self._missing(key)
    handle, stored = self._sources[key]
    try:
      tensor = handle.get_slice(stored)
      found = tuple(tensor.get_shape())
    except Exception as error:  # safetensors raises several types
      raise hub.unreadable(self.folder, error) from error
    if found != shape:
      raise errors.InputError(
        hub.FIELD,
        self.folder,
        f"{key} must have shape {list(shape)}, has {list(found)}",
        "use the config.json and the weights of one model",
      )
    return lazy.Lazy(shape, partial(self._part, key, tensor))

  def _part(
    self, key: str, tensor: checkpoint.Slices, part: lazy.Part
  ) -> np.ndarray:
    try:
      values = tensor[part]
    except Exception as error:  # safetensors raises several types
      raise hub.unreadable(self.folder, error) from error
    if not jnp.issubdtype(values.dtype, jnp.floating):
      raise errors.InputError(
        hub.FIELD,
        self.folder,
        f"{key} must be floating point, is {values.dtype}",
        "use an unquantised model",
      )
    with np.errstate(over="ignore"):  # refused here
      values = values.astype(self.dtype, copy=False)
    finite = int(np.isfinite(values).sum())
    if finite < values.size:
      raise errors.InputError(
        hub.FIELD,
        self.folder,
        f"{key} must be finite in {self.dtype}; {values.size - finite} of "
        f"{values.size} entries are NaN or infinite",
        "use a checkpoint that was saved before training diverged",
      )
    return values

  def take(
    self,
    name: str,
    *shape: int,
    split: int | None = None,
    absolute: bool = False,
  ) -> Array:
    """Reads a tensor onto the devices, see `stored`.

    Args:
      name: name of the tensor.
      *shape: its required shape.
      split: axis that a mesh divides, or None.
      absolute: whether the name includes the prefix.
    """
    found = self.stored(name, *shape, absolute=absolute)
    return mesh_lib.place(found, self.mesh, split)

  def map(
    self, name: str, *, i: int, o: int, bias: bool = True, conv: bool = False
  ) -> Map:
    """Returns a PyTorch Linear, whose weights are [out, in].

    Args:
      name: name of the module.
      i: input width.
      o: output width.
      bias: whether the module has a bias.
      conv: whether it is a Conv1D of GPT-2, whose weights are [in, out].
    """
    key = f"{name}.weight"
    W = self.stored(key, i, o) if conv else self.stored(key, o, i).T
    return Map(W, self.stored(f"{name}.bias", o) if bias else None)

  def linear(self, map: Map, *, split: int) -> Linear:
    """Reads an affine map onto the devices.

    Args:
      map: the map.
      split: axis of its weights [in, out] that a mesh divides.
    """
    W = mesh_lib.place(map.W, self.mesh, split)
    if map.b is None:
      return Linear(W, None)
    return Linear(W, mesh_lib.place(map.b, self.mesh, 0 if split else None))

  def joint(self, maps: Sequence[Map]) -> Joint:
    """Reads affine maps of one input, whose outputs a mesh divides.

    Args:
      maps: the maps, all with biases or none.
    """
    join = partial(
      lazy.joined, count=mesh_lib.parts(self.mesh), dtype=self.dtype
    )
    W = mesh_lib.place(join([map.W for map in maps]), self.mesh, 1)
    biases = [map.b for map in maps if map.b is not None]
    if not biases:
      return Joint(W, None)
    return Joint(W, mesh_lib.place(join(biases), self.mesh, 0))

  def norm(self, name: str, d: int) -> Norm:
    """Reads a PyTorch LayerNorm.

    Args:
      name: name of the module.
      d: width.
    """
    return Norm(self.take(f"{name}.weight", d), self.take(f"{name}.bias", d))

  def refuse_unread(self) -> None:
    """Checks that every tensor of the parts that were read was read.

    Buffers are left out, and parts that the model has beside the ones that were
    read, such as heads of tasks.

    Raises:
      InputError: the weights have tensors that the settings do not provide for,
        such as a bias or a further layer; names them.
    """
    part = lambda key: key.removeprefix(self._prefix).split(".")[0]
    parts = {part(key) for key in self._read}
    extra = sorted(
      key
      for key in self._sources.keys() - self._read
      if part(key) in parts and not BUFFER.search(key)
    )
    if extra:
      more = f", nor {len(extra) - 3} more" if len(extra) > 3 else ""
      raise errors.InputError(
        hub.FIELD,
        self.folder,
        f"the weights must not have {', '.join(extra[:3])}{more}, for which "
        "config.json has no place",
        "use the config.json and the weights of one model",
      )

  def _missing(self, key: str) -> errors.InputError:
    return errors.InputError(
      hub.FIELD,
      self.folder,
      f"the weights must have {key}",
      "use a complete checkpoint of the family in config.json",
    )


def head(
  w: Weights, config: Any, names: tuple[str, ...] = ("lm_head.weight",)
) -> dict[str, Array]:
  """Reads the language head, where it is not the token table.

  A base model or a classifier may lack it.

  Args:
    w: the tensors of the checkpoint.
    config: settings with `tied`, `has_head`, `vocabulary` and `d`.
    names: names that checkpoints give it.

  Returns:
    {"head": weights [V, d]}, or nothing.

  Raises:
    InputError: the language model of config.json lacks it, or it has another
      shape or type.
  """
  stored = [name for name in names if w.holds(name)]
  if config.tied or not (stored or config.has_head):
    return {}
  name = (*stored, *names)[0]
  sizes = config.vocabulary, config.d
  return {"head": w.take(name, *sizes, split=0, absolute=True)}


@contextlib.contextmanager
def open_path(
  path: pathlib.Path, dtype: jnp.dtype, mesh: Mesh | None = None
) -> Iterator[Weights]:
  """Opens the tensors of a checkpoint.

  Args:
    path: path of the checkpoint, see `checkpoint.at`.
    dtype: dtype that tensors are converted to.
    mesh: devices that they are placed on, or None for the default one.

  Yields:
    The tensors.

  Raises:
    InputError: there are no weights, a shard is missing or a file is corrupt.
  """
  with checkpoint.at(path).tensors() as sources:
    yield Weights(path, sources, dtype, mesh)
