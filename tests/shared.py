"""The shared folder: models and data that are not part of the repository."""

import os
import pathlib
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent


def path(name: str) -> pathlib.Path:
  """The path of `name` in the shared folder.

  The folder is $SAEJAX_SHARED, or `shared` beside the repository.

  Args:
    name: a file or folder, e.g. "models/babyllama-105".

  Raises:
    unittest.SkipTest: it is not there; the reason says where it was looked for.
  """
  folder = os.environ.get("SAEJAX_SHARED") or ROOT.parent / "shared"
  found = pathlib.Path(folder, name)
  if not found.exists():
    raise unittest.SkipTest(f"no {found} (SAEJAX_SHARED names the folder)")
  return found
