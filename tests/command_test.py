"""Tests of saejax.command, and that each script runs the command of its name."""

import ast
import contextlib
import io
import pathlib
import sys

from absl.testing import absltest, parameterized

from saejax import command
from saejax.errors import InputError
from tests import shared

SCRIPTS = sorted(
  path.stem for path in pathlib.Path(shared.ROOT, "experiments").glob("*.py")
)
LAUNCHER = "launch_local"  # starts other scripts


def main(*arguments):
  """Exit code, standard output and standard error."""
  out, err, code = io.StringIO(), io.StringIO(), 0
  with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
    try:
      command.main(["saejax", *arguments])
    except SystemExit as leave:
      code = leave.code
  return code, out.getvalue(), err.getvalue()


class CommandTest(parameterized.TestCase):
  @parameterized.parameters([[]], [["--help"]], [["-h"]])
  def test_help_lists_every_command_with_what_it_does(self, arguments):
    code, out, _ = main(*arguments)
    self.assertEqual(code, 0)
    for name in command.COMMANDS:
      self.assertRegex(out, rf"  {name} +[A-Z].*\.")

  def test_an_unknown_command_is_one_line_and_exit_code_2(self):
    code, out, err = main("scalings")
    self.assertEqual((code, out, err.count("\n")), (2, "", 1))
    self.assertIn("command=scalings: must be one of harvest", err)
    with self.assertRaises(InputError):
      command.module("scalings")

  def test_every_script_runs_the_command_of_its_name(self):
    self.assertEqual(SCRIPTS, sorted([*command.COMMANDS, LAUNCHER]))
    for name in command.COMMANDS:
      text = pathlib.Path(shared.ROOT, "experiments", f"{name}.py").read_text()
      self.assertIn(f'command.run("{name}")', text)
      first = (command.module(name).__doc__ or "").splitlines()[0]
      self.assertEqual(ast.get_docstring(ast.parse(text)), first, name)

  @parameterized.parameters(
    (["x", "y", "--n=3"], ["--a=x", "--b=y", "--n=3"]),
    (["--n=3", "x", "y", "z"], ["--n=3", "--a=x", "--b=y", "z"]),
    (["--n", "3", "x", "-m=1", "y"], ["--n", "3", "--a=x", "-m=1", "--b=y"]),
  )
  def test_arguments_without_names_get_those_of_the_command(self, given, want):
    self.assertEqual(command.named(["p", *given], ("a", "b")), ["p", *want])
    self.assertEqual(command.named(["p", *given], ()), ["p", *given])

  def test_no_script_has_the_name_of_a_standard_module(self):
    self.assertEmpty(set(SCRIPTS) & set(sys.stdlib_module_names))


if __name__ == "__main__":
  absltest.main()
