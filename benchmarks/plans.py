"""Plans of large SAEs on TPU slices, compiled without them.

  .venv-aot/bin/python benchmarks/plans.py --write=benchmarks/results/plans.json

A training step of TopK with AuxK, Adam and unit-norm decoder rows, weights in
float32 and matmuls in bfloat16, is planned as `saejax plan` does (`saejax.plans`).
A mesh that is given is compiled alone; otherwise from the one of the least floor on
until one fits. A case takes 1 to 10 minutes on two cores. Compiled, not timed; needs
libtpu (make aot makes an environment that has it).
"""

import dataclasses
import json
import os
import pathlib
from typing import Any, Literal

import jax

from saejax import config, machine
from saejax.errors import InputError
from saejax.plans import topologies
from saejax.runs.config import sae_config
from saejax.studies import plan
from saejax.training.config import TrainConfig

MACHINE = ("cpu", "cores", "python", "jax", "jaxlib")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
  """A step, and the slice that it is planned for."""

  topology: str
  n: int
  d: int
  k: int
  batch_rows: int
  mesh: tuple[int, int, int] | None = None
  accumulate: int = 1
  param_dtype: Literal["float32", "bfloat16"] = "float32"
  second_moments: Literal["element", "row"] = "element"


OF_TRAINING = ("batch_rows", "accumulate", "param_dtype", "second_moments")
WIDE: dict[str, Any] = {"n": 1 << 20, "d": 4096, "k": 64, "batch_rows": 8192}
# The largest SAE of Gao et al. 2024, arXiv:2406.04093, its batch in 16 parts.
LARGEST: dict[str, Any] = {
  "n": 1 << 24,
  "d": 12_288,
  "k": 256,
  "batch_rows": 131_072,
}
LARGEST |= {"accumulate": 16}
SMALL_STATE: dict[str, Any] = {
  "param_dtype": "bfloat16",
  "second_moments": "row",
}
CASES = {
  "131k": Case(topology="v5e:4x4", **{**WIDE, "n": 131_072}),
  "1M": Case(topology="v5e:16x16", **WIDE),
  "1M-4x64": Case(topology="v5e:16x16", **WIDE, mesh=(1, 4, 64)),
  "1M-16x16": Case(topology="v5e:16x16", **WIDE, mesh=(1, 16, 16)),
  "1M-h200": Case(topology="gpu:h200x8", **WIDE),  # with .venv-aot-gpu
  "16M": Case(topology="v5p:4x4x8", **LARGEST, mesh=(1, 1, 128)),
  "16M-small-state": Case(
    topology="v5p:4x4x4", **LARGEST, **SMALL_STATE, mesh=(1, 1, 64)
  ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """What is planned."""

  cases: tuple[str, ...] = tuple(CASES)  # names of the cases
  rows: int = 1_000_000_000  # of the run
  write: str = ""  # JSON file, in which other cases stay

  def __post_init__(self):
    for name in self.cases:
      if name not in CASES:
        rule = f"must be of {', '.join(CASES)}"
        raise InputError("cases", name, rule, "choose one")


def planned(case: Case, rows: int) -> dict[str, Any]:
  """The record of a case, or why there is none.

  Args:
    case: the case.
    rows: of the run.
  """
  own = {name: getattr(case, name) for name in OF_TRAINING}
  train = TrainConfig(dtype="bfloat16", **own)
  try:
    (record,) = plan.plans(
      sae_config(n=(case.n,), k=case.k),
      train,
      d=case.d,
      rows=rows,
      topology=topologies.find(case.topology),
      mesh=case.mesh,
    )
  except InputError as error:
    print(error)
    return {"topology": case.topology, "refused": str(error)}
  return record


def main(chosen: Config) -> None:
  jax.config.update("jax_platforms", "cpu")
  path = pathlib.Path(chosen.write)
  kept = chosen.write and path.exists()
  found = json.loads(path.read_text())["cases"] if kept else {}
  for name in chosen.cases:
    print(f"\n{name}", flush=True)
    found[name] = planned(CASES[name], chosen.rows)
    if chosen.write:
      about = {key: machine.environment()[key] for key in MACHINE}
      ordered = {name: found[name] for name in CASES if name in found}
      text = json.dumps({"machine": about, "cases": ordered}, indent=1)
      path.write_text(text + "\n")


if __name__ == "__main__":
  os.environ.update(topologies.TPU_ENVIRONMENT)
  config.run(main, Config)
