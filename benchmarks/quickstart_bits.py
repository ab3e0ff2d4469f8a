"""Compares the weights of a finished quickstart, bit for bit, with recorded ones.

  python experiments/scaling.py --flagfile=experiments/flags/quickstart.flags
  python benchmarks/quickstart_bits.py

benchmarks/results/quickstart-bits.json holds the SHA-256 of each SAE's weights
and its metrics. Bits are equal on equal hardware, versions and corpus (the
standard library of the running Python), which are recorded beside them;
elsewhere the metrics are near each other. Prints a line per SAE and exits with
1 where weights differ. --write records the run instead.
"""

import dataclasses
import hashlib
import json
import pathlib
from typing import Any

import numpy as np
from safetensors import numpy as safetensors

from saejax import config as flags
from saejax import machine
from saejax.errors import InputError

ARRAYS = ("encoder.W", "encoder.b", "decoder.W", "decoder.b")
METRICS = ("nmse", "fvu", "l0", "dead")
RECORDED = pathlib.Path(__file__).parent / "results" / "quickstart-bits.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class BitsConfig:
  """Which run is compared."""

  run_dir: str = "runs/quickstart"  # folder of the finished run
  write: bool = False  # record this run instead of comparing with it


def main(config: BitsConfig) -> int:
  found = weights(pathlib.Path(config.run_dir))
  if config.write:
    record = {"environment": machine.environment(), "saes": found}
    RECORDED.write_text(json.dumps(record, indent=1) + "\n")
    print(f"{len(found)} SAEs recorded in {RECORDED}")
    return 0
  recorded = json.loads(RECORDED.read_text())
  here = machine.environment()
  for name, theirs in recorded["environment"].items():
    if name not in ("commit", "memory_bytes") and here[name] != theirs:
      print(f"recorded with {name}={theirs}, here {here[name]}")
  differing = 0
  for name in sorted(recorded["saes"].keys() | found.keys()):
    line = _compared(recorded["saes"].get(name), found.get(name))
    differing += line != "equal"
    print(f"{name:24} {line}")
  print(f"{differing} of {len(recorded['saes'])} SAEs differ")
  return int(differing > 0)


def weights(run_dir: pathlib.Path) -> dict[str, dict[str, Any]]:
  """SHA-256 of each SAE's weights, and its metrics.

  Raises:
    InputError: the folder holds no trained SAEs.
  """
  folders = sorted((run_dir / "saes").glob("*/sae.safetensors"))
  if not folders:
    raise InputError(
      "run_dir", run_dir, "must hold trained SAEs", "run the quickstart first"
    )
  found = {}
  for path in folders:
    arrays = safetensors.load_file(path)
    total = hashlib.sha256()
    for name in ARRAYS:
      total.update(np.ascontiguousarray(arrays[name]).tobytes())
    about = json.loads((path.parent / "sae.json").read_text())["about"]
    metrics = {name: about[name] for name in METRICS}
    found[path.parent.name] = {"sha256": total.hexdigest(), **metrics}
  return found


def _compared(recorded: Any, found: Any) -> str:
  if recorded is None or found is None:
    return "only recorded" if found is None else "only in this run"
  if recorded["sha256"] == found["sha256"]:
    return "equal"
  shown = [f"{m} {recorded[m]:.6g} -> {found[m]:.6g}" for m in METRICS]
  return "differs: " + ", ".join(shown)


if __name__ == "__main__":
  flags.run(main, BitsConfig)
