"""results.json and results.csv: the results of a run and their environment.

  {config, environment, data,
   points: [{n, k, seed, learning_rate, status, tokens, nmse, fvu, l0, dead,
             cosine, seconds, group_seconds, density, ...}],
   fit: {alpha, beta_k, beta_n, gamma, zeta, eta, r2, intervals,
         holdout_error, ...} or null, fit_reason: null or why there is none}

Strict JSON: what is not finite is null. Files are replaced in one step, so that
a reader sees the earlier results or these, never a part.
"""

import csv
import dataclasses
import io
import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from saejax import durable, machine
from saejax.evals import scaling_law

JSON = "results.json"
CSV = "results.csv"

# Columns that come first, in this order; others follow by name.
COLUMNS = (
  "n",
  "k",
  "seed",
  "learning_rate",
  "status",
  "tokens",
  "nmse",
  "fvu",
  "l0",
  "dead",
  "cosine",
  "seconds",
  "group_seconds",
)


def collect(
  *,
  config: Any,
  points: Sequence[Mapping[str, Any]],
  fit: scaling_law.Fit | None = None,
  fit_reason: str | None = None,
  data: Mapping[str, Any] | None = None,
  environment: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
  """The content of results.json, from what a run has.

  Args:
    config: a config dataclass or mapping.
    points: one record per trained SAE.
    fit: the scaling law, where there is one.
    fit_reason: the reason if there is no fit.
    data: facts about the rows: model, site, numbers of rows.
    environment: of the run; by default of this process.
  """
  if dataclasses.is_dataclass(config) and not isinstance(config, type):
    config = dataclasses.asdict(config)
  return plain(
    {
      "config": config,
      "environment": environment or machine.environment(),
      "data": data or {},
      "points": list(points),
      "fit": None if fit is None else fit.record(),
      "fit_reason": fit_reason,
    }
  )


def plain(value: Any) -> Any:
  """Converts values to JSON's types; non-finite numbers become None."""
  if isinstance(value, Mapping):
    return {str(k): plain(v) for k, v in value.items()}
  if isinstance(value, (list, tuple, set, frozenset)):
    return [plain(v) for v in value]
  if isinstance(value, (np.ndarray, np.generic)) or hasattr(
    value, "__jax_array__"
  ):
    return plain(np.asarray(value).tolist())
  if value is None or isinstance(value, (bool, int, str)):
    return value
  if isinstance(value, float):
    return value if math.isfinite(value) else None
  if hasattr(value, "tolist"):  # arrays on a device
    return plain(value.tolist())
  return str(value)


def write(results: Mapping[str, Any], folder: str | os.PathLike[str]) -> None:
  """Writes results.json and results.csv into the folder.

  Raises:
    InputError: no space, or the folder cannot be written to; earlier files
      are as they were.
  """
  folder = pathlib.Path(folder)
  text = json.dumps(plain(results), indent=1, allow_nan=False) + "\n"
  content = table(results["points"]).encode()
  durable.write_file(folder / JSON, text.encode(), field="run_dir")
  durable.write_file(folder / CSV, content, field="run_dir")


def read(folder: str | os.PathLike[str]) -> dict[str, Any]:
  """The content of results.json in a folder."""
  return durable.read_json(
    pathlib.Path(folder) / JSON,
    field="run_dir",
    remedy="name the folder of a finished run",
  )


def table(points: Sequence[Mapping[str, Any]]) -> str:
  """Points as CSV, one row each; nested values (histograms) are left out."""
  rows = [
    {k: v for k, v in plain(p).items() if not isinstance(v, (dict, list))}
    for p in points
  ]
  present = {name for row in rows for name in row}
  columns = [c for c in COLUMNS if c in present or not rows]
  columns += sorted(present - set(COLUMNS))
  out = io.StringIO(newline="")
  writer = csv.DictWriter(out, columns, restval="", lineterminator="\n")
  writer.writeheader()
  writer.writerows(rows)
  return out.getvalue()
