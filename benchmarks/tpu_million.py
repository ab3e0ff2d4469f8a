"""Memory of a training step of 1,048,576 latents on 256 TPU chips, compiled.

  .venv-aot/bin/python benchmarks/tpu_million.py \
    --write=benchmarks/results/tpu-million.json

One step of TopK with AuxK, Adam, unit-norm decoder rows and weights in float32,
d 4096, k 64, 8192 rows in bfloat16, on a v5e:16x16 whose chips are divided into
shards of rows and shards of latents. For each division:

  argument     the state and the batch on one chip, in bytes
  temporary    what the step holds beside them
  total        their sum, with results that are not written into the state
  of_limit     total as a fraction of what the compiler may use of a chip

A program that does not fit is refused by the compiler. Compiled, not timed;
needs libtpu (make aot makes an environment that has it) and no TPU. A division
takes 1 to 3 minutes on two cores.
"""

import dataclasses
import json
import os
import pathlib
import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from saejax import config
from saejax.kernels import dispatch
from saejax.recipes import row_sparse
from saejax.training import sharding, step
from saejax.training.recipe import Hyper

N, D, K, ROWS = 1 << 20, 4096, 64, 8192
TOPOLOGY = "v5e:16x16"
LIMIT_BYTES = int(15.75 * 2**30)  # of a v5e chip's 16 GiB, as the compiler says
# Without them libtpu looks for the chips' own metadata server, or for a lock.
ENVIRONMENT = {
  "TPU_SKIP_MDS_QUERY": "1",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  "TPU_ACCELERATOR_TYPE": "v5litepod-4",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_WORKER_ID": "0",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """What is compiled."""

  write: str = ""  # JSON file to write the figures to
  # shards of rows x shards of latents
  meshes: tuple[str, ...] = ("16x16", "4x64", "1x256")


def compiled_step(devices: Any, shape: tuple[int, int]) -> Any:
  """The step, compiled for a mesh of that many shards of rows and latents.

  Args:
    devices: of the topology.
    shape: shards of rows and of latents.
  """
  mesh = Mesh(
    np.array(devices).reshape(1, *shape),
    sharding.AXES,
    axis_types=(AxisType.Auto,) * 3,
  )
  recipe = row_sparse.topk(D, N, K, dead_after_tokens=10**7, dtype="bfloat16")
  state = jax.eval_shape(partial(step.init_state, recipe), jax.random.key(0))
  where = sharding.state_shardings(mesh, state, stacked=False)
  placed = lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s)
  everywhere = NamedSharding(mesh, P())
  rate = jax.ShapeDtypeStruct((), jnp.float32, sharding=everywhere)
  x = jax.ShapeDtypeStruct(
    (ROWS, D), jnp.bfloat16, sharding=sharding.rows_sharding(mesh)
  )
  one_step = step.make_step(recipe, engine="sparse")
  with (
    jax.sharding.use_abstract_mesh(mesh.abstract_mesh),
    dispatch.kernels("auto"),
  ):
    return (
      jax.jit(one_step, donate_argnums=0, out_shardings=(where, None))
      .lower(jax.tree.map(placed, state, where), Hyper(learning_rate=rate), x)
      .compile()
    )


def figures(program: Any) -> dict[str, Any]:
  """Bytes that a compiled program takes on one chip.

  Args:
    program: the compiled program.
  """
  memory = program.memory_analysis()
  written = memory.output_size_in_bytes - memory.alias_size_in_bytes
  total = memory.argument_size_in_bytes + memory.temp_size_in_bytes + written
  return {
    "argument": memory.argument_size_in_bytes,
    "temporary": memory.temp_size_in_bytes,
    "total": total,
    "of_limit": round(total / LIMIT_BYTES, 3),
  }


def main(chosen: Config) -> None:
  os.environ.update(ENVIRONMENT)
  devices = topologies.get_topology_desc(TOPOLOGY, platform="tpu").devices
  table = {}
  for name in chosen.meshes:
    rows, latents = map(int, name.split("x"))
    start = time.monotonic()
    program = compiled_step(devices, (rows, latents))
    table[name] = figures(program)
    print(name, table[name], f"{time.monotonic() - start:.0f} s", flush=True)
  if chosen.write:
    sizes = {"B": ROWS, "d": D, "n": N, "k": K, "jax": jax.__version__}
    text = json.dumps(
      {"chips": TOPOLOGY, "sizes": sizes, "meshes": table}, indent=1
    )
    pathlib.Path(chosen.write).write_text(text + "\n")


if __name__ == "__main__":
  config.run(main, Config)
