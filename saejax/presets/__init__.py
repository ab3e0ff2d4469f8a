"""Flagfiles of the package, selected by name: `--preset=quickstart`."""

import pathlib
from collections.abc import Sequence

from saejax.errors import InputError

FOLDER = pathlib.Path(__file__).resolve().parent


def names() -> list[str]:
  """Returns the names of all presets."""
  return sorted(path.stem for path in FOLDER.glob("*.flags"))


def expanded(argv: Sequence[str]) -> list[str]:
  """Replaces each `--preset=NAME` of a command line by its flagfile.

  Args:
    argv: the arguments.

  Raises:
    InputError: there is no such preset.

  >>> expanded(["--preset=quickstart"])[0].endswith("quickstart.flags")
  True
  """
  result, rest = [], list(argv)
  while rest:
    argument = rest.pop(0)
    name, equals, value = argument.partition("=")
    if name not in ("--preset", "-preset"):
      result.append(argument)
      continue
    if not equals and rest:
      value = rest.pop(0)
    if value not in names():
      raise InputError(
        "--preset",
        value,
        f"must be one of {', '.join(names())}",
        "give the path of another file by --flagfile",
      )
    result.append(f"--flagfile={FOLDER / f'{value}.flags'}")
  return result
