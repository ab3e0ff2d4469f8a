"""Lengths of function bodies and of files: what is over the limit only shrinks."""

import ast
import pathlib

from absl.testing import absltest

from tests import structure_test

ROOT = structure_test.ROOT
BODY_LINES = 60  # of a function, its docstring apart
FILE_LINES = 400

# What is longer today. A length may fall, and its line goes when it is within
# the limit; nothing is added.
LONG_BODIES = {
  "tests/contract.py check": 70,
  "tests/golden/make_peers.py compute": 73,
}
LONG_FILES: dict[str, int] = {}


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
  """Lines from the first statement after the docstring to the last."""
  body = function.body[ast.get_docstring(function) is not None :]
  return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def long_bodies() -> dict[str, int]:
  """Functions over the limit, "file name" -> lines."""
  found: dict[str, int] = {}
  for path in structure_test.python_files():
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
      if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        continue
      if (lines := body_lines(node)) > BODY_LINES:
        name = f"{path} {node.name}"
        found[name] = max(lines, found.get(name, 0))
  return found


def long_files() -> dict[str, int]:
  """Files over the limit, path -> lines."""
  count = lambda path: pathlib.Path(ROOT, path).read_text().count("\n")
  lengths = {path: count(path) for path in structure_test.python_files()}
  return {path: n for path, n in lengths.items() if n > FILE_LINES}


class RatchetTest(absltest.TestCase):
  def test_no_function_body_grows_over_the_limit(self):
    over = {
      name: lines
      for name, lines in long_bodies().items()
      if lines > LONG_BODIES.get(name, BODY_LINES)
    }
    self.assertEmpty(over, f"bodies of more than {BODY_LINES} lines")

  def test_no_file_grows_over_the_limit(self):
    over = {
      path: lines
      for path, lines in long_files().items()
      if lines > LONG_FILES.get(path, FILE_LINES)
    }
    self.assertEmpty(over, f"files of more than {FILE_LINES} lines")

  def test_what_is_short_enough_is_not_listed(self):
    self.assertEmpty(sorted(LONG_BODIES.keys() - long_bodies().keys()))
    self.assertEmpty(sorted(LONG_FILES.keys() - long_files().keys()))


if __name__ == "__main__":
  absltest.main()
