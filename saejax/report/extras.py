"""Imports packages that only reports need, when they are used."""

import importlib
from typing import Any

from saejax import errors

PACKAGES = ("matplotlib", "jinja2")


def require(module: str) -> Any:
  """Imports a module of an optional package.

  Args:
    module: name of the module.

  Raises:
    InputError: its package is not installed; the remedy is the command.
  """
  try:
    return importlib.import_module(module)
  except ModuleNotFoundError as error:
    package = module.partition(".")[0]
    if error.name is None or error.name.partition(".")[0] != package:
      raise  # the package is installed, but one of its imports fails
    raise errors.InputError(
      "report",
      f"{package} is not installed",
      "plots and the report page need the packages of the extra 'report'",
      f"run: pip install {' '.join(PACKAGES)}",
    ) from None


def check() -> None:
  """Checks that the packages are installed, before a long run.

  Raises:
    InputError: a package is not installed.
  """
  for package in PACKAGES:
    require(package)
