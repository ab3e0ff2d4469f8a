"""Tests of benchmarks/damage.py, and a small seeded run of it."""

import importlib
import pathlib
import random
import sys

from absl.testing import absltest, parameterized

from tests import structure_test

# A script imports its neighbours by their names.
sys.path.append(str(structure_test.ROOT / "benchmarks"))
damage = importlib.import_module("damage")


class DamageTest(parameterized.TestCase):
  def test_no_damage_is_silent_or_a_traceback(self):
    config = damage.DamageConfig(trials=120, seed=3)
    counts = damage.measure(config)
    self.assertLen(counts, len(damage.KINDS))
    for name, found in counts.items():
      self.assertEqual((found["silent"], found["crashed"]), (0, 0), name)
      self.assertGreater(found["refused"] + found["named"], 0, name)

  @parameterized.parameters(*damage.DAMAGES)
  def test_a_damage_changes_the_file_and_says_so(self, how):
    path = pathlib.Path(self.create_tempdir().full_path, "a")
    content = b"line 1\nline 2\nline 3\n"
    rng = random.Random(1)
    changed = 0
    for _ in range(20):
      path.write_bytes(content)
      done = damage.damage(rng, how, path)
      same = path.exists() and path.read_bytes() == content
      self.assertEqual(done == "", same, done)
      changed += not same
    self.assertGreater(changed, 5)

  def test_a_reader_that_believes_everything_is_found_out(self):
    kind = damage.Kind(
      name="believer",
      share=1.0,
      make=lambda folder: None,
      read=lambda folder: ((folder / "a").read_bytes(), []),
    )
    whole = pathlib.Path(self.create_tempdir().full_path, "whole")
    whole.mkdir()
    (whole / "a").write_bytes(b"0123456789")
    expected = damage.pickle.dumps(b"0123456789")
    outcomes = {
      damage.trial(random.Random(seed), kind, whole, expected)[0]
      for seed in range(30)
    }
    self.assertEqual(outcomes, {"silent", "crashed"})  # crashed: no file


if __name__ == "__main__":
  absltest.main()
