"""results.json and results.csv: the results of a run and their environment.

  {config, environment, data,
   points: [{n, k, seed, learning_rate, status, tokens, nmse, fvu, l0, dead,
             cosine, seconds, group_seconds, density, ...}],
            with --downstream_tokens also ce_increase, ce_recovered (_low, _high)
            or cosine_distance, neighbours_kept, and those of the controls (_zero,
            _mean, _pca, _random), see `studies.downstream.flat`
   fit: {alpha, beta_k, beta_n, gamma, zeta, eta, r2, intervals,
         holdout_error, ...} or null, fit_reason: reason for no fit, or null,
   seconds: {set-up, harvest, compile, train, ...} of the process up to the
            plots, or null,
   downstream: {tokens_asked, tokens, documents, clean} or {tokens_asked, windows}
               of the evaluation in the model, or null; of scaling runs}

The JSON is strict: non-finite numbers are null. Files are replaced atomically, so
that a reader sees either the earlier results or these.
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

# The first columns, in this order; others follow in alphabetical order.
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
  seconds: Mapping[str, float] | None = None,
) -> dict[str, Any]:
  """Builds the content of results.json.

  Args:
    config: a config dataclass or mapping.
    points: one record per trained SAE.
    fit: the scaling law, or None.
    fit_reason: the reason if there is no fit.
    data: facts about the rows: model, site, numbers of rows.
    environment: environment of the run; that of this process by default.
    seconds: what the time of this process was spent on.
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
      "seconds": None if seconds is None else dict(seconds),
    }
  )


def plain(value: Any) -> Any:
  """Converts values to types of JSON; non-finite numbers become None.

  Args:
    value: numbers, arrays, mappings and sequences, possibly nested.

  >>> plain({"a": np.arange(2), "b": float("nan")})
  {'a': [0, 1], 'b': None}
  """
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
  """Writes results.json and results.csv into a folder.

  Args:
    results: the content, see `collect`.
    folder: folder of the run.

  Raises:
    InputError: the disk is full, or the folder is not writable; earlier files
      do not change.
  """
  folder = pathlib.Path(folder)
  text = json.dumps(plain(results), indent=1, allow_nan=False) + "\n"
  content = table(results["points"]).encode()
  durable.write_file(folder / JSON, text.encode(), field="run_dir")
  durable.write_file(folder / CSV, content, field="run_dir")


def read(folder: str | os.PathLike[str]) -> dict[str, Any]:
  """Reads results.json in a folder.

  Args:
    folder: folder of a finished run.

  Raises:
    InputError: the file does not exist or is damaged.
  """
  return durable.read_json(
    pathlib.Path(folder) / JSON,
    field="run_dir",
    remedy="give the folder of a finished run",
  )


def table(points: Sequence[Mapping[str, Any]]) -> str:
  """Formats points as CSV, one row per point, without nested values.

  Args:
    points: records of SAEs.

  >>> print(table([{"n": 8, "k": 2}]), end="")
  n,k
  8,2
  """
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
