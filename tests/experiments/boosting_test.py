"""A run on the residual of a saved SAE: recorded, evaluated whole, refused."""

import json
import pathlib
import shutil

import numpy as np
from absl.testing import absltest, parameterized

import saejax
from saejax.data.store import create
from saejax.sae import ensembles, files
from tests import toy
from tests.experiments import script

D, N = 16, 32
SIZES = {"bucket_rows": 2048, "shard_rows": 1024, "chunk_rows": 256}
ABOUT = {
  "model": {"name": "planted"},
  "site": {"layer": 2, "point": "resid_post"},
}


class BoostingTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    truth = np.random.default_rng(0).normal(size=(2 * N, D))
    rng = np.random.default_rng(1)
    z = rng.gamma(2.0, size=(5_000, 2 * N)) * (rng.random((5_000, 2 * N)) < 0.1)
    self.x = (z @ truth + 3).astype(np.float32)
    for name, rows in (("store", self.x[:4_000]), ("held", self.x[4_000:])):
      create.write_store(self.folder / name, rows, about=ABOUT, **SIZES)

  def train(self, name, *more):
    return script.run(
      "train",
      f"--run_dir={self.folder / name}",
      f"--store={self.folder / 'store'}",
      f"--held_out={self.folder / 'held'}",
      f"--sae.n={N}",
      "--sae.k=4",
      "--train.batch_rows=64",
      "--train.epochs=4",
      *more,
    )

  def trained(self, name, *more):
    """The folder of the SAE and its point."""
    code, _, err = self.train(name, *more)
    self.assertEqual(code, 0, err)
    record = json.loads((self.folder / name / "results.json").read_text())
    (point,) = record["points"]
    return self.folder / name / "saes" / f"n{N}-k4-seed0", point

  def test_two_stages_reconstruct_x_better_and_say_what_they_are(self):
    first, one = self.trained("first")
    second, two = self.trained("second", f"--sae.residual_of={first}")
    third, three = self.trained("third", f"--sae.residual_of={second}")
    self.assertNotIn("residual_of", one)
    recorded = {"folder": str(first), "content": files.content(first)}
    self.assertEqual(two["residual_of"], recorded)
    self.assertEqual(saejax.about(second)["residual_of"], recorded)
    flags = (self.folder / "second" / "run.flags").read_text()
    self.assertIn(f"\n--sae.residual_of={first}\n", flags)
    held = self.x[4_000:]
    spread = np.square(held - held.mean(axis=0)).sum()
    errors = []
    for folder, point in ((first, one), (second, two), (third, three)):
      x_hat = np.asarray(saejax.load(folder)(held))
      errors.append(np.square(held - x_hat).sum() / spread)
      self.assertAlmostEqual(point["fvu"], errors[-1], places=4)
    self.assertLess(errors[1], 0.8 * errors[0])
    self.assertLess(errors[2], errors[1])
    stages = ensembles.stages_of(saejax.load(third))
    self.assertLen(stages, 3)
    toy.assert_trees_equal(stages[0], saejax.load(first))

  def test_the_identity_is_the_content_of_the_sae(self):
    first, _ = self.trained("first")
    flag = f"--sae.residual_of={first}"
    self.trained("second", flag)
    moved = self.folder / "moved"
    shutil.copytree(first, moved)
    code, _, err = self.train("second", f"--sae.residual_of={moved}")
    self.assertEqual(code, 0, err)
    files.save(toy.sae(d=D, n=N), moved)
    code, _, err = self.train("second", f"--sae.residual_of={moved}")
    self.assertEqual(code, 2, err)
    self.assertIn("sae.residual_of=", err)

  def test_the_identity_of_a_finetuned_sae_is_that_content_too(self):
    for seed in (0, 1):
      files.save(toy.sae(d=D, n=N, seed=seed), self.folder / f"sae{seed}")
    kept = ("--sae.recipe=ssae", "--sae.t=1")
    flags = lambda name: (*kept, f"--sae.init_from={self.folder / name}")
    run = lambda name: script.run(
      "train",
      f"--run_dir={self.folder / 'run'}",
      f"--store={self.folder / 'store'}",
      f"--held_out={self.folder / 'held'}",
      f"--sae.n={N}",
      "--train.batch_rows=64",
      *flags(name),
    )
    self.assertEqual(run("sae0")[0], 0)
    shutil.move(self.folder / "sae0", self.folder / "moved")
    code, _, err = run("moved")
    self.assertEqual(code, 0, err)
    self.assertEqual(run("sae1")[0], 2)
    code, _, err = run("sae0")
    self.assertEqual(code, 2)
    self.assertStartsWith(err.splitlines()[-1], "--sae.init_from=")

  @parameterized.parameters(
    ("missing", (), "must be the folder of a saved SAE"),
    ("narrow", (), "every stage must have the width 16"),
    ("elsewhere", (), r"site.layer=3 \(now 2\)"),
    ("other_model", (), r"model.name=gpt2 \(now planted\)"),
    ("good", ("--sae.prep=scale",), "cannot stand beside prep"),
  )
  def test_what_cannot_be_the_first_stage_is_refused(self, name, more, rule):
    site = {**ABOUT["site"], "layer": 3}
    abouts = {
      "narrow": {},
      "elsewhere": {"site": site},
      "other_model": {"model": {"name": "gpt2"}},
      "good": {},
    }
    if name in abouts:
      sae = toy.sae(d=8 if name == "narrow" else D, n=N)
      files.save(sae, self.folder / name, about=abouts[name])
    code, _, err = self.train(
      "run", f"--sae.residual_of={self.folder / name}", *more
    )
    self.assertEqual(code, 2, err)
    self.assertRegex(err, f"^--sae.residual_of=.*{rule}")
    self.assertFalse((self.folder / "run").exists())


if __name__ == "__main__":
  absltest.main()
