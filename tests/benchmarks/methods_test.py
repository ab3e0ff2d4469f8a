"""docs/methods.md says what benchmarks/results/methods.json has."""

import importlib.util
import json
import pathlib

from absl.testing import absltest

from saejax.errors import InputError

SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "benchmarks/methods.py"


def load():
  """The script as a module: benchmarks/ is not a package."""
  spec = importlib.util.spec_from_file_location("methods", SCRIPT)
  assert spec and spec.loader
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


class MethodsTest(absltest.TestCase):
  def test_the_page_is_that_of_the_results(self):
    methods = load()
    found = json.loads(methods.RESULTS.read_text())
    self.assertEqual(methods.PAGE.read_text(), methods.text(found))
    for record in found["claims"]["claims"]:
      self.assertIn(record["verdict"], ("holds", "does not hold", "undecided"))

  def test_an_older_run_does_not_judge_what_has_changed_since(self):
    methods = load()
    of = json.loads(methods.RESULTS.read_text())["claims"]
    old = {name: {"rows": 1, "held_out": 1} for name in of["sites"]}
    new = {name: {**site, "commit": "abc"} for name, site in old.items()}
    said = "measured before thresholds were estimated from rows"
    lines = methods.claims_table({**of, "sites": old}).splitlines()
    for line in lines:
      if line.startswith(("| llama_scope:", "| ortsae:")):
        self.assertIn(f"not judged: {said}", line)
    self.assertNotIn(said, methods.claims_table({**of, "sites": new}))

  def test_claims_between_divided_and_other_gradients_are_not_judged(self):
    methods = load()
    of = json.loads(methods.RESULTS.read_text())["claims"]
    said = "not judged: measured when gradients were normalised for one"
    study = {k: v for k, v in of["study"].items() if k != "clip_norm"}
    old = methods.claims_table({**of, "study": study}).splitlines()
    line = next(t for t in old if t.startswith("| feature_choice: lower"))
    self.assertIn(said, line)
    alike = {**of, "study": {**study, "clip_norm": "unit"}}
    self.assertNotIn(said, methods.claims_table(alike))

  def test_a_run_replaces_its_own_sites_and_keeps_others(self):
    methods = load()
    stored = json.loads(methods.RESULTS.read_text())["architectures"]
    (first, *others) = stored["sites"]
    new = [{**s, "dead": 0.5} for s in stored["summary"] if s["site"] == first]
    site = {**stored["sites"][first], "commit": "abc"}
    run = {**stored, "summary": new, "sites": {first: site}}
    found = methods.with_sites(stored, run)
    self.assertEqual([*found["sites"]], [first, *others])
    self.assertLen(found["summary"], len(stored["summary"]))
    for s in found["summary"]:
      self.assertEqual(s["dead"] == 0.5, s["site"] == first)
    self.assertNotIn(first, methods.older(found))
    with self.assertRaisesRegex(InputError, "architectures=.*the k of"):
      methods.with_sites(stored, {**run, "k": [1]})

  def test_a_run_without_results_is_refused(self):
    folder = self.create_tempdir().full_path
    with self.assertRaisesRegex(InputError, "claims=.*finish that run"):
      load().read(folder, "claims", "claims")


if __name__ == "__main__":
  absltest.main()
