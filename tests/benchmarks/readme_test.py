"""Tests of benchmarks/readme.py, and that the committed README is its own."""

import json
import pathlib

from absl.testing import absltest

from benchmarks import readme

RESULTS = readme.HERE / "results"


class ReadmeTest(absltest.TestCase):
  def test_the_committed_tables_are_those_of_the_results(self):
    text = (readme.HERE / "README.md").read_text()
    self.assertEqual(
      readme.written(text, RESULTS), text, "run python benchmarks/readme.py"
    )

  def test_every_shown_file_has_a_place(self):
    text = (readme.HERE / "README.md").read_text()
    marked = [found[1] for found in readme.MARKED.findall(text)]
    self.assertContainsSubset(readme.SHOWN, marked)

  def test_every_script_that_it_names_is_there_or_to_come(self):
    text = (readme.HERE / "README.md").read_text()
    named = readme.re.findall(r"\]\((results/[^)]+)\)", text)
    self.assertNotEmpty(named)
    for path in named:
      self.assertTrue((readme.HERE / path).exists(), path)

  def test_a_new_file_is_shown_and_old_tables_go(self):
    folder = pathlib.Path(self.create_tempdir().full_path)
    text = "a\n<!-- table: other*.json -->\nold\n<!-- end -->\nb\n"
    blank = readme.written(text, folder)
    self.assertNotIn("old", blank)
    self.assertIn("Not measured", blank)
    result = {"date": "2026-01-02", "rows": [{"who": "ours", "fvu": 0.16852}]}
    (folder / "other-a.json").write_text(json.dumps(result))
    shown = readme.written(blank, folder)
    self.assertIn("2026-01-02", shown)
    self.assertIn("| ours | 0.169 |", shown)
    self.assertNotIn("Not measured", shown)
    self.assertEqual(readme.written(shown, folder), shown)


if __name__ == "__main__":
  absltest.main()
