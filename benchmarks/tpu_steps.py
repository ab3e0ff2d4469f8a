"""One training step per recipe with kernels, compiled for TPUs without one.

  .venv-aot/bin/python benchmarks/tpu_steps.py --jobs=2 \
    --write=benchmarks/results/tpu-steps.json

Compiles the step of each recipe that a kernel could bear on as a run with
--train.kernels=pallas and default settings does, in bfloat16, on a mesh with a
latent axis, and says of each program:

  seconds       of compiling, and of the processor (others may use it too)
  bytes         of arguments, outputs and temporaries on a chip
  kernels       calls of each Pallas kernel; none means that XLA's forms run
  sorts         shapes that are sorted. XLA sorts the indices of a scatter: one
                entry per row and active latent, never pre-activations
  large         arrays that a design avoids: [B, n] and [B, k, d] on a chip
  collectives   each with its branch, passes, bytes and origin, and how many of
                activation size an executed branch holds

Compiled, not timed. Needs libtpu (make aot makes an environment that has it).
"""

import concurrent.futures
import dataclasses
import datetime
import importlib.metadata
import itertools
import json
import multiprocessing
import os
import pathlib
import time
from typing import Any

import jax
import step_programs
from jax.experimental import topologies

from saejax import config, errors, machine
from saejax.plans import topologies as plan_topologies
from saejax.training import sharding

MACHINE = ("cpu", "cores", "python", "jax", "jaxlib")
ENVIRONMENT = {"JAX_PLATFORMS": "cpu", **plan_topologies.TPU_ENVIRONMENT}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
  """A topology, the mesh on it, and the sizes of the step."""

  mesh: tuple[int, int, int]
  sizes: step_programs.Sizes


TARGETS = {
  "v5e:2x2": Target(
    mesh=(1, 2, 2), sizes=step_programs.Sizes(8192, 768, 65536, 32)
  ),
  "v5e:4x4": Target(
    mesh=(1, 2, 8), sizes=step_programs.Sizes(8192, 2304, 262144, 64)
  ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """What is compiled."""

  recipes: tuple[str, ...] = ()  # none: all that a kernel could bear on
  topologies: tuple[str, ...] = ("v5e:2x2", "v5e:4x4")  # and their meshes
  jobs: int = 1  # processes side by side
  write: str = ""  # JSON file, in which steps of other recipes stay

  def __post_init__(self):
    known = {"recipes": step_programs.RECIPES, "topologies": TARGETS}
    for field, names in known.items():
      for name in getattr(self, field):
        if name not in names:
          raise errors.InputError(
            field, name, f"must be of {', '.join(names)}", "choose one"
          )


def report(recipe: str, topology: str) -> dict[str, Any]:
  """Compiles a step and says what its program holds.

  Args:
    recipe: name in the catalogue.
    topology: name in `TARGETS`.
  """
  target = TARGETS[topology]
  chips = topologies.get_topology_desc(topology, platform="tpu").devices
  mesh = sharding.make_mesh(target.mesh, chips)
  made = step_programs.recipe(recipe, target.sizes, "bfloat16")
  wall, processor = time.perf_counter(), time.process_time()
  program = step_programs.compiled(made, target.sizes, mesh)
  wall = time.perf_counter() - wall
  processor = time.process_time() - processor
  memory = program.memory_analysis()
  return {
    "recipe": recipe,
    "topology": topology,
    "date": datetime.date.today().isoformat(),
    "mesh": target.mesh,
    "sizes": dataclasses.asdict(target.sizes),
    "seconds": round(wall, 1),
    "processor_seconds": round(processor, 1),
    "argument_bytes": memory.argument_size_in_bytes,
    "output_bytes": memory.output_size_in_bytes,
    "temporary_bytes": memory.temp_size_in_bytes,
    **step_programs.holdings(program.as_text(), target.sizes, target.mesh),
  }


def _started(pair: tuple[str, str]) -> dict[str, Any]:
  os.environ.update(ENVIRONMENT)
  jax.config.update("jax_platforms", "cpu")
  return report(*pair)


def show(step: dict[str, Any]) -> None:
  """Prints a report.

  Args:
    step: the report.
  """
  megabytes = lambda name: f"{step[name + '_bytes'] / 2**20:,.0f} MiB"
  print(
    f"\n{step['recipe']} on {step['topology']}, mesh {step['mesh']}: "
    f"{step['seconds']} s ({step['processor_seconds']} s of the processor); "
    f"arguments {megabytes('argument')}, temporaries {megabytes('temporary')}"
  )
  for name in ("kernels", "sorts", "large"):
    print(f"  {name}: {step[name] or 'none'}")
  for branch, large in step["activations"].items():
    print(f"  of activation size, {branch}: {large}")
  for c in step["collectives"]:
    arrays = " ".join(f"{t}{s}" for t, s in c["arrays"])
    print(
      f"    {c['kind']} {c['branch']} x{c['times']} {c['bytes']} B: {arrays}"
    )
    print(f"      {c['source']}", flush=True)


def main(chosen: Config) -> int:
  pairs = [
    *itertools.product(
      chosen.recipes or step_programs.RECIPES, chosen.topologies
    )
  ]
  spawn = multiprocessing.get_context("spawn")
  found = []
  with concurrent.futures.ProcessPoolExecutor(chosen.jobs, spawn) as pool:
    for step in pool.map(_started, pairs):
      show(step)
      found.append(step)
  if chosen.write:
    path = pathlib.Path(chosen.write)
    old = json.loads(path.read_text())["steps"] if path.exists() else []
    old = [s for s in old if (s["recipe"], s["topology"]) not in pairs]
    about = {name: machine.environment()[name] for name in MACHINE}
    about["libtpu"] = importlib.metadata.version("libtpu")
    text = json.dumps({"machine": about, "steps": [*old, *found]}, indent=1)
    path.write_text(text + "\n")
  return 0


if __name__ == "__main__":
  os.environ.update(ENVIRONMENT)
  config.run(main, Config)
