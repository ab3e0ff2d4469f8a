"""Reads and checks the tensors of a checkpoint by name."""

import collections.abc
import contextlib
import pathlib
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from saejax import errors
from saejax.models import checkpoint, hub

# Tensors that some checkpoints have beside their weights.
BUFFER = re.compile(
  r"(^|\.)(position_ids|(attn|attention)\.(masked_)?bias|rotary_emb\.inv_freq)$"
)


class Linear(NamedTuple):
  """An affine map x W + b with W [in, out]; b is None for a linear map."""

  W: Float[Array, "i o"]
  b: Float[Array, "o"] | None


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

  Attributes:
    folder: folder or file of the model.
    dtype: dtype of the tensors.
  """

  def __init__(self, folder: pathlib.Path, sources: dict, dtype: jnp.dtype):
    self.folder = folder
    self.dtype = dtype
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

  def host(self, name: str, *shape: int, absolute: bool = False) -> np.ndarray:
    """Reads a tensor into host memory.

    Args:
      name: name of the tensor.
      *shape: its required shape.
      absolute: whether the name includes the prefix.

    Raises:
      InputError: the tensor is missing, unreadable, of another shape or type,
        or has an entry that is not finite in the model's dtype.
    """
    key = name if absolute else self._prefix + name
    self._read.add(key)
    if key not in self._sources:
      raise self._missing(key)
    handle, stored = self._sources[key]
    try:
      tensor = handle.get_tensor(stored)
    except Exception as error:  # safetensors raises several types
      raise hub.unreadable(self.folder, error) from error
    if tensor.shape != shape:
      raise errors.InputError(
        hub.FIELD,
        self.folder,
        f"{key} must have shape {list(shape)}, has {list(tensor.shape)}",
        "use the config.json and the weights of one model",
      )
    if not jnp.issubdtype(tensor.dtype, jnp.floating):
      raise errors.InputError(
        hub.FIELD,
        self.folder,
        f"{key} must be floating point, is {tensor.dtype}",
        "use an unquantised model",
      )
    with np.errstate(over="ignore"):  # refused here
      tensor = tensor.astype(self.dtype, copy=False)
    finite = int(np.isfinite(tensor).sum())
    if finite < tensor.size:
      raise errors.InputError(
        hub.FIELD,
        self.folder,
        f"{key} must be finite in {self.dtype}; {tensor.size - finite} of "
        f"{tensor.size} entries are NaN or infinite",
        "use a checkpoint that was saved before training diverged",
      )
    return tensor

  def put(self, tensor: np.ndarray) -> Array:
    """Copies a host tensor to the device.

    Args:
      tensor: the tensor.
    """
    return jax.device_put(np.ascontiguousarray(tensor))

  def take(self, name: str, *shape: int, absolute: bool = False) -> Array:
    """Reads a tensor onto the device, see `host`.

    Args:
      name: name of the tensor.
      *shape: its required shape.
      absolute: whether the name includes the prefix.
    """
    return self.put(self.host(name, *shape, absolute=absolute))

  def linear(
    self, *names: str, i: int, o: int | tuple[int, ...], bias: bool = True
  ) -> Linear:
    """Reads PyTorch Linear layers ([out, in]) of one input as one map.

    Args:
      *names: names of the modules, whose outputs are concatenated.
      i: input width.
      o: output width, for all modules or per module.
      bias: whether the modules have biases.
    """
    widths = o if isinstance(o, tuple) else (o,) * len(names)
    pairs = list(zip(names, widths, strict=True))
    W = np.concatenate([self.host(f"{n}.weight", w, i) for n, w in pairs])
    if not bias:
      return Linear(self.put(W.T), None)
    b = np.concatenate([self.host(f"{n}.bias", w) for n, w in pairs])
    return Linear(self.put(W.T), self.put(b))

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
  return {"head": w.take(name, config.vocabulary, config.d, absolute=True)}


@contextlib.contextmanager
def open_path(
  path: pathlib.Path, dtype: jnp.dtype
) -> collections.abc.Iterator[Weights]:
  """Opens the tensors of a checkpoint.

  Args:
    path: path of the checkpoint, see `checkpoint.at`.
    dtype: dtype that tensors are converted to.

  Yields:
    The tensors.

  Raises:
    InputError: there are no weights, a shard is missing or a file is corrupt.
  """
  with checkpoint.at(path).tensors() as sources:
    yield Weights(path, sources, dtype)
