"""The examples of the README run and print what it says."""

import contextlib
import doctest
import pathlib
import re

from absl.testing import absltest

from tests.experiments import script

ROOT = pathlib.Path(__file__).resolve().parent.parent

# The quickstart with fewer rows and SAEs, for the example to read.
SMALL = (
  "--harvest.rows=4096",
  "--harvest.held_out_rows=2048",
  "--harvest.bucket_rows=4096",
  "--harvest.shard_rows=2048",
  "--harvest.chunk_rows=512",
  "--harvest.calibration_rows=512",
  "--sae.n=512",
  "--sae.k=8",
  "--train.batch_rows=256",
)


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
    self.enter_context(contextlib.chdir(self.create_tempdir().full_path))
    code, _, err = script.run(
      "scaling",
      f"--flagfile={ROOT / 'experiments/flags/quickstart.flags'}",
      *SMALL,
    )
    self.assertEqual(code, 0, err)
    parser = doctest.DocTestParser()
    path = str(ROOT / "README.md")
    test = parser.get_doctest(examples(self.text), {}, "README", path, 0)
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
