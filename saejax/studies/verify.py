"""Verifies stores, saved SAEs and run folders: every byte against its checksum.

    python experiments/verify.py --path=runs/stores/store-0123456789abcdef
    saejax verify --path=runs/quickstart,runs/quickstart/saes/n512-k8-seed0

Prints a line for each folder; a damage is one line that names the file, and
exit code 2.
"""

import dataclasses
import os
import pathlib

from saejax import durable
from saejax.data.store import ledger, manifest, reader
from saejax.data.store import place as places
from saejax.errors import InputError
from saejax.runs import folder as run_folder
from saejax.sae import files
from saejax.training import checkpoint_folder, log, metrics_file

REMEDY = "restore the file from a copy, or remove it and repeat the run"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """What to verify."""

  path: tuple[str, ...]  # folders of stores, saved SAEs and runs

  def __post_init__(self):
    if not self.path:
      rule = "must name a folder"
      raise InputError("path", "", rule, "give a store, an SAE or a run folder")


def main(config: Config) -> None:
  """Verifies each folder in turn; the first damage ends it.

  Args:
    config: the folders.
  """
  for name in config.path:
    print(f"{name}: {verified(name)}")


def verified(name: str) -> str:
  """What a folder holds, once all of it was read and compared.

  Args:
    name: folder of a store, a saved SAE or a run; or URL of a store.

  Returns:
    A line of text: the kind of folder, its sizes, and "sound".

  Raises:
    InputError: a damage, naming the file; or a folder of none of these.
  """
  place = places.at(os.path.expanduser(name))
  if place.read([manifest.NAME]) or place.names(ledger.FOLDER):
    store = reader.open(place)
    store.verify()
    return f"store of {store.rows:,} rows, content {store.content}: sound"
  path = pathlib.Path(str(place))
  if (path / files.STRUCTURE).exists():
    sae = files.load(path)
    return f"SAE with n={sae.n}, d={sae.d}: sound"
  if (path / run_folder.IDENTITY).exists():
    return f"run, {_run(path)}: sound"
  raise InputError(
    "path",
    path,
    "must be the folder of a store, a saved SAE or a run",
    "name such a folder",
  )


def _run(path: pathlib.Path) -> str:
  """Counts what a run folder holds, after reading it."""
  durable.read_json(path / run_folder.IDENTITY)
  counts = dict.fromkeys(
    ("saved SAEs", "checkpoints", "records", "groups", "arms"), 0
  )
  for structure in sorted(path.glob(f"saes/*/{files.STRUCTURE}")):
    files.load(structure.parent)
    counts["saved SAEs"] += 1
  for points in sorted(path.glob("*/points.json")):
    durable.read_sealed(points, field="path", remedy=REMEDY)
    counts["groups"] += 1
  for points in sorted(path.glob(f"{run_folder.ARMS}/*.json")):
    durable.read_sealed(points, field="path", remedy=REMEDY)
    counts["arms"] += 1
  trained = [*path.glob("*"), *path.glob(f"{run_folder.ARMS}/*")]
  for metrics in sorted(folder / log.METRICS for folder in trained):
    if not metrics.is_file():
      continue
    parsed = metrics_file.parse(metrics)
    if parsed.faults:
      raise InputError("path", metrics, parsed.faults[0], REMEDY)
    counts["records"] += len(parsed.records)
  for folder in sorted(c for f in trained for c in f.glob("checkpoints/*")):
    if folder.is_dir() and folder.name.split("-")[0].isdecimal():
      if fault := checkpoint_folder.fault(folder):
        raise InputError("path", folder, fault, REMEDY)
      counts["checkpoints"] += 1
  return ", ".join(f"{count:,} {name}" for name, count in counts.items())
