"""Where arrays lie on a mesh: the one table from fields to axes.

Mesh axes: `ensemble` (members of a run), `data` (rows of a batch), `latent`
(latents of an SAE). Row i of every array about latents is latent i, so that
sharding `latent` is slicing rows.
"""

from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from saejax.errors import InputError

AXES = ("ensemble", "data", "latent")

# Field paths end with one of these; what no line names is replicated. The
# optimizer's moments end with the paths of the weights they belong to.
RULES: tuple[tuple[str, P], ...] = (
  ("encoder.W", P("latent", None)),
  ("encoder.b", P("latent")),
  ("encoder.b_gate", P("latent")),
  ("encoder.b_mag", P("latent")),
  ("encoder.r_mag", P("latent")),
  ("activation.theta", P("latent")),
  ("decoder.W", P("latent", None)),
  ("encoder.P", P("latent", None, None)),
  ("encoder.Q", P("latent", None, None)),
  ("encoder.b_P", P("latent", None)),
  ("encoder.b_Q", P("latent", None)),
  ("encoder.W_var", P("latent", None)),
  ("encoder.b_var", P("latent")),
  ("decoder.a", P("latent")),
  ("activation.b", P("latent")),
  ("decoder.A", P("latent", None)),
  ("decoder.relaxation", P("latent", None)),
  ("tokens_since_fired", P("latent")),
  ("latent_energy", P("latent")),
  ("tokens_underused", P("latent")),
  ("threshold", P("latent")),
  ("density", P("latent")),
  ("rank", P("latent")),
  ("gates_open", P("latent")),
  ("largest_gate", P("latent")),
  ("mask_probability", P("latent")),
  ("importance_size", P("latent")),
  ("importance_rate", P("latent")),
  ("importance_need", P("latent")),
)


def make_mesh(shape: tuple[int, int, int], devices=None) -> Mesh:
  """A mesh of (ensemble, data, latent) devices.

  Raises:
    InputError: the shape is not three sizes that fit the devices there are.
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
  if count > len(devices):
    raise InputError(
      "train.mesh",
      shape,
      f"needs {count} devices and {len(devices)} are there",
      "lower a size",
    )
  return jax.make_mesh(
    shape, AXES, devices=devices[:count], axis_types=(AxisType.Auto,) * 3
  )


def check(mesh: Mesh, *, n: int, batch_rows: int, members: int) -> None:
  """Refuses sizes that the mesh does not divide.

  Raises:
    InputError: naming the size and the axis.
  """
  for field, value, axis in (
    ("sae.n", n, "latent"),
    ("train.batch_rows", batch_rows, "data"),
    ("train.mesh", members, "ensemble"),
  ):
    size = mesh.shape[axis]
    if value % size:
      what = "members" if axis == "ensemble" else field
      raise InputError(
        field,
        value,
        f"{what} must divide by the {size} devices of the {axis} axis",
        f"change it, or --train.mesh={','.join(map(str, mesh.shape.values()))}",
      )


def state_shardings(mesh: Mesh, state: Any, *, stacked: bool) -> Any:
  """The sharding of every leaf of a state, by the table above.

  Args:
    mesh: where it lies.
    state: pytree of arrays or shapes.
    stacked: whether every leaf has a leading axis of members.

  Raises:
    InputError: devices do not divide a leaf, which is named.
  """

  def sharding(path, leaf):
    name = _name(path)
    spec = _spec(name, len(leaf.shape) - stacked)
    if stacked:
      spec = P("ensemble", *spec)
    for size, axis in zip(leaf.shape, spec, strict=False):
      if axis and size % mesh.shape[axis]:
        raise InputError(
          "train.mesh",
          tuple(mesh.shape.values()),
          f"{name} of shape {leaf.shape} must divide by the "
          f"{mesh.shape[axis]} devices of the {axis} axis along its size {size}",
          f"change that size, or lower the {axis} axis",
        )
    return NamedSharding(mesh, spec)

  return jax.tree_util.tree_map_with_path(sharding, state)


def per_latent(path, leaf: Any) -> bool:
  """Whether the table says that rows of a member's leaf are latents."""
  return _spec(_name(path), len(leaf.shape))[:1] == ("latent",)


def _name(path) -> str:
  return jax.tree_util.keystr(path, simple=True, separator=".")


def _spec(name: str, axes: int) -> P:
  """The table's line for a leaf with that many axes beside members."""
  spec = next((s for end, s in RULES if name.endswith(end)), P())
  return P() if len(spec) > axes else spec  # one number for all latents


def rows_sharding(mesh: Mesh) -> NamedSharding:
  """The sharding of a batch [B, d]."""
  return NamedSharding(mesh, P("data"))
