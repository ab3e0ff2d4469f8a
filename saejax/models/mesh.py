"""Devices of a subject model: a mesh of data and model axes.

The rows of a batch are divided over `data`, and over `model` the heads of
attention, the hidden layer of the MLP and, where the axis divides it, the
vocabulary. Norms, positions and biases of outputs are on every device. A layer
then has two sums over the devices of the `model` axis, one of the output of
attention and one of that of the MLP.

References:
  Shoeybi et al., Megatron-LM, 2019, arXiv:1909.08053.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from saejax import errors
from saejax.models import lazy

FIELD = "harvest.mesh"
AXES = DATA, MODEL = ("data", "model")
T = TypeVar("T")


def make(shape: Sequence[int], *, first: int = 0) -> Mesh:
  """Creates a mesh of (data, model) devices of this process.

  Args:
    shape: sizes of the axes.
    first: number of the first device.

  Raises:
    InputError: the shape is not two sizes, or there are fewer devices.
  """
  devices = jax.local_devices()
  if len(shape) != len(AXES) or min(shape) < 1:
    raise errors.InputError(
      FIELD,
      tuple(shape),
      "must be two sizes of at least 1: data, model",
      "use 1,1 for one device",
    )
  count = shape[0] * shape[1]
  if not 0 <= first <= len(devices) - count:
    raise errors.InputError(
      FIELD,
      tuple(shape),
      f"needs {count} devices from number {first}, but this process has "
      f"{len(devices)}",
      "lower a size, or harvest.first_device",
    )
  return jax.make_mesh(
    tuple(shape),
    AXES,
    devices=devices[first : first + count],
    axis_types=(AxisType.Auto,) * len(AXES),
  )


def check(mesh: Mesh, config: Any) -> None:
  """Checks that the model axis divides the sizes of a model.

  Args:
    mesh: a mesh with the axes `AXES`.
    config: settings of the model's family.

  Raises:
    InputError: the mesh has other axes, or does not divide a size; names it.
  """
  if mesh.axis_names != AXES:
    raise errors.InputError(
      FIELD,
      mesh.axis_names,
      f"must have the axes {', '.join(AXES)}",
      "make it with models.mesh.make",
    )
  parts = mesh.shape[MODEL]
  for what, size in (
    ("heads", config.heads),
    ("heads of keys and values", config.key_heads),
    ("entries of the MLP's hidden layer", config.d_mlp),
  ):
    if size % parts:
      raise errors.InputError(
        FIELD,
        tuple(mesh.shape.values()),
        f"the {parts} devices of the model axis must divide the {size} {what}",
        "lower the model axis to a divisor; the data axis may be of any size",
      )


def parts(mesh: Mesh | None) -> int:
  """Returns the number of devices that weights are divided over.

  Args:
    mesh: the mesh, or None for the default device.
  """
  return 1 if mesh is None else mesh.shape[MODEL]


def replicas(mesh: Mesh | None) -> int:
  """Returns the number of devices that rows are divided over.

  Args:
    mesh: the mesh, or None for the default device.
  """
  return 1 if mesh is None else mesh.shape[DATA]


def place(array: lazy.Lazy, mesh: Mesh | None, split: int | None) -> Array:
  """Reads an array onto devices, each part once and one after the other.

  Host memory holds the part of one device at a time.

  Args:
    array: the array.
    mesh: the mesh, or None for the default device.
    split: axis that is divided over the model axis where that divides it, or
      None for an array that is on every device.
  """
  if mesh is None:
    return jax.device_put(
      np.ascontiguousarray(array.read(lazy.whole(array.shape)))
    )
  axes: list[str | None] = [None] * len(array.shape)
  if split is not None and array.shape[split] % parts(mesh) == 0:
    axes[split] = MODEL
  sharding = NamedSharding(mesh, P(*axes))
  devices: dict[tuple, list] = {}
  for device, index in sharding.addressable_devices_indices_map(
    array.shape
  ).items():
    bounds = zip(index or (), array.shape, strict=True)
    key = tuple(one.indices(size)[:2] for one, size in bounds)
    devices.setdefault(key, []).append(device)
  shards = []
  for key, own in devices.items():
    part = np.ascontiguousarray(array.read(tuple(slice(*b) for b in key)))
    shards += jax.block_until_ready([jax.device_put(part, d) for d in own])
    del part
  return jax.make_array_from_single_device_arrays(array.shape, sharding, shards)


def put(tree: T, mesh: Mesh | None) -> T:
  """Copies arrays to every device, such as an SAE whose latents an edit reads.

  Args:
    tree: the arrays.
    mesh: the mesh, or None for the default device.
  """
  return (
    tree if mesh is None else jax.device_put(tree, NamedSharding(mesh, P()))
  )


def settled(tree: T, mesh: Mesh | None) -> T:
  """Waits for results on a mesh of CPU devices.

  Their collectives need a thread each, which two programs at once may exhaust.

  Args:
    tree: the results.
    mesh: the mesh, or None for the default device.
  """
  cpu = mesh is not None and mesh.devices.flat[0].platform == "cpu"
  return jax.block_until_ready(tree) if cpu else tree


def rows(mesh: Mesh | None, x: Array) -> Array:
  """Divides rows over the data axis, where it divides their number.

  Args:
    mesh: the mesh, or None for the default device.
    x: rows [B, ...]; may be traced.
  """
  if mesh is None or x.shape[0] % mesh.shape[DATA]:
    return x
  return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(DATA)))


def by_row(function: Callable[[T], Any], tree: T, mesh: Mesh | None) -> Any:
  """Maps a function over rows, one per device of the data axis at a time.

  Args:
    function: of the leaves of one row.
    tree: arrays [B, ...]; may be traced.
    mesh: the mesh, or None for the default device.
  """
  many = replicas(mesh)
  if many == 1 or jax.tree.leaves(tree)[0].shape[0] % many:
    return jax.lax.map(function, tree)
  # Row r is on device r // (B / many): a step takes one row of each device.
  split = lambda a: a.reshape(many, -1, *a.shape[1:]).swapaxes(0, 1)
  joined = lambda a: a.swapaxes(0, 1).reshape(-1, *a.shape[2:])
  found = jax.lax.map(jax.vmap(function), jax.tree.map(split, tree))
  return jax.tree.map(joined, found)
