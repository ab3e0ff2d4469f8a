"""Devices to plan for, by name: TPU slices, GPUs of a machine, or those here.

TPU programs are compiled by libtpu (extra `aot`), GPU programs by the CUDA plugin
and `ptxas`; neither needs the hardware.
"""

import dataclasses
import importlib.util
import os
import re
import time
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from saejax.errors import InputError
from saejax.plans import chips
from saejax.runs import preflight

LOCAL = "local"
# Without them libtpu looks for the chips' own metadata server, or for a lock.
TPU_ENVIRONMENT = {
  "TPU_SKIP_MDS_QUERY": "1",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  "TPU_ACCELERATOR_TYPE": "v5litepod-4",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_WORKER_ID": "0",
}
H200_TARGET = f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 4800000000000
  l2_cache_size: 62914560
  clock_rate_ghz: 1.98
  device_memory_size: {chips.H200.memory}
  cuda_compute_capability {{ major: 9 }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 12 minor: 8 }}
device_description_str: "NVIDIA H200"
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Topology:
  """Devices that a step is compiled for.

  Attributes:
    name: as it was given.
    chip: what the devices are.
    devices: the devices, in JAX's order.
  """

  name: str
  chip: chips.Chip
  devices: tuple[Any, ...]


def find(name: str, field: str = "topology") -> Topology:
  """The devices of a name.

  Args:
    name: "local", a TPU slice such as "v5e:16x16", or GPUs such as "gpu:h200x8".
    field: the setting that errors name.

  Raises:
    InputError: the name is unknown, there is no such slice, or the compiler for
      it is not installed.
  """
  if name == LOCAL:
    return _local()
  if found := re.fullmatch(r"gpu:h200x(\d+)", name):
    return _gpus(name, int(found[1]), field)
  found = re.fullmatch(r"(\w+)[:-]([\dx]+)", name)
  if not found or found[1] not in chips.TPUS:
    known = ", ".join(f"{n}:{c.slices[3]}" for n, c in chips.TPUS.items())
    raise InputError(
      field,
      name,
      "must be local, a TPU slice or GPUs",
      f"write it like {known} or gpu:h200x8",
    )
  chip, shape = chips.TPUS[found[1]], found[2]
  chips.check_slice(chip, shape, field, name)
  if importlib.util.find_spec("libtpu") is None:
    raise InputError(
      field,
      name,
      "is compiled for by libtpu, which is not installed",
      'pip install "saejax[aot]" in an environment of its own',
    )
  os.environ.update({**TPU_ENVIRONMENT, **os.environ})
  one = {"chips_per_host_bounds": (1, 1, 1)} if shape == "1x1" else {}
  described = topologies.get_topology_desc(
    f"{chip.name}:{shape}", platform="tpu", **one
  )
  return Topology(name=name, chip=chip, devices=tuple(described.devices))


def _gpus(name: str, count: int, field: str) -> Topology:
  if count not in (1, 2, 4, 8):
    rule = "must be 1, 2, 4 or 8 GPUs of one machine"
    raise InputError(field, name, rule, "use gpu:h200x8")
  if importlib.util.find_spec("jax_cuda12_plugin") is None:
    raise InputError(
      field,
      name,
      "is compiled for by JAX's CUDA plugin, which is not installed",
      "run make aot-gpu, and this with .venv-aot-gpu/bin/python",
    )
  described = topologies.get_topology_desc(
    platform="cuda", target_config=H200_TARGET, topology=f"1x1x{count}"
  )
  return Topology(name=name, chip=chips.H200, devices=tuple(described.devices))


def _local() -> Topology:
  """The devices of this process, their rates measured by a matmul and a copy."""
  devices = tuple(jax.devices())
  total = preflight.memory()
  chip = chips.Chip(
    name=devices[0].device_kind,
    flops=_rate(lambda a: a @ a, 1024, 2 * 1024**3),
    bandwidth=_rate(lambda a: a + 1, 4096, 2 * 4 * 4096**2),
    memory=total // len(devices),
    link=float("inf"),
  )
  return Topology(name=LOCAL, chip=chip, devices=devices)


def _rate(f: Any, size: int, work: int) -> float:
  """Work per second of a function of [size, size] float32, the best of three."""
  a = jnp.ones((size, size))
  compiled = jax.jit(f)
  compiled(a).block_until_ready()
  best = float("inf")
  for _ in range(3):
    start = time.perf_counter()
    compiled(a).block_until_ready()
    best = min(best, time.perf_counter() - start)
  return work / best
