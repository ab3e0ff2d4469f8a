"""Recipes trained from the command line, by settings that are flags."""

import contextlib
import json
import pathlib

import numpy as np
from absl.testing import absltest

from saejax.sae import files
from tests.experiments import bad_input_test, script

OWN = '''"""A recipe of a user."""

from saejax.recipes import row_sparse


def mine(d, n, *, active: int = 3, **options):
  """TopK under another name.

  Args:
    active: latents per row.
  """
  return row_sparse.topk(d, n, active, **options)
'''


class RecipesTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    self.run_dir = self.folder / "run"
    for name, rows, seed in (("store", 256, 0), ("held", 128, 1)):
      bad_input_test.make_store(self.folder / name, rows=rows, seed=seed)

  def train(self, *more):
    code, _, err = script.run(
      "train",
      f"--run_dir={self.run_dir}",
      f"--store={self.folder / 'store'}",
      f"--held_out={self.folder / 'held'}",
      "--sae.n=32",
      "--train.batch_rows=64",
      "--train.warmup_steps=1",
      *more,
    )
    self.assertEqual(code, 0, err)
    return json.loads((self.run_dir / "results.json").read_text())["points"]

  def test_bandwidth_and_theta_reach_the_run_and_are_recorded(self):
    (point,) = self.train(
      "--sae.recipe=jumprelu",
      "--sae.coefficient=0.05",
      "--sae.bandwidth=0.03",
      "--sae.theta=0.2",
    )
    self.assertEqual(point["arguments"]["bandwidth"], 0.03)
    sae = files.load(self.run_dir / "saes" / "n32-seed0")
    theta = np.asarray(sae.activation.theta)
    self.assertBetween(theta.min(), 0.1, 0.3)
    self.assertBetween(theta.max(), 0.1, 0.3)
    flags = (self.run_dir / "run.flags").read_text()
    self.assertIn("\n--sae.bandwidth=0.03\n", flags)
    self.assertIn("\n--sae.theta=0.2\n", flags)
    identity = json.loads((self.run_dir / "identity.json").read_text())
    self.assertEqual(identity["sae"]["bandwidth"], [0.03])

  def test_a_recipe_of_ones_own_is_trained_with_its_flags(self):
    (self.folder / "own_recipe_e2e.py").write_text(OWN)
    with contextlib.chdir(self.folder):
      points = self.train(
        "--sae.recipe=own_recipe_e2e:mine", "--sae.active=2,4"
      )
    self.assertEqual([p["arguments"]["active"] for p in points], [2, 4])
    for active in (2, 4):
      name = f"n32-active={active}-seed0"
      sae = files.load(self.run_dir / "saes" / name)
      self.assertEqual(sae.activation.k, active)
    page = (self.run_dir / "report.html").read_text()
    self.assertIn("There are no cards of latents: must have a tokenizer", page)
    self.assertIn("active = 4", page)
    self.assertIn("experiments/train.py --flagfile=", page)
    self.assertNotIn("The fitted law", page)


if __name__ == "__main__":
  absltest.main()
