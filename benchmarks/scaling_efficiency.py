"""Sharded training against one device: values, selections, exchanges, processes.

  python benchmarks/scaling_efficiency.py \\
    --write=benchmarks/results/scaling-efficiency.json

Eight forced CPU devices, which share the processor of one: their time says
nothing about that of eight chips, and none is taken. What carries over to chips
is whether the results agree, and what the compiled step exchanges.

  values      every method on every mesh, and the other cases of scaling_cases.py
              on one, against one device, with the same seeds and batches
  exchanges   the collectives of a compiled step whose latents are sharded
  processes   the command in 2 and 4 processes of 2 devices against one process

A file that exists keeps the parts and cases that are not run. Exits with 1 where
values or processes do not agree; scaling_values.py, scaling_exchanges.py and scaling_processes.py say what the
columns are.
"""

import dataclasses
import datetime
import json
import os
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from benchmarks import scaling_exchanges, scaling_processes, scaling_values
from benchmarks.agreement import SIZES
from benchmarks.scaling_cases import CASES, STEPS
from saejax import config, errors, machine

DEVICES = 8
PARTS = ("values", "exchanges", "processes")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """What is compared."""

  parts: tuple[str, ...] = PARTS  # parts to run
  cases: tuple[str, ...] = ()  # cases of the values; none: all of them
  write: str = ""  # JSON file to write to

  def __post_init__(self):
    for field, known in (("parts", PARTS), ("cases", tuple(CASES))):
      for name in getattr(self, field):
        if name not in known:
          rule = f"must be one of {'; '.join(known)}"
          raise errors.InputError(field, name, rule, "see scaling_cases.py")


def failures(found: Mapping[str, Any]) -> list[str]:
  """Names what does not agree.

  Args:
    found: the parts of the result.
  """
  values = [
    f"{name} on {mesh}"
    for name, row in found.get("values", {}).items()
    for mesh, cell in row.items()
    if not scaling_values.agrees(cell)
  ]
  processes = [
    f"{row['recipe']} in {row['processes']} processes"
    for row in found.get("processes", [])
    if not row["equal"]
  ]
  return values + processes


def around() -> dict[str, Any]:
  """The date, the machine and what the values depend on."""
  return {
    "date": datetime.date.today().isoformat(),
    "environment": machine.environment(),
    "xla_flags": os.environ.get("XLA_FLAGS", ""),
    "meshes": [",".join(map(str, m)) for m in scaling_values.MESHES],
    "sizes": {**dataclasses.asdict(SIZES), "steps": STEPS},
    "tolerances": scaling_values.TOLERANCES,
    "edge": scaling_values.EDGE,
  }


def write(path: str, part: str, made: Any) -> dict[str, Any]:
  """Writes a part of the result, beside those that the file has.

  Args:
    path: the file; empty for none.
    part: name of the part.
    made: the part; of a mapping, the entries to be replaced.

  Returns:
    The whole result.
  """
  file = pathlib.Path(path)
  found = json.loads(file.read_text()) if path and file.exists() else {}
  if isinstance(made, Mapping):
    made = {**found.get(part, {}), **made}
    made = {name: made[name] for name in CASES if name in made}
  found = {**found, **around(), part: made}
  found["failed"] = failures(found)
  if path:
    file.write_text(json.dumps(found, indent=1) + "\n")
  return found


def main(chosen: Config) -> int:
  found: dict[str, Any] = {}
  names: Sequence[str] = chosen.cases or tuple(CASES)
  for name in names if "values" in chosen.parts else ():
    row = {}
    for mesh, cell in scaling_values.cells(name):
      row[mesh] = cell
      print(name, mesh, json.dumps(cell), file=sys.stderr, flush=True)
    jax.clear_caches()
    found = write(chosen.write, "values", {name: row})
  if "exchanges" in chosen.parts:
    found = write(chosen.write, "exchanges", scaling_exchanges.rows())
  if "processes" in chosen.parts:
    found = write(chosen.write, "processes", scaling_processes.rows())
  failed = found["failed"]
  print("\n".join(failed or ["all agree"]))
  return 1 if failed else 0


if __name__ == "__main__":
  # Before the first use of JAX, which then has this many CPU devices.
  os.environ["JAX_PLATFORMS"] = "cpu"
  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_num_cpu_devices", DEVICES)
  config.run(main, Config)
