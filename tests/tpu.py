"""Compiles for TPUs on a machine without one, by libtpu alone."""

import contextlib
import importlib.util
import os
import unittest

import jax
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from saejax.plans import topologies as plan_topologies

# One topology of each kind of chip that kernels are compiled for.
CHIPS = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}


def topology(chip: str):
  """The topology of a kind of chip; skips the test where libtpu is absent."""
  if importlib.util.find_spec("libtpu") is None:
    raise unittest.SkipTest("libtpu is not installed (extra 'aot', make aot)")
  for name, value in plan_topologies.TPU_ENVIRONMENT.items():
    os.environ.setdefault(name, value)
  return topologies.get_topology_desc(CHIPS[chip], platform="tpu")


def compiled(chip: str, f, *args: jax.ShapeDtypeStruct, donated=()):
  """f compiled for one chip of that kind; some arguments may be donated."""
  devices = topology(chip).devices
  mesh = jax.sharding.Mesh(devices, ("chip",))
  where = SingleDeviceSharding(devices[0])
  args = tuple(
    jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=where) for a in args
  )
  # Without a mesh, kernels that ask for the kind of chip find the CPU.
  with contextlib.ExitStack() as stack:
    stack.enter_context(jax.sharding.use_abstract_mesh(mesh.abstract_mesh))
    return jax.jit(f, donate_argnums=donated).lower(*args).compile()
