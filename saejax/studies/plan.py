"""Says what a run needs and takes on devices that need not be here.

    saejax plan --topology=v5e:16x16 --sae.d=4096 --sae.n=1048576 --sae.k=64 \\
      --train.batch_rows=8192 --train.dtype=bfloat16 --rows=1000000000

The training step is compiled for the devices, and the program read: memory of a
device, operations, collectives. Times are floors: what the operations, bytes and
exchanged bytes take at the chip's rates, see `plans.floors`; a step takes longer.
Without --train.mesh the meshes are tried in the order of their floors until one
fits. TPU slices need libtpu (extra `aot`), GPUs the CUDA plugin (make aot-gpu).
"""

import contextlib
import dataclasses
import io
import json
import math
import sys
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from saejax import checks, durable, processes, terminal
from saejax.errors import InputError
from saejax.plans import chips, planner, topologies
from saejax.recipes import common
from saejax.runs import grid
from saejax.runs.config import SAEConfig
from saejax.sae import prep
from saejax.sae.context import Batch
from saejax.training.loop import TrainConfig

# Shape and dtype of a row's entries in each field of a batch, beside x.
FIELDS = {"cond": ((), jnp.int32), "score": ((), jnp.float32)}
ROW_BYTES = 16  # of a row in a store, beside x


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes(SAEConfig):
  """The SAEs that are planned, and the width of their rows."""

  d: int = 0  # width of the rows

  def __post_init__(self):
    super().__post_init__()
    if self.d < 1:
      rule = "must be given, at least 1"
      raise InputError("d", self.d, rule, "give the width of the site")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Settings of the command."""

  topology: str = topologies.LOCAL  # v5e:16x16, gpu:h200x8, or local
  rows: int = 100_000_000  # rows of the store, all of which are read
  sae: Sizes = dataclasses.field(default_factory=lambda: Sizes(d=768))
  train: TrainConfig = TrainConfig()
  tries: int = 3  # most meshes that are compiled, where none is given
  write: str = ""  # JSON file for the records

  def __post_init__(self):
    checks.at_least(self, 1, "rows", "tries")
    least = self.train.batch_rows
    if self.rows < least:
      rule = f"must be at least {least}, a batch"
      raise InputError("rows", self.rows, rule, "or lower train.batch_rows")


def main(config: Config) -> None:
  """Prints the plan of each n, and writes the records.

  Args:
    config: settings of the command.

  Raises:
    InputError: a step does not fit; nothing is written.
  """
  if config.topology != topologies.LOCAL:
    # What compiles for other devices would look for them here.
    jax.config.update("jax_platforms", "cpu")
  given = config.train.mesh
  records = plans(
    config.sae,
    config.train,
    d=config.sae.d,
    rows=config.rows,
    topology=topologies.find(config.topology),
    mesh=given if math.prod(given) > 1 else None,
    tries=config.tries,
  )
  if config.write:
    content = json.dumps(records, indent=1).encode() + b"\n"
    durable.write_file(config.write, content, field="write")
    print(config.write)


def dry_run(
  sae: SAEConfig,
  train: TrainConfig,
  *,
  d: int,
  rows: int,
  target: common.Target | None = None,
) -> None:
  """Prints the plan of a run on the devices of its mesh, which are here.

  Process 0 prints it where there are several.

  Args:
    sae, train, d, rows, target: as for `plans`.

  Raises:
    InputError: a step does not fit.
  """
  here = topologies.find(topologies.LOCAL)
  first, count = train.first_device, math.prod(train.mesh)
  devices = here.devices[first : first + count]
  topology = dataclasses.replace(here, devices=devices)
  given = {"topology": topology, "mesh": train.mesh, "target": target}
  printed = sys.stdout if processes.is_first() else io.StringIO()
  with contextlib.redirect_stdout(printed):
    plans(sae, train, d=d, rows=rows, **given)


def plans(
  sae: SAEConfig,
  train: TrainConfig,
  *,
  d: int,
  rows: int,
  topology: topologies.Topology,
  mesh: planner.Mesh | None,
  target: common.Target | None = None,
  tries: int = 3,
) -> list[dict[str, Any]]:
  """Plans the group of each n of a grid, and prints what it finds.

  Args:
    sae: the grid.
    train: settings of training, of which the mesh is not read.
    d: width of the rows.
    rows: of the store.
    topology: the devices.
    mesh: sizes of ensemble, data and latent; None to search.
    target: what is reconstructed instead of x.
    tries: most meshes that are compiled for an n.

  Returns:
    The record of each n, see `planner.compiled`.

  Raises:
    InputError: no mesh that was tried fits; the remedy names the flag that helps.
  """
  total = train.total_steps(rows)
  records = []
  for n in sae.n:
    members = grid.members(n, sae, train)
    largest = max(members, key=lambda member: member.k)
    recipe = grid.recipe(
      n,
      dict(largest.arguments),
      d=d,
      prep=prep.Identity(),
      target=target,
      sae=sae,
      train=train,
      total_steps=total,
    )
    step = planner.Step(
      recipe=recipe,
      batch=_batch(recipe.needs, train.batch_rows, d, target),
      members=len(members),
      stacked=train.members == "stacked" or bool(mesh and mesh[0] > 1),
      engine=train.engine,
      kernels=train.kernels,
      accumulate=train.accumulate,
      shard_optimizer=train.shard_optimizer,
    )
    print(_head(step, train, topology), flush=True)
    found = planner.plan(
      step,
      topology,
      mesh=mesh,
      tries=tries,
      told=lambda mesh: terminal.say(f"compiling for mesh {_mesh(mesh)}"),
    )
    for record in found:
      print("\n".join(_lines(record)), flush=True)
    if not found[-1]["fits"]:
      raise _refused(step, topology, found)
    run = _run(found[-1], step, rows, total, topology)
    print(_run_line(run), flush=True)
    records.append(
      {
        "topology": topology.name,
        "devices": len(topology.devices),
        "recipe": recipe.name,
        "arguments": dict(largest.arguments) | sae.fixed,
        "n": n,
        "d": d,
        "members": len(members),
        "batch_rows": train.batch_rows,
        "accumulate": train.accumulate,
        "shard_optimizer": train.shard_optimizer,
        "dtype": train.dtype,
        "jax": jax.__version__,
        **found[-1],
        **run,
        "refused": found[:-1],
      }
    )
  return records


def _batch(
  needs: tuple[str, ...], rows: int, d: int, target: common.Target | None
) -> Batch:
  shape = jax.ShapeDtypeStruct
  extra = {
    name: shape((rows, *FIELDS[name][0]), FIELDS[name][1])
    for name in needs
    if name in FIELDS
  }
  if target is not None or "target" in needs:
    extra["target"] = shape((rows, target.d if target else d), jnp.bfloat16)
  return Batch(x=shape((rows, d), jnp.bfloat16), **extra)


def _run(
  record: dict[str, Any],
  step: planner.Step,
  rows: int,
  steps: int,
  topology: topologies.Topology,
) -> dict[str, Any]:
  """What the whole run takes at the floor, and its store."""
  seconds = record["seconds"]["step"]
  hours = steps * seconds / 3600
  count = len(topology.devices) / topology.chip.devices
  width = step.batch.x.shape[-1]
  return {
    "tokens_per_second": step.rows / seconds,
    "run": {
      "rows": rows,
      "steps": steps,
      "hours": hours,
      "chip_hours": hours * count,
      "store_bytes": rows * (2 * width + ROW_BYTES),
    },
  }


def _refused(
  step: planner.Step, topology: topologies.Topology, found: list[dict[str, Any]]
) -> InputError:
  """The error of a step that fits no mesh, with what would help."""
  least = min(found, key=lambda record: record["memory"]["total"])
  limit, needed = topology.chip.memory, least["memory"]["total"]
  rule = (
    f"n={step.sae.n} needs {durable.size(needed)} a device on mesh "
    f"{_mesh(least['mesh'])}, and {durable.size(limit)} are there"
  )
  whole = needed * len(topology.devices) / topology.chip.devices
  own = limit * topology.chip.devices
  larger = [
    shape
    for shape in topology.chip.slices
    if chips.chips_of(shape) * own > 1.1 * whole
  ]
  remedy = f"lower --sae.n, or --train.batch_rows to {step.rows // 2}"
  if step.rows % (2 * step.accumulate) == 0:
    remedy += f", or use --train.accumulate={2 * step.accumulate}"
  if larger:
    remedy += f", or use --topology={topology.chip.name}:{larger[0]}"
  return InputError("topology", topology.name, rule, remedy)


# --- as text -----------------------------------------------------------------


def _mesh(mesh: Any) -> str:
  return ",".join(map(str, mesh))


def _head(
  step: planner.Step, train: TrainConfig, topology: topologies.Topology
) -> str:
  sae, chip = step.sae, topology.chip
  kept = sae.activation.mean_k
  parts = f" in {step.accumulate} parts" if step.accumulate > 1 else ""
  several = f", {step.members} SAEs" if step.members > 1 else ""
  return (
    f"{step.recipe.name}: n {sae.n:,}, d {step.batch.x.shape[-1]:,}"
    + (f", k {kept:g}" if kept is not None else "")
    + f"{several}, {step.rows:,} rows a step{parts}, matmuls in {train.dtype}, "
    f"{step.chosen_engine} engine\n"
    f"{topology.name}: {len(topology.devices)} devices of "
    f"{durable.size(chip.memory)}, {chip.flops / 1e12:.3g} TFLOP/s, "
    f"{durable.size(chip.bandwidth)}/s"
  )


def _lines(record: dict[str, Any]) -> Iterator[str]:
  """What was found about a mesh."""
  memory = record["memory"]
  if not record["fits"]:
    yield (
      f"  mesh {_mesh(record['mesh'])}: does not fit, "
      f"{durable.size(memory['total'])} a device"
      + "".join(
        f"\n  buffer       {each}" for each in record.get("largest", ())
      )
    )
    return
  yield f"  mesh {_mesh(record['mesh'])}, compiled in {record['compile_seconds']} s"
  parts = ", ".join(
    f"{name} {durable.size(memory[name])}"
    for name in ("arguments", "others", "outputs", "temporaries", "code")
    if memory[name]
  )
  used, share = durable.size(memory["total"]), memory["total"] / memory["limit"]
  yield f"  memory       {used} a device, {share:.0%} of it: {parts}"
  flops = record["flops"]
  least, own = f"{flops['minimum']:.3g} a device at least", flops["compiled"]
  counted = "" if own is None else f", {own:.3g} compiled"
  yield f"  operations   {least}{counted}"
  for name, title in (
    ("without_aux", "without AuxK"),
    ("with_aux", "with AuxK"),
  ):
    kinds = record["collectives"][name]["kinds"].items()
    each = ", ".join(
      f"{found['count']} {kind} of {durable.size(found['bytes'])}"
      for kind, found in kinds
    )
    yield f"  collectives  {title}: {each or 'none'}"
  seconds = record["seconds"]
  shares = ", ".join(
    f"{name} {seconds[name] * 1e3:.3g}"
    for name in ("compute", "memory", "links")
  )
  yield (
    f"  floor        {seconds['step'] * 1e3:.3g} ms a step ({shares}), "
    f"bound by {record['bound']}"
  )


def _run_line(record: dict[str, Any]) -> str:
  run = record["run"]
  return (
    f"  run          {record['tokens_per_second']:,.3g} rows/s at the floor, "
    f"{run['rows']:,} rows in {run['steps']:,} steps: "
    f"{run['hours']:.3g} hours, {run['chip_hours']:.3g} chip-hours, "
    f"a store of {durable.size(run['store_bytes'])}"
  )
