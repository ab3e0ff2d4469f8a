"""Instruction bundles of the TPU kernels, counted in their compiled programs.

  .venv-aot/bin/python benchmarks/tpu_bundles.py \
    --write=benchmarks/results/tpu-bundles.json

For each kind of chip, at B 4096, d 2304, n 65,536, k 64 in bfloat16:

  candidates   K1, a tile of 256 rows and 512 latents inserted
  largest      K1, one winner of 16 rows taken from the candidates
  forward      JumpReLU, a tile of 256 rows and 512 latents
  backward     the same of the gradients
  optimizer    Adam on unit rows, 8 rows of 4 matrices in float32

`bundles` are those of the steady-state body: the innermost loop without what
runs only once per block of rows. A bundle takes a cycle at best; waits for
memory are not in them. `matmul_cycles` is what the matrix units alone need for
the tile, so a kernel takes at least the larger of the two; `memory_cycles` is
what the bytes alone need of the optimizer's. Counted, not timed; needs libtpu (make aot makes an environment that has it) and no TPU.
"""

import dataclasses
import json
import os
import pathlib
import re
import tempfile
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from saejax import config
from saejax.kernels.fused_encode import tpu as encode
from saejax.kernels.jumprelu import tpu as jumprelu
from saejax.kernels.jumprelu.ref import Estimator
from saejax.kernels.row_optimizer import tpu as row_optimizer

B, D, N, K = 4096, 2304, 65536, 64
TOPOLOGIES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
# Multiplications in a cycle of one core's matrix units.
MULTIPLIERS = {"v5e": 4 * 128**2, "v5p": 4 * 128**2, "v6e": 4 * 256**2}
# Bytes in a cycle of one core.
BANDWIDTH = {"v5e": 547, "v5p": 703, "v6e": 937}
NAMES = {
  "candidates": "encode_candidates",
  "largest": "encode_largest",
  "forward": "jumprelu_forward",
  "backward": "jumprelu_backward",
  "optimizer": "row_optimizer",
}
MATMULS = ("candidates", "forward", "backward")
ENVIRONMENT = {
  "TPU_SKIP_MDS_QUERY": "1",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  "TPU_ACCELERATOR_TYPE": "v5litepod-4",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_WORKER_ID": "0",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """What is counted."""

  write: str = ""  # JSON file to write the counts to
  chips: tuple[str, ...] = tuple(TOPOLOGIES)  # kinds of chip


def steady_bundles(text: str) -> int:
  """Bundles of one pass through the innermost loop, initialisation apart.

  Args:
    text: the compiler's final bundles of a kernel. Lines start with an address;
      `LB` marks a loop's first bundle, and branches name the region that they
      go to. A forward branch over no matmul skips what runs in the first pass.
  """
  lines = [
    (int(found[1], 16), line)
    for line in text.splitlines()
    if (found := re.match(r" *(0x[0-9a-f]+) ", line))
  ]
  inner = max(line.count(">", 0, 30) for _, line in lines if " LB:" in line)
  start = next(
    at
    for at, line in lines
    if " LB:" in line and line.count(">", 0, 30) == inner
  )
  body = [
    (at, line)
    for at, line in lines
    if at >= start and line.count(">", 0, 30) >= inner
  ]
  skipped = 0
  for at, line in body:
    branch = re.search(r"sbr\.rel.*target = \$region(\d+)", line)
    if not branch:
      continue
    mark = re.compile(rf"(empty|Start) region {branch[1]}\b")
    target = next((to for to, l in body if to > at and mark.search(l)), None)
    inside = [l for to, l in body if at < to < (target or at)]
    if len(inside) > 20 and not any("matmul" in l for l in inside):
      skipped += len(inside)
  return len(body) - skipped


def kernels() -> dict[str, tuple[Any, list[jax.ShapeDtypeStruct]]]:
  """Programs that hold the kernels, and the shapes of their arguments."""
  array = lambda *shape, dtype=jnp.float32: jax.ShapeDtypeStruct(shape, dtype)
  x, W = (array(rows, D, dtype=jnp.bfloat16) for rows in (B, N))
  sizes = encode.blocks(B, N, D, K, jnp.bfloat16)
  estimator = Estimator(1.0)
  tiles = jumprelu.blocks(B, N, D, estimator, jnp.bfloat16)
  block = row_optimizer.rows(N, D, jnp.float32)
  if sizes is None or tiles is None or block is None:
    raise ValueError("these sizes have no kernel")

  def select(x, W, b):
    values, marks = encode._candidates(x, W, b, False, sizes, False)
    return encode._largest(values, marks, K, sizes, False)

  backward = partial(jumprelu.backward, estimator=estimator, sizes=tiles)
  adam = {"b1": 0.9, "b2": 0.999, "eps": 6.25e-10}
  return {
    "optimizer": (
      partial(row_optimizer.update, block=block, **adam),
      [*[array(N, D)] * 4, array(5)],
    ),
    "select": (select, [x, W, array(N)]),
    "forward": (
      partial(jumprelu.forward, sizes=tiles),
      [x, W, array(N), array(N)],
    ),
    "backward": (backward, [x, W, array(B, N), array(B), array(N)]),
  }


def count(chip: str, folder: pathlib.Path) -> dict[str, dict[str, int]]:
  """Compiles the kernels for a kind of chip and counts their bundles.

  Args:
    chip: name in `TOPOLOGIES`.
    folder: where libtpu writes its schedules; it is emptied.
  """
  topology = topologies.get_topology_desc(TOPOLOGIES[chip], platform="tpu")
  mesh = jax.sharding.Mesh(topology.devices, ("chip",))
  where = SingleDeviceSharding(topology.devices[0])
  for f, shapes in kernels().values():
    args = [
      jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=where) for a in shapes
    ]
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      jax.jit(f).lower(*args).compile()
  found = {}
  for name, kernel in NAMES.items():
    files = sorted(folder.glob(f"*{kernel}*-final_bundles.txt"))
    files = [f for f in files if "schedule-analysis" not in f.name]
    found[name] = {"bundles": steady_bundles(files[-1].read_text())}
    if name in MATMULS:
      found[name]["matmul_cycles"] = 256 * 512 * D // MULTIPLIERS[chip]
  bytes_ = 4 * row_optimizer.ARRAYS * row_optimizer.STRIP * D
  found["optimizer"]["memory_cycles"] = bytes_ // BANDWIDTH[chip]
  for path in folder.iterdir():
    path.unlink()
  return found


def main(chosen: Config) -> None:
  os.environ.update(ENVIRONMENT)
  with tempfile.TemporaryDirectory() as folder:
    os.environ["LIBTPU_INIT_ARGS"] = (
      f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
    )
    table = {chip: count(chip, pathlib.Path(folder)) for chip in chosen.chips}
  for chip, rows in table.items():
    for name, row in rows.items():
      print(chip, name, row)
  if chosen.write:
    sizes = {"B": B, "d": D, "n": N, "k": K, "jax": jax.__version__}
    text = json.dumps({"sizes": sizes, "chips": table}, indent=1)
    pathlib.Path(chosen.write).write_text(text + "\n")


if __name__ == "__main__":
  config.run(main, Config)
