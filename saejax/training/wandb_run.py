"""A run's scalars at Weights & Biases, an optional package.

Each group of members is one run there. Its id is kept in `wandb.json` in the
group's folder, so that a resumed run continues it; W&B's own files are in
`wandb/` beside it. Steps that a resumed run repeats have equal values, and W&B
keeps the first. `WANDB_MODE=offline` and W&B's other variables apply.
"""

import importlib
import importlib.util
import json
import os
import pathlib
import secrets
from collections.abc import Mapping
from typing import Any

import jax

from saejax import durable, flagfiles
from saejax.errors import InputError

RECORD = "wandb.json"
_DEPTH = 3  # folders between that and a group's folder, at most
_LOGIN_SECONDS = 60  # after which a prompt for a key is given up
_REFUSED = "/\\#?%:"  # characters that a project's name cannot have


def check(project: str) -> None:
  """Checks the setting before any work is done.

  Args:
    project: the project; "" for no W&B.

  Raises:
    InputError: the name is impossible, or the package is missing.
  """
  if not project:
    return
  if len(project) > 128 or set(project) & set(_REFUSED):
    rule = f"must have at most 128 characters, none of {_REFUSED}"
    raise InputError("train.wandb", project, rule, "give the project's name")
  spec = importlib.util.find_spec("wandb")
  # A folder of that name, such as W&B makes, is found as a package without file.
  if spec is None or spec.origin is None:
    raise InputError(
      "train.wandb",
      project,
      "needs the package wandb, which is not installed",
      "run: pip install 'saejax[wandb]', or leave the flag out",
    )


class WandbRun:
  """One run at W&B. Any of its calls may fail, and nothing depends on them.

  Args:
    folder: of the group.
    project: name of the project.
    settings: JSON-able settings, shown where the folder is in no run with flags.
  """

  def __init__(
    self, folder: pathlib.Path, project: str, settings: Mapping[str, Any]
  ):
    wandb: Any = importlib.import_module("wandb")
    path = folder / RECORD
    if path.exists():
      own = durable.read_json(path, field="run_dir")["id"]
    else:
      own = secrets.token_hex(8)  # draws nothing that the run draws
      durable.write_file(path, json.dumps({"id": own}).encode() + b"\n")
    self._run = wandb.init(
      project=project,
      id=own,
      name=f"{folder.parent.name}/{folder.name}",
      group=folder.parent.name,
      dir=str(folder),
      config=_flags(folder) or json.loads(json.dumps(settings)),
      resume="allow",
      reinit="create_new",  # several groups may train at once
      settings=wandb.Settings(
        silent=True, console="off", login_timeout=_LOGIN_SECONDS
      ),
    )

  def scalars(self, step: int, now: float, tags: Mapping[str, float]) -> None:
    """Adds scalars of a step.

    Args:
      step: the step.
      now: time in seconds since 1970; W&B takes its own.
      tags: values by name.
    """
    del now
    self._run.log(dict(tags), step=step)

  def close(self) -> None:
    """Ends the run, after what was added is sent or written."""
    self._run.finish()


def opened(
  folder: str | os.PathLike[str] | None,
  project: str,
  settings: Mapping[str, Any],
) -> WandbRun | None:
  """Opens the run of a group; None where it is not wanted.

  Args:
    folder: of the group; None for a run that writes nothing.
    project: name of the project; "" for none.
    settings: as for `WandbRun`.
  """
  if folder is None or not project or jax.process_index() != 0:
    return None
  return WandbRun(pathlib.Path(folder), project, settings)


def _flags(folder: pathlib.Path) -> dict[str, str]:
  """The flags of the run that a folder is in, by name; none if there are none."""
  for path in [*folder.absolute().parents][:_DEPTH]:
    if (path / flagfiles.RUN_FLAGS).exists():
      return flagfiles.values(path / flagfiles.RUN_FLAGS)
  return {}
