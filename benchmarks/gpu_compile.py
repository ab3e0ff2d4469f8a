"""Our training step compiled for an H200, on a machine without one.

  pip install --no-deps jax-cuda12-plugin==0.10.2 jax-cuda12-pjrt==0.10.2 \
    nvidia-cuda-nvcc-cu12
  python benchmarks/gpu_compile.py \
    --write=benchmarks/results/gpu-compile.json

in an environment of its own (make aot-gpu makes one). For each of the reference
sizes, a TopK step with matmuls in bfloat16 and float32 weights and optimizer
state is compiled to machine code, and the program is read:

  arguments, temporaries   bytes of state and batch, and of everything else
  peak                     both, and results that are not written in place
  sorts                    shapes that are sorted
  gathered                 arrays of at least B k d elements in memory
  compare_and_swap         kernels that add by compare-and-swap, which is
                           retried where rows share a latent
  launches                 kernels and copies of one step, loops counted by
                           their trips; the branch without AuxK
  recomputed_matmuls       matmuls that XLA computes again to save memory

Compiled and counted, not timed. Matmuls are not autotuned, so that kernels
chosen on a GPU may need other workspaces.
"""

import contextlib
import dataclasses
import datetime
import importlib.metadata
import json
import math
import os
import pathlib
import re
import tempfile
from typing import Any

import gpu_case
import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from saejax import config as flags
from saejax.errors import InputError
from saejax.plans import chips
from saejax.plans import topologies as plan_topologies
from saejax.recipes import row_sparse
from saejax.training import step
from saejax.training.recipe import Hyper

# XLA would recompute matmuls rather than fill the last fifth of the memory.
FILL_MEMORY = "--xla_gpu_memory_limit_slop_factor=150"
GET = "run make aot-gpu, and this with .venv-aot-gpu/bin/python"
# Operations of a program that launch nothing.
FREE = {
  "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while",
  "conditional", "call", "after-all", "partition-id", "opt-barrier",
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompileConfig:
  """What is compiled."""

  sizes: tuple[str, ...] = ("A", "B", "C", "D")  # reference sizes
  # sizes that are compiled with AuxK as well, which takes many minutes
  aux: tuple[str, ...] = ()
  dense: tuple[str, ...] = ("B",)  # sizes compiled in the dense engine as well
  write: str = ""  # JSON file to write

  def __post_init__(self):
    for name in {*self.sizes, *self.aux, *self.dense} - {*gpu_case.SIZES}:
      raise InputError(
        "sizes", name, f"must be of {[*gpu_case.SIZES]}", "choose one"
      )


@dataclasses.dataclass(frozen=True)
class Program:
  """The text of a compiled program by computation.

  Attributes:
    entry: name of the computation that runs.
    lines: instructions of each computation.
    fused: computations whose arrays are not in memory.
  """

  entry: str
  lines: dict[str, list[str]]
  fused: frozenset[str]


def parse(text: str) -> Program:
  """Splits the text of a compiled program.

  Args:
    text: `as_text()` of a compiled function.
  """
  lines: dict[str, list[str]] = {}
  entry = name = ""
  for line in text.splitlines():
    if start := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line):
      name = start[2]
      lines[name] = []
      entry = name if start[1] else entry
    elif line.startswith("}"):
      name = ""
    elif name:
      lines[name].append(line)
  every = "\n".join(line for body in lines.values() for line in body)
  fused = re.findall(r" fusion\(.*?calls=%?([\w.\-]+)", every)
  fused += re.findall(r"to_apply=%?([\w.\-]+)", every)
  return Program(entry, lines, frozenset(fused))


def opcode(line: str) -> str:
  """Name of an instruction's operation; "" for lines that are none.

  Args:
    line: line of a computation.
  """
  found = re.search(r"= (?:\(.*?\)|\S+) ([a-z][\w\-]*)\(", line)
  return found[1] if found else ""


def launches(program: Program, name: str) -> int:
  """Kernels and copies that a computation starts, the cheapest branches taken.

  Args:
    program: the program.
    name: the computation.
  """
  total = 0
  for line in program.lines[name]:
    operation = opcode(line)
    if operation == "while":
      trips = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
      inside = [
        launches(program, called)
        for called in re.findall(r"(?:condition|body)=%?([\w.\-]+)", line)
      ]
      total += int(trips[1] if trips else 1) * sum(inside)
    elif operation == "conditional":
      branches = re.search(r"branch_computations=\{(.*?)\}", line)
      names = re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", line)
      if branches:
        names = [name.strip(" %") for name in branches[1].split(",")]
      total += min(launches(program, name) for name in names)
    elif operation == "call":
      total += launches(program, re.findall(r"to_apply=%?([\w.\-]+)", line)[0])
    elif operation and operation not in FREE and operation[-5:] != "-done":
      total += 1
  return total


def arrays(program: Program) -> set[tuple[int, ...]]:
  """Shapes of all arrays in memory.

  Args:
    program: the program.
  """
  found = set()
  for name, body in program.lines.items():
    if name in program.fused:
      continue
    for line in body:
      head = line.split("= ", 1)[-1].split(opcode(line) + "(", 1)[0]
      for dims in re.findall(r"\b[a-z]+\d*\[([\d,]+)\]", head):
        found.add(tuple(int(size) for size in dims.split(",")))
  return found


def lowered(size: str, *, engine: str, aux: bool, device: Any):
  """One training step, lowered for a device.

  Args:
    size: name in `gpu_case.SIZES`.
    engine: "sparse" or "dense".
    aux: whether AuxK, which is idle while no latent is dead, is in the program.
    device: device to compile for.
  """
  B, d, n, k = gpu_case.SIZES[size]
  recipe = row_sparse.topk(
    d,
    n,
    k,
    dead_after_tokens=10_000_000,
    clip_norm=1.0,
    dtype="bfloat16",
    **({} if aux else {"aux_weight": 0.0}),
  )
  state = jax.eval_shape(lambda: step.init_state(recipe, jax.random.key(0)))
  rate = jax.ShapeDtypeStruct((), jnp.float32)
  x = jax.ShapeDtypeStruct((B, d), jnp.bfloat16)
  where = SingleDeviceSharding(device)
  args = jax.tree.map(
    lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=where),
    (state, Hyper(learning_rate=rate), x),
  )
  one = step.make_step(recipe, engine=engine)
  return jax.jit(one, donate_argnums=0).lower(*args)


def measure(size: str, device: Any, dump: pathlib.Path, **how) -> dict:
  """Compiles a step and reads its program.

  Args:
    size: name in `gpu_case.SIZES`.
    device: device to compile for.
    dump: where XLA writes its kernels; it is emptied.
    **how: see `lowered`.
  """
  compiled = lowered(size, device=device, **how).compile()
  text, memory = compiled.as_text() or "", compiled.memory_analysis()
  assert memory is not None  # of this back end
  program = parse(text)
  B, d, n, k = gpu_case.SIZES[size]
  swaps = [p for p in dump.rglob("*.ptx") if ".cas." in p.read_text()]
  for path in filter(pathlib.Path.is_file, dump.rglob("*")):
    path.unlink()
  temporaries = memory.temp_size_in_bytes
  new = memory.output_size_in_bytes - memory.alias_size_in_bytes
  peak = memory.argument_size_in_bytes + temporaries + new
  sorts = re.findall(r"= \(?\w+\[([\d,]*)\].* sort\(", text)
  return {
    "size": size,
    **how,
    "arguments": memory.argument_size_in_bytes,
    "temporaries": temporaries,
    "peak": peak,
    "fits": peak < chips.H200.memory,
    "sorts": sorted(sorts),
    "gathered": sorted(
      shape
      for shape in arrays(program)
      if shape[-1] == d and n * d != math.prod(shape) >= B * k * d
    ),
    "compare_and_swap": len(swaps),
    "launches": launches(program, program.entry),
    "recomputed_matmuls": len(re.findall(r"%gemm\S*remat\S* = ", text)),
  }


def main(config: CompileConfig) -> int:
  try:
    nvcc = importlib.metadata.distribution("nvidia-cuda-nvcc-cu12")
    importlib.metadata.version("jax-cuda12-plugin")
  except importlib.metadata.PackageNotFoundError as e:
    raise InputError(
      "sizes", config.sizes, f"cannot be compiled without {e.name}", GET
    ) from e
  ptxas = nvcc.locate_file("nvidia/cuda_nvcc/bin")
  os.environ["PATH"] = f"{ptxas}:{os.environ['PATH']}"
  os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
  jax.config.update("jax_platforms", "cpu")
  rows = []
  with contextlib.ExitStack() as stack:
    dump = stack.enter_context(tempfile.TemporaryDirectory())
    os.environ["XLA_FLAGS"] = (
      f"--xla_gpu_autotune_level=0 {FILL_MEMORY} --xla_dump_to={dump}"
    )
    device = topologies.get_topology_desc(
      platform="cuda",
      target_config=plan_topologies.H200_TARGET,
      topology="1x1x1",
    ).devices[0]
    for engine, aux, sizes in (
      ("sparse", False, config.sizes),
      ("sparse", True, config.aux),
      ("dense", False, config.dense),
    ):
      for size in sizes:
        row = measure(size, device, pathlib.Path(dump), engine=engine, aux=aux)
        print(row, flush=True)
        rows.append(row)
  result = {
    "device": "NVIDIA H200 (compute capability 9.0), compiled for, not present",
    "device_bytes": chips.H200.memory,
    "dtype": "bfloat16 matmuls, float32 state",
    "date": str(datetime.date.today()),
    "versions": {
      name: importlib.metadata.version(name)
      for name in ("jax", "jax-cuda12-plugin", "nvidia-cuda-nvcc-cu12")
    },
    "sizes": {name: gpu_case.sizes(name) for name in gpu_case.SIZES},
    "programs": rows,
  }
  if config.write:
    text = json.dumps(result, indent=1) + "\n"
    pathlib.Path(config.write).write_text(text)
  return 0


if __name__ == "__main__":
  flags.run(main, CompileConfig)
