"""Plans a training step: compiles it for devices and says what it takes.

Nothing is estimated that the compiler knows: memory, collectives and operations
are read from the compiled program. Times are floors (`plans.floors`), never
measured. A mesh is found by ordering all factorisations by their floor, and
compiling from the best on until one fits.
"""

import dataclasses
import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from saejax.errors import InputError
from saejax.plans import floors, programs
from saejax.plans.topologies import Topology
from saejax.sae.context import Batch
from saejax.training import ahead, sharding
from saejax.training.recipe import Recipe
from saejax.training.step import init_state

Mesh = tuple[int, int, int]
# How compilers refuse a program that is too large.
_REFUSED = (
  re.compile(r"Used ([\d.]+)([KMGT]?) of "),
  re.compile(r"\(([\d.]+)([KMGT]?)\) exceeds available HBM"),
)
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
  """The step that is planned.

  Attributes:
    recipe: the recipe.
    batch: shapes of a batch, over all devices.
    members: SAEs that are trained on the stream.
    stacked: whether one vmapped program steps them all.
    engine, kernels, accumulate, shard_optimizer: as `--train.engine`, ... give
      them.
  """

  recipe: Recipe
  batch: Batch
  members: int = 1
  stacked: bool = False
  engine: str = "auto"
  kernels: Any = "auto"
  accumulate: int = 1
  shard_optimizer: bool = False

  @property
  def rows(self) -> int:
    """Rows of a batch."""
    return self.batch.x.shape[0]

  @property
  def sae(self) -> Any:
    """The SAE, with shapes in place of arrays."""
    return jax.eval_shape(
      lambda key: self.recipe.init(key, sample=None), jax.random.key(0)
    )

  @property
  def chosen_engine(self) -> str:
    """The engine of the step, "dense" or "sparse"."""
    return self.sae.engine(self.engine, train=True)


def meshes(step: Step, topology: Topology) -> Iterator[Mesh]:
  """The meshes that divide the sizes of a step, those of the least floor first.

  Args:
    step: the step.
    topology: the devices, all of which are used.
  """
  sae, count = step.sae, len(topology.devices)
  found = []
  for latent in range(1, count + 1):
    data = count // latent
    fits = count % latent == 0 and sae.n % latent == 0
    if fits and step.rows % (data * step.accumulate) == 0:
      given = {"rows": step.rows, "mesh": (data, latent)}
      given["engine"] = step.chosen_engine
      least = dataclasses.replace(
        floors.work(sae, **given),
        exchanged=floors.expected_exchange(sae, **given),
      )
      found.append((sum(least.seconds(topology.chip).values()), data, latent))
  for _, data, latent in sorted(found):
    yield 1, data, latent


def check_mesh(step: Step, topology: Topology, mesh: Mesh) -> None:
  """Refuses a mesh that cannot be.

  Args:
    step: the step.
    topology: the devices.
    mesh: sizes of ensemble, data and latent.

  Raises:
    InputError: it does not use all devices, or does not divide a size.
  """
  made = sharding.make_mesh(mesh, topology.devices)
  if math.prod(mesh) != len(topology.devices):
    raise InputError(
      "train.mesh",
      ",".join(map(str, mesh)),
      f"must use the {len(topology.devices)} devices of {topology.name}",
      "leave it out, and the best is searched",
    )
  sharding.check(
    made,
    n=step.sae.n,
    batch_rows=step.rows,
    members=step.members,
    accumulate=step.accumulate,
  )


def compiled(step: Step, topology: Topology, mesh: Mesh) -> dict[str, Any]:
  """Compiles a step for a mesh of a topology, and reads the program.

  Args:
    step: the step.
    topology: the devices.
    mesh: sizes of ensemble, data and latent.

  Returns:
    The record of `plan`, with "fits" and the bytes of a device; where the
    compiler refuses the program, these alone.
  """
  made = sharding.make_mesh(mesh, topology.devices)
  members = step.members if step.stacked else 0
  start = time.monotonic()
  lowered = ahead.lowered(
    step.recipe,
    step.batch,
    made,
    members=members,
    engine=step.engine,
    accumulate=step.accumulate,
    shard_optimizer=step.shard_optimizer,
    kernels=step.kernels,
  )
  limit = topology.chip.memory
  try:
    program = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    if (refused := _refusal(str(error))) is None:
      raise
    return {
      "mesh": mesh,
      "fits": False,
      "memory": {"total": refused},
      "largest": _largest(str(error)),
    }
  memory = _memory(step, program, made)
  return {
    "mesh": mesh,
    "fits": memory["total"] <= limit,
    "memory": {**memory, "limit": limit},
    **_counted(step, program, topology, mesh),
    "compile_seconds": round(time.monotonic() - start, 1),
  }


def _refusal(message: str) -> int | None:
  """Bytes that a program would take, from the compiler's refusal of it."""
  for pattern in _REFUSED:
    if found := pattern.search(message):
      return int(float(found[1]) * _UNITS[found[2]])
  return None


def _largest(message: str, most: int = 4) -> list[str]:
  """Size and shape of the largest buffers that a compiler's refusal names."""
  found = re.findall(r"Size: ([\d.]+\w?)\b.*?Shape: (\S+)", message, re.DOTALL)
  return [f"{size}: {shape}" for size, shape in found[:most]]


def _memory(step: Step, program: Any, mesh: Any) -> dict[str, int]:
  """Bytes on one device."""
  found = program.memory_analysis()
  # Members in turn: the states of the others lie beside the one that is stepped.
  others = 0
  if not step.stacked and step.members > 1:
    state = ahead.state_shapes(
      step.recipe, mesh, shard_optimizer=step.shard_optimizer
    )
    others = (step.members - 1) * sum(
      math.prod(a.sharding.shard_shape(a.shape)) * a.dtype.itemsize
      for a in jax.tree.leaves(state)
      if not jnp.issubdtype(a.dtype, jax.dtypes.prng_key)
    )
  parts = {
    "arguments": found.argument_size_in_bytes,
    "others": others,
    "outputs": found.output_size_in_bytes - found.alias_size_in_bytes,
    "temporaries": found.temp_size_in_bytes,
    "code": found.generated_code_size_in_bytes,
  }
  return {**parts, "total": sum(parts.values())}


def _counted(
  step: Step, program: Any, topology: Topology, mesh: Mesh
) -> dict[str, Any]:
  """Operations, bytes, collectives, and the floor of a step's time."""
  found = programs.collectives(program.as_text())
  exchanged = {
    name: _exchanged(programs.executed(found, aux))
    for name, aux in (("without_aux", False), ("with_aux", True))
  }
  per_device = step.members // mesh[0]
  update = floors.update_bytes(
    _state_bytes(step),
    accumulate=step.accumulate,
    shards=mesh[1] if step.shard_optimizer else 1,
  )
  given = {"rows": step.rows, "mesh": mesh[1:], "engine": step.chosen_engine}
  least = floors.work(step.sae, update=update, **given)
  times = 1 if step.stacked else per_device  # programs that run in turn
  least = floors.Work(
    flops=least.flops * per_device,
    bytes=least.bytes * per_device,
    exchanged=times * max(e["on_links"] for e in exchanged.values()),
  )
  seconds = least.seconds(topology.chip)
  analysis: Any = program.cost_analysis() or {}
  flops = analysis.get("flops")  # which the compiler for GPUs does not count
  return {
    "engine": step.chosen_engine,
    "flops": {
      "minimum": least.flops,
      "compiled": None if flops is None else times * float(flops),
    },
    "bytes": {"minimum": least.bytes},
    "collectives": exchanged,
    "seconds": {**seconds, "step": sum(seconds.values())},
    "bound": max(seconds, key=lambda name: seconds[name]),
  }


def _state_bytes(step: Step) -> int:
  """Bytes of weights and moments for each parameter, to whole bytes."""
  start = lambda: init_state(step.recipe, jax.random.key(0))
  state = jax.eval_shape(start)
  held = sum(
    a.size * a.dtype.itemsize
    for a in jax.tree.leaves((state.sae, state.opt_state))
  )
  return round(held / floors.parameters(state.sae))


def _exchanged(found: Sequence[programs.Collective]) -> dict[str, Any]:
  """Number and bytes of collectives by kind, and bytes over a device's links."""
  kinds = dict.fromkeys(c.kind for c in found)
  by_kind = {
    kind: {
      "count": sum(max(1, c.times) for c in found if c.kind == kind),
      "bytes": sum(c.bytes * max(1, c.times) for c in found if c.kind == kind),
    }
    for kind in kinds
  }
  twice = lambda kind: 2 if kind == "all-reduce" else 1
  total = sum(twice(kind) * each["bytes"] for kind, each in by_kind.items())
  return {"kinds": by_kind, "on_links": total}


def plan(
  step: Step,
  topology: Topology,
  *,
  mesh: Mesh | None = None,
  tries: int = 3,
  told: Callable[[Mesh], None] = lambda mesh: None,
) -> list[dict[str, Any]]:
  """Compiles a step, for a mesh or from the best one on until one fits.

  Args:
    step: the step.
    topology: the devices.
    mesh: sizes of ensemble, data and latent; None to search.
    tries: most meshes that are compiled.
    told: called before each compilation.

  Returns:
    A record of each mesh that was compiled; only the last can fit.

  Raises:
    InputError: no mesh divides the sizes.
  """
  if mesh is not None:
    check_mesh(step, topology, mesh)
  wanted = [mesh] if mesh else list(meshes(step, topology))
  if not wanted:
    count = len(topology.devices)
    raise InputError(
      "train.batch_rows",
      step.rows,
      f"no mesh of {count} devices divides it and n={step.sae.n}",
      "use powers of two",
    )
  found: list[dict[str, Any]] = []
  for each in wanted[:tries]:
    told(each)
    found.append(compiled(step, topology, each))
    if found[-1]["fits"]:
      break
  return found
