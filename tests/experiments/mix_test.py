"""Training on a mix of stores from the command line."""

import json
import pathlib

import numpy as np
from absl.testing import absltest, parameterized

from saejax.data.store import create
from saejax.training import log
from tests.experiments import script

D, N = 8, 16
SIZES = {"bucket_rows": 1024, "shard_rows": 512, "chunk_rows": 128}


class MixTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    rng = np.random.default_rng(0)
    for name, rows, d in (("a", 2000, D), ("b", 900, D), ("c", 900, D + 1)):
      x = rng.normal(size=(rows, d)).astype(np.float32)
      columns = {"x": x, "doc": np.arange(rows) // 9}
      create.write_store(self.folder / name, columns, **SIZES)
    held = rng.normal(size=(500, D)).astype(np.float32)
    create.write_store(self.folder / "held", held, **SIZES)

  def train(self, store, *more):
    paths = [f"{self.folder / one[0]}{one[1:]}" if one else "" for one in store]
    return script.run(
      "train",
      f"--run_dir={self.folder / 'run'}",
      f"--store={','.join(paths)}",
      f"--held_out={self.folder / 'held'}",
      f"--sae.n={N}",
      "--sae.k=2",
      "--train.batch_rows=50",
      *more,
    )

  def test_weights_are_read_recorded_and_part_of_the_run(self):
    code, _, err = self.train(("a:3", "b:1"), "--train.steps=120")
    self.assertEqual(code, 0, err)
    record = json.loads((self.folder / "run/results.json").read_text())
    about = record["data"]["train"]
    self.assertEqual([s["weight"] for s in about["stores"]], [3, 1])
    self.assertEqual(about["rows"], 2900)
    rows = [
      r["members"]["rows"]
      for r in log.read(self.folder / f"run/n{N}")
      if r["kind"] == "rows"
    ]
    self.assertAlmostEqual(rows[1]["epochs_0"], 101 * 37.5 / 2000, delta=0.001)
    self.assertAlmostEqual(rows[1]["epochs_1"], 101 * 12.5 / 900, delta=0.002)
    code, _, err = self.train(("a:1", "b:1"), "--train.steps=120")
    self.assertEqual(code, 2)
    self.assertIn("has a run with store", err)

  @parameterized.parameters(
    (("a:0", "b:1"), "--store=0.0: must be positive"),
    (("a", "b:1"), "--store=.*must be one per store"),
    (("a:1", "c:1"), "--store=.*has d=9"),
    (("a", "a"), "--store=.*is in the mix twice"),
    (("a", ""), "--store=.*must name the folder"),
    (("a:1", "b:99"), "--train.batch_rows=950: a batch has .* rows of"),
  )
  def test_bad_mixes_are_refused_by_flag(self, store, text):
    code, _, err = self.train(store, "--train.batch_rows=950")
    self.assertEqual(code, 2)
    self.assertRegex(err, text)
    self.assertFalse((self.folder / "run").exists())


if __name__ == "__main__":
  absltest.main()
