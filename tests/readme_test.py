"""The examples of the README run and print what it says."""

import doctest
import pathlib
import re
import tempfile

from absl.testing import absltest

ROOT = pathlib.Path(__file__).resolve().parent.parent


def examples(text: str) -> str:
  """The ```python blocks in order, each line at its own line number."""
  lines, inside = [], False
  for line in text.splitlines():
    fence = line.startswith("```")
    kept = inside and not fence
    lines.append(line if kept else "")
    if fence:
      inside = line.strip() == "```python" if not inside else False
  return "\n".join(lines) + "\n"


class ReadmeTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.text = (ROOT / "README.md").read_text(encoding="utf-8")

  def test_library_example_prints_what_it_says(self):
    parser = doctest.DocTestParser()
    space = {"folder": self.enter_context(tempfile.TemporaryDirectory())}
    path = str(ROOT / "README.md")
    test = parser.get_doctest(examples(self.text), space, "README", path, 0)
    self.assertNotEmpty(test.examples)
    report = []
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    runner = doctest.DocTestRunner(optionflags=options)
    runner.run(test, out=report.append)
    self.assertEqual(runner.summarize(verbose=False).failed, 0, "".join(report))

  def test_every_code_block_of_python_is_an_example(self):
    blocks = re.findall(r"```python\n(.*?)```", self.text, re.DOTALL)
    for block in blocks:
      self.assertStartsWith(block, ">>> ")

  def test_commands_are_targets_of_the_makefile(self):
    makefile = (ROOT / "Makefile").read_text()
    commands = re.findall(r"^make (\S+)", self.text, re.MULTILINE)
    self.assertContainsSubset(["scaling", "test"], commands)
    for target in commands:
      self.assertRegex(makefile, rf"(?m)^{target}:")

  def test_paths_that_it_names_are_there(self):
    named = re.findall(r"\]\(([^):#]+)\)", self.text)
    named += re.findall(r"\| `([a-z_.]+/[a-z/_]*)`", self.text)
    for path in named:
      self.assertTrue((ROOT / path).exists(), path)


if __name__ == "__main__":
  absltest.main()
