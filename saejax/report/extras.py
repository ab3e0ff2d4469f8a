"""Packages that only reports need: asked for when used, not at import."""

import importlib
from typing import Any

from saejax import errors

PACKAGES = ("matplotlib", "jinja2")


def require(module: str) -> Any:
  """The imported module.

  Raises:
    InputError: its package is not installed; the remedy is the command.
  """
  try:
    return importlib.import_module(module)
  except ModuleNotFoundError as error:
    package = module.partition(".")[0]
    if error.name is None or error.name.partition(".")[0] != package:
      raise  # installed, and broken inside
    raise errors.InputError(
      "report",
      f"{package} is not installed",
      "plots and the report page need the packages of the extra 'report'",
      f"pip install {' '.join(PACKAGES)}",
    ) from None


def check() -> None:
  """Raises InputError now rather than at the end of a long run."""
  for package in PACKAGES:
    require(package)
