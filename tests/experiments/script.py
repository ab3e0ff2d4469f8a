"""Runs a script of experiments/ in this process, as the command line would."""

import contextlib
import io
import pathlib

from absl import flags

from saejax import command, config

ROOT = pathlib.Path(__file__).resolve().parents[2]


def load(name: str):
  """The module that experiments/<name>.py runs."""
  return command.module(name)


def run(name: str, *arguments: str) -> tuple[int, str, str]:
  """Exit code, standard output and standard error of a script."""
  module = load(name)
  out, err = io.StringIO(), io.StringIO()
  code, before = 0, set(flags.FLAGS)
  try:
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
      config.run(module.main, module.Config, [f"{name}.py", *arguments])
  except SystemExit as leave:
    if isinstance(leave.code, str):
      code = 1
      err.write(leave.code + "\n")
    else:
      code = leave.code or 0
  finally:
    for name in set(flags.FLAGS) - before:
      delattr(flags.FLAGS, name)
    flags.FLAGS.unparse_flags()
    flags.FLAGS.mark_as_parsed()
  return code, out.getvalue(), err.getvalue()
