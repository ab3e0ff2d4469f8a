"""A run folder: one process, one set of flags.

run_dir/
  run.flags           every flag; --flagfile=run_dir/run.flags repeats it
  n512/               one group of members of equal shape, on one stream
    checkpoints/ metrics.jsonl events/ points.json
  saes/n512-k8-seed0/ a trained SAE, for saejax.load
"""

import contextlib
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from saejax import config as configs
from saejax.errors import InputError
from saejax.training import lock

FLAGS = "run.flags"


@contextlib.contextmanager
def opened(run_dir: str, config: Any) -> Iterator[pathlib.Path]:
  """The run folder, locked, its flags written, or refused.

  Raises:
    InputError: another process uses it, or a run with other flags is in it.
  """
  path = pathlib.Path(run_dir)
  with lock.RunLock(path):
    flags = path / FLAGS
    draft = path / f".{FLAGS}.draft"
    configs.write(draft, config)
    if flags.exists() and flags.read_text() != draft.read_text():
      theirs, ours = (set(f.read_text().splitlines()) for f in (flags, draft))
      draft.unlink()
      differing = sorted(theirs - ours) or sorted(ours - theirs)
      raise InputError(
        "run_dir",
        run_dir,
        f"holds a run with other flags ({', '.join(differing)[:120]})",
        f"name another run_dir, or repeat that run with --flagfile={flags}",
      )
    os.replace(draft, flags)
    yield path
