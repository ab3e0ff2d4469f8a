"""Shardings of states and batches on a device mesh.

Mesh axes: `ensemble` (members of a run), `data` (rows of a batch), `latent`
(latents of an SAE). Arrays with one row per latent are sharded over `latent` by
rows. Which arrays these are is defined by the axes that fields and rules name
(`saejax.sae.part`, `training.state.axes`). With `--train.shard_optimizer` the
optimizer's arrays and the weight EMA of these rows are sharded over `data` too.
"""

import math
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from saejax import processes
from saejax.errors import InputError
from saejax.kernels import mesh as meshes
from saejax.sae import axes as sae_axes
from saejax.sae.axes import HEAD, LATENT, STAGE, Axes
from saejax.sae.sae import SAE
from saejax.training import state as states

PyTree = Any
AXES = ("ensemble", "data", "latent")


def make_mesh(
  shape: tuple[int, int, int], devices=None, *, first: int = 0
) -> Mesh:
  """Creates a mesh of (ensemble, data, latent) devices.

  Args:
    shape: sizes of the axes.
    devices: the devices; all by default.
    first: place of the first one that is used.

  Raises:
    InputError: the shape is not three sizes whose product fits the devices from
      the first one on, or leaves some of several processes idle.
  """
  devices = jax.devices() if devices is None else devices
  if len(shape) != 3 or any(size < 1 for size in shape):
    raise InputError(
      "train.mesh",
      shape,
      "must be three sizes of at least 1: ensemble, data, latent",
      "use 1,1,1 for one device",
    )
  count = shape[0] * shape[1] * shape[2]
  if count + first > len(devices):
    after = f" from device {first} on" if first else ""
    raise InputError(
      "train.mesh",
      shape,
      f"needs {count} devices{after}, but {len(devices)} are available",
      "lower train.first_device, or a size" if first else _fewer(devices),
    )
  if jax.process_count() > 1 and count != len(devices):
    raise InputError(
      "train.mesh",
      shape,
      f"must have all {len(devices)} devices of the {jax.process_count()} "
      f"processes, and has {count}",
      f"use --train.mesh=1,{len(devices)},1, or another product",
    )
  return jax.make_mesh(
    shape,
    AXES,
    devices=devices[first : first + count],
    axis_types=(AxisType.Auto,) * 3,
  )


def _fewer(devices) -> str:
  """The remedy where a mesh needs more devices than there are."""
  text = f"lower a size, such as --train.mesh=1,{len(devices)},1"
  if devices[0].platform != "cpu":
    return text
  flag = "XLA_FLAGS=--xla_force_host_platform_device_count"
  return f"{text}; {flag} sets the number of CPU devices"


def check(
  mesh: Mesh, *, n: int, batch_rows: int, members: int, accumulate: int = 1
) -> None:
  """Checks that the mesh divides the sizes of a run.

  Args:
    mesh: the mesh.
    n: number of latents.
    batch_rows: rows per batch.
    members: number of members.
    accumulate: parts that a batch is computed in.

  Raises:
    InputError: it does not divide one, with the size and the axis.
  """
  given = ",".join(map(str, mesh.shape.values()))
  part = accumulate * mesh.shape["data"]
  if accumulate > 1 and batch_rows % part:
    raise InputError(
      "train.batch_rows",
      batch_rows,
      f"must divide by {part}: train.accumulate={accumulate} parts over "
      f"{mesh.shape['data']} devices of the data axis",
      f"use a multiple of {part}",
    )
  for field, value, axis in (
    ("sae.n", n, "latent"),
    ("train.batch_rows", batch_rows, "data"),
  ):
    size = mesh.shape[axis]
    if value % size:
      raise InputError(
        field,
        value,
        f"must divide by the {size} devices of the {axis} axis",
        f"use a multiple of {size}, or another mesh than --train.mesh={given}",
      )
  size = mesh.shape["ensemble"]
  if members % size:
    raise InputError(
      "train.mesh",
      given,
      f"the number of SAEs, {members}, must divide by the {size} devices of the "
      "ensemble axis",
      f"train a multiple of {size} SAEs, or put the devices on another axis",
    )


def state_shardings(
  mesh: Mesh,
  state: states.TrainState,
  *,
  stacked: bool,
  shard_optimizer: bool = False,
) -> states.TrainState:
  """The sharding of every leaf of a state, derived from its axes.

  Args:
    mesh: the device mesh.
    state: arrays or shapes.
    stacked: whether every leaf has a leading axis of members.
    shard_optimizer: whether the optimizer's arrays and the weight EMA are also
      divided over `data`, where their rows allow it.

  Raises:
    InputError: a mesh axis does not divide a leaf; the message names it.
  """
  kept = ("opt_state", "ema") if shard_optimizer else ()

  def sharding(path, leaf, names):
    spec = _spec(names)
    if path[0].name in kept:
      spec = _over_data(spec, leaf.shape[stacked:], dict(mesh.shape))
    if stacked:
      spec = P("ensemble", *spec)
    for size, axis in zip(leaf.shape, spec, strict=False):
      if isinstance(axis, str) and size % mesh.shape[axis]:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        most = math.gcd(size, mesh.shape[axis])
        raise InputError(
          "train.mesh",
          ",".join(map(str, mesh.shape.values())),
          f"{name} of shape {leaf.shape} must divide by the "
          f"{mesh.shape[axis]} devices of the {axis} axis along its size {size}",
          f"change that size, or use {most} devices on the {axis} axis",
        )
    return NamedSharding(mesh, spec)

  return jax.tree_util.tree_map_with_path(
    sharding, state, states.axes(state, stacked=stacked)
  )


def _spec(names: Axes | None) -> P:
  """Shards arrays with one row per latent along their first axis."""
  if not names or names[0] not in (LATENT, HEAD, STAGE):
    return P()
  return P("latent", *(None,) * (len(names) - 1))


def _over_data(spec: P, shape: tuple[int, ...], sizes: dict[str, int]) -> P:
  """A spec whose rows of latents lie on `data` too, if they can be divided."""
  if spec[:1] != ("latent",) or shape[0] % (sizes["latent"] * sizes["data"]):
    return spec
  return P(("latent", "data"), *spec[1:])


def over_data(sae: SAE) -> SAE:
  """Places gradients or weights as the optimizer's arrays: each row once.

  Gradients are then summed where they are needed, by a reduce-scatter, and only
  the new weights are gathered (ZeRO). Without a mesh of several `data` devices
  they stay as they are. Inside `jit`, for one member.

  Args:
    sae: an SAE, or gradients of one.

  References:
    Rajbhandari et al., ZeRO: Memory Optimizations Toward Training Trillion
    Parameter Models, 2020, arXiv:1910.02054.
  """
  sizes = {axis: meshes.size(axis) for axis in AXES}
  if sizes["data"] == 1:
    return sae

  def place(leaf, names):
    spec = _over_data(_spec(names), leaf.shape, sizes)
    return jax.lax.with_sharding_constraint(leaf, spec)

  return jax.tree.map(place, sae, sae_axes.axes(sae))


def rows_sharding(mesh: Mesh, *, sited: bool = False) -> NamedSharding:
  """The sharding of a batch [B, d], or of several sites [s, B, d].

  Args:
    mesh: the mesh.
    sited: whether there are several sites.
  """
  return NamedSharding(mesh, P(None, "data") if sited else P("data"))


def put(
  mesh: Mesh, batch: PyTree, parts: int = 1, *, sited: bool = False
) -> PyTree:
  """Places a batch on the devices; returns before it is there.

  Args:
    mesh: the mesh.
    batch: arrays [rows, ...] of the host.
    parts: parts that the batch is split into; the arrays are the part of this
      process, see `rows_part`.
    sited: whether arrays have a leading axis of sites before that of rows.

  Raises:
    InputError: the data axis does not divide the rows.
  """
  where = rows_sharding(mesh, sited=sited)
  _check_rows(mesh, batch, parts, int(sited))
  if parts == 1 and where.is_fully_addressable:
    return jax.device_put(batch, where)

  def of_process(part):
    if parts == 1:  # the whole batch, of which each device takes its rows
      part = np.asarray(part)
      return jax.make_array_from_callback(part.shape, where, part.__getitem__)
    shape = list(part.shape)
    shape[int(sited)] *= parts
    return jax.make_array_from_process_local_data(where, part, tuple(shape))

  return jax.tree.map(of_process, batch)


def _check_rows(mesh: Mesh, batch: PyTree, parts: int, axis: int) -> None:
  """Checks that the data axis divides the rows of a batch's arrays."""
  size = mesh.shape["data"]
  for rows in {part.shape[axis] * parts for part in jax.tree.leaves(batch)}:
    if rows % size:
      raise InputError(
        "batch",
        rows,
        f"the number of rows (or pairs of rows) must divide by the {size} "
        "devices of the data axis",
        f"use batches of a multiple of {size}, or another mesh than "
        f"--train.mesh={','.join(map(str, mesh.shape.values()))}",
      )


def rows_part(mesh: Mesh, batch_rows: int) -> dict[str, int]:
  """Returns which part of each batch this process needs on its devices.

  Args:
    mesh: the mesh.
    batch_rows: rows per batch.

  Returns:
    process_index and process_count of `loader.batches`: 0 of 1 where the rows
    of the process are not one of equal consecutive parts.
  """
  here = rows_sharding(mesh).addressable_devices_indices_map((batch_rows,))
  held = [index[0].indices(batch_rows)[:2] for index in here.values() if index]
  first = min((a for a, _ in held), default=0)
  stop = max((b for _, b in held), default=batch_rows)
  size = stop - first
  whole = sum(b - a for a, b in set(held)) != size
  if whole or batch_rows % size or first % size:
    return {"process_index": 0, "process_count": 1}
  return {"process_index": first // size, "process_count": batch_rows // size}


def place(tree: PyTree, where: PyTree) -> PyTree:
  """Places arrays that are equal in all processes.

  Args:
    tree: arrays on the default device.
    where: the sharding of each.
  """
  if all(s.is_fully_addressable for s in jax.tree.leaves(where)):
    return jax.device_put(tree, where)
  return jax.jit(lambda tree: tree, out_shardings=where)(tree)


def whole(tree: PyTree) -> PyTree:
  """States that lie on the devices of several processes, in this one.

  They lack the optimizer's arrays. One process keeps its states as they are.

  Args:
    tree: pytree of `TrainState`.
  """
  if jax.process_count() == 1:
    return tree
  return processes.local(
    jax.tree.map(
      lambda state: state.replace(opt_state=()),
      tree,
      is_leaf=lambda node: isinstance(node, states.TrainState),
    )
  )
