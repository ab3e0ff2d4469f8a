"""Tensors of a safetensors model folder, by name, checked as they are read."""

import collections.abc
import contextlib
import pathlib
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from jaxtyping import Array, Float

from saejax import errors
from saejax.models import hub


class Linear(NamedTuple):
  """An affine map x W + b, stored [in, out]; b is None where there is none."""

  W: Float[Array, "i o"]
  b: Float[Array, "o"] | None


class Norm(NamedTuple):
  """What a layer norm multiplies by and adds."""

  gain: Float[Array, "d"]
  bias: Float[Array, "d"]


class Weights:
  """The tensors of one folder; `prefix` is put before every name asked for.

  Attributes:
    folder: what the tensors were read from, for messages.
    dtype: what they are converted to.
  """

  def __init__(self, folder: pathlib.Path, sources: dict, dtype: jnp.dtype):
    self.folder = folder
    self.dtype = dtype
    self._sources = sources
    self._prefix = ""

  def strip_prefix(self, anchor: str, *prefixes: str) -> None:
    """Finds which prefix the checkpoint uses from the key `anchor`.

    The same model is saved with and without the name of its base model.
    """
    found = [p for p in prefixes if p + anchor in self._sources]
    if not found:
      names = " or ".join(p + anchor for p in prefixes)
      raise self._missing(names)
    self._prefix = found[0]

  def holds(self, key: str) -> bool:
    """Whether there is a tensor of this name, prefix included."""
    return key in self._sources

  def host(self, name: str, *shape: int, absolute: bool = False) -> np.ndarray:
    """The tensor `name` in host memory, of exactly this shape.

    Raises:
      InputError: missing, unreadable, of another shape or type, or with an
        entry that is not finite in the model's dtype.
    """
    key = name if absolute else self._prefix + name
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
        f"{key} must be finite in {self.dtype}, and {tensor.size - finite} of "
        f"its {tensor.size} entries are NaN or infinite",
        "use a checkpoint that was saved before training diverged",
      )
    return tensor

  def put(self, tensor: np.ndarray) -> Array:
    """A host tensor on the device."""
    return jax.device_put(np.ascontiguousarray(tensor))

  def take(self, name: str, *shape: int, absolute: bool = False) -> Array:
    """The tensor `name` on the device."""
    return self.put(self.host(name, *shape, absolute=absolute))

  def linear(
    self, *names: str, i: int, o: int | tuple[int, ...], bias: bool = True
  ) -> Linear:
    """torch Linear layers ([out, in]) of one input, side by side as one map.

    Args:
      names: their modules.
      i: input width.
      o: output width, of all or of each.
      bias: whether they have one.
    """
    widths = o if isinstance(o, tuple) else (o,) * len(names)
    pairs = list(zip(names, widths, strict=True))
    W = np.concatenate([self.host(f"{n}.weight", w, i) for n, w in pairs])
    if not bias:
      return Linear(self.put(W.T), None)
    b = np.concatenate([self.host(f"{n}.bias", w) for n, w in pairs])
    return Linear(self.put(W.T), self.put(b))

  def norm(self, name: str, d: int) -> Norm:
    """A torch LayerNorm."""
    return Norm(self.take(f"{name}.weight", d), self.take(f"{name}.bias", d))

  def _missing(self, key: str) -> errors.InputError:
    return errors.InputError(
      hub.FIELD,
      self.folder,
      f"the weights must hold {key}, not found",
      "use a complete checkpoint of the family in config.json",
    )


@contextlib.contextmanager
def open_folder(
  folder: pathlib.Path, dtype: jnp.dtype
) -> collections.abc.Iterator[Weights]:
  """Opens a folder's safetensors, one file or all shards of its index.

  Raises:
    InputError: no such files, a shard missing, a file corrupt.
  """
  sources = {}
  with contextlib.ExitStack() as stack:
    for file in hub.weight_files(folder):
      try:
        handle = stack.enter_context(
          safetensors.safe_open(file, framework="numpy")
        )
        keys = handle.keys()
        sources |= {_modern(key): (handle, key) for key in keys}
      except Exception as error:  # safetensors raises several types
        raise hub.unreadable(file, error) from error
    yield Weights(folder, sources, dtype)


def _modern(key: str) -> str:
  # The first BERT checkpoints name the parameters of LayerNorm this way.
  key = re.sub(r"\bLayerNorm\.gamma$", "LayerNorm.weight", key)
  return re.sub(r"\bLayerNorm\.beta$", "LayerNorm.bias", key)
