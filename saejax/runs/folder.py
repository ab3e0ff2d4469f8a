"""A run folder, which has a lock, an identity and the flags of the run.

run_dir/
  identity.json       settings that determine the results
  run.flags           every flag; --flagfile=run_dir/run.flags repeats it
  n512/               one group of members of equal shape, on one stream
    fingerprint.json checkpoints/ metrics.jsonl metrics.csv events/
                      points.json
  arms/topk.json      points of a study's arm; arms/topk/ is as a group
  saes/n512-k8-seed0/ a trained SAE, for saejax.load

The folder can be moved, since no file in it contains its path.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from saejax import config as configs
from saejax import durable, processes
from saejax.errors import InputError
from saejax.runs.config import SAEConfig
from saejax.training import config as train_config
from saejax.training import lock
from saejax.training.fingerprint import differences

FLAGS, IDENTITY = configs.RUN_FLAGS, "identity.json"
ARMS = "arms"  # folder of a study's arms
# Settings that do not determine results: paths, intervals of logs and
# checkpoints, devices (which may change the last bits), and what is measured of
# trained SAEs. Whether rows are computed online shows in the others.
NO_RESULT = frozenset(
  {
    "run_dir",
    "dir",  # of the sums of a pass
    "save_seconds",
    "online",
    "downstream_tokens",
    "harvest.dir",
    *processes.FLAGS,
    *(f"train.{name}" for name in train_config.NO_RESULT),
  }
)
PATHS = ("model", "corpus")  # settings that may name a file


@contextlib.contextmanager
def opened(
  run_dir: str | os.PathLike[str],
  config: Any,
  *,
  stores: Mapping[str, str] | None = None,
) -> Iterator[pathlib.Path]:
  """Locks a run folder and writes the run's identity and flags.

  Open it after all checks that need no work.

  Args:
    run_dir: the folder.
    config: all settings of the run.
    stores: content of each store by the name of its setting; replaces the path
      in the identity.

  Yields:
    The folder.

  Raises:
    InputError: the folder is in use by another process, has another run, or is
      not that of all processes.
  """
  path = pathlib.Path(run_dir)
  ours = identity(config, stores or {})
  processes.agree(ours, remedy="give all processes the same files")
  processes.check_shared(path)
  with contextlib.ExitStack() as stack:
    processes.first(lambda: _prepared(path, ours, config, stack))
    stack.enter_context(processes.logged(path))
    yield path


def _prepared(
  path: pathlib.Path,
  ours: Mapping[str, Any],
  config: Any,
  stack: contextlib.ExitStack,
) -> None:
  """Locks the folder, refuses that of another run, writes what the run is."""
  stack.enter_context(lock.RunLock(path))
  file = path / IDENTITY
  # It is written before the flags: flags alone have lost it.
  if file.exists() or (path / FLAGS).exists():
    remedy = "restore it, or name another run_dir"
    theirs = durable.read_json(file, field="run_dir", remedy=remedy)
    if differing := differences(theirs, ours):
      more = f", {len(differing) - 1} more" if differing[1:] else ""
      raise InputError(
        "run_dir",
        path,
        f"has a run with {differing[0]}{more}",
        "give another run_dir, or repeat that run with "
        f"--flagfile={path / FLAGS}",
      )
  text = json.dumps(ours, indent=1, sort_keys=True) + "\n"
  durable.write_file(file, text.encode(), field="run_dir")
  configs.write(path / FLAGS, config, omit=("run_dir", *processes.FLAGS))


def identity(config: Any, stores: Mapping[str, str]) -> dict[str, Any]:
  """Returns the settings that determine the results.

  Args:
    config: config of the run; SAEs that it names stand for their content.
    stores: content hashes by the name of the setting.
  """
  settings = dataclasses.asdict(config)
  for name in settings:
    if isinstance(part := getattr(config, name), SAEConfig):
      settings[name] = part.decisive()
  found = _decisive(settings, "")
  return json.loads(json.dumps({**found, **stores}))


def _decisive(settings: Mapping[str, Any], prefix: str) -> dict[str, Any]:
  decisive: dict[str, Any] = {}
  for name, value in settings.items():
    full = prefix + name
    if ".".join(full.split(".")[-2:]) in NO_RESULT:
      continue
    if isinstance(value, Mapping):
      found = _decisive(value, full + ".")
      if found or not value:  # not those of which nothing is left
        decisive[name] = found
    elif name in PATHS and value and pathlib.Path(value).exists():
      decisive[name] = str(pathlib.Path(value).resolve())
    else:
      decisive[name] = value
  return decisive
