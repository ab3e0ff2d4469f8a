"""Flagfiles that come with saejax, by name: `--preset=quickstart`."""

import pathlib
from collections.abc import Sequence

from saejax.errors import InputError

FOLDER = pathlib.Path(__file__).resolve().parent


def names() -> list[str]:
  """Names of all presets."""
  return sorted(path.stem for path in FOLDER.glob("*.flags"))


def expanded(argv: Sequence[str]) -> list[str]:
  """Replaces each `--preset=NAME` of a command line by its flagfile.

  Raises:
    InputError: there is no such preset.
  """
  done, rest = [], list(argv)
  while rest:
    argument = rest.pop(0)
    name, equals, value = argument.partition("=")
    if name not in ("--preset", "-preset"):
      done.append(argument)
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
    done.append(f"--flagfile={FOLDER / f'{value}.flags'}")
  return done
