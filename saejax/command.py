"""The command `saejax`: harvest, train and the experiments by name.

saejax scaling --preset=quickstart
saejax train --help

Args:
  name: name of the command.
"""

import importlib
import sys
from collections.abc import Sequence
from typing import Any

from saejax import config, interrupt, terminal
from saejax.errors import InputError

# Name -> the module with its `main` and `Config`; the docstring is its help.
COMMANDS = {
  "harvest": "saejax.studies.harvest",
  "train": "saejax.studies.train",
  "scaling": "saejax.studies.scaling",
  "plan": "saejax.studies.plan",
  "evaluate": "saejax.studies.evaluate",
  "probe": "saejax.studies.probe",
  "dashboard": "saejax.studies.dashboard",
  "compare": "saejax.studies.compare",
  "hypotheses": "saejax.studies.hypotheses",
  "dark_matter": "saejax.studies.dark_matter",
  "universality": "saejax.studies.universality",
  "verify": "saejax.studies.verify",
  "info": "saejax.studies.info",
  "merge": "saejax.studies.merge",
  "convert": "saejax.studies.convert",
  "allocation": "saejax.studies.allocation",
  "architectures": "saejax.studies.architectures",
  "bias_adaptation": "saejax.studies.bias_adaptation",
  "claims": "saejax.studies.claims.study",
  "ensembling": "saejax.studies.ensembling",
  "geometry": "saejax.studies.geometry",
  "variational": "saejax.studies.variational",
}


def module(name: str) -> Any:
  """Imports the module of a command.

  Args:
    name: name of the command, a key of `COMMANDS`.

  Raises:
    InputError: there is no such command.
  """
  if name not in COMMANDS:
    raise _unknown(name)
  return importlib.import_module(COMMANDS[name])


def run(name: str, argv: Sequence[str] | None = None) -> None:
  """Runs a command, as the script of that name in experiments/ does.

  Args:
    name: name of the command.
    argv: the command line, with the program first; by default `sys.argv`.
  """
  interrupt.install()  # before jax is imported
  what = f"{name}: importing JAX and what the command needs"
  with terminal.busy(what, after_seconds=0.5):
    script = module(name)
    from saejax import compile_cache

  argv = named(argv or sys.argv, getattr(script, "POSITIONAL", ()))
  with compile_cache.enabled():
    config.run(script.main, script.Config, argv)


def named(argv: Sequence[str], names: Sequence[str]) -> list[str]:
  """A command line whose first arguments without a name are given one.

  Args:
    argv: the command line, with the program first.
    names: names of the flags that may be given without theirs, in order.

  >>> named(["compare", "x", "y", "--store=s"], ("a", "b"))
  ['compare', '--a=x', '--b=y', '--store=s']
  """
  left, found = list(names), list(argv[:1])
  value = False  # whether the argument is the value of the flag before it
  for argument in argv[1:]:
    flag = argument.startswith("-")
    if left and not flag and not value:
      argument = f"--{left.pop(0)}={argument}"
    value = flag and "=" not in argument
    found.append(argument)
  return found


def main(argv: Sequence[str] | None = None) -> None:
  """The entry point: the first argument is the command, the rest its flags.

  Args:
    argv: the arguments without the program; by default those of `sys.argv`.

  Raises:
    SystemExit: with code 2 where there is no such command.
  """
  argv = list(sys.argv if argv is None else argv)
  name, rest = (argv[1], argv[2:]) if argv[1:] else ("--help", [])
  if name in config.HELP:
    print(usage())
    return
  if name not in COMMANDS:
    print(_unknown(name), file=sys.stderr)
    raise SystemExit(2)
  run(name, [f"saejax {name}", *rest])


def _unknown(name: str) -> InputError:
  rule = f"must be one of {', '.join(COMMANDS)}"
  return InputError("command", name, rule, "see saejax --help")


def usage() -> str:
  """The help text: each command with the first line of its own help."""
  lines = [
    "saejax COMMAND [--preset=NAME] [--flagfile=FILE] [--NAME=VALUE]",
    "",
  ]
  for name in COMMANDS:
    first = (module(name).__doc__ or "").strip().splitlines()[0]
    lines.append(f"  {name:16} {first}")
  lines += ["", "saejax COMMAND --help lists the flags of a command."]
  return "\n".join(lines)
