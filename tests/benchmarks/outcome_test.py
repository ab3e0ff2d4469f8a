"""Tests of benchmarks/outcome.py: what is compared, and one small SAE."""

import json
import pathlib
import sys

import numpy as np
from absl.testing import absltest

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "benchmarks"))
import outcome


def run(library, fvu, seconds=10.0, *, seed=0, **setting):
  made = {"n": 64, "k": 4, "batch_rows": 512, "rate": 1e-3, "passes": 1}
  measured = {"fvu": fvu, "dead": 0.1, "seconds": seconds}
  same = {"site": "here", "library": library, "seed": seed}
  return {**same, **made, **setting, **measured}


class OutcomeTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)

  def config(self, **given):
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(1100, 8)) * np.arange(1, 9) + 3).astype(np.float32)
    np.save(self.folder / "x.npy", x[:1000])
    np.save(self.folder / "h.npy", x[1000:])
    return outcome.OutcomeConfig(
      rows=str(self.folder / "x.npy"),
      held_out=str(self.folder / "h.npy"),
      site="here",
      write=str(self.folder / "out.json"),
      **given,
    )

  def test_summary_compares_means_at_equal_rows_and_at_equal_seconds(self):
    default = {"rate": None, "batch_rows": None}
    runs = [
      run("saejax", 0.20, 4.0, **default),
      run("saejax", 0.22, 4.0, seed=1, **default),
      run("saejax", 0.16, 9.0, passes=2, **default),
      run("saejax", 0.10, 19.0, passes=4, **default),  # takes too long
      run("saejax", 0.01, 1.0, rate=2e-3),  # not the default
      run("dictionary_learning", 0.25, 10.0),
      run("dictionary_learning", 0.35, 10.0, seed=1),
      run("sae_lens", 0.28, 20.0),
      run("dictionary_learning", 0.02, n=128),
    ]
    found = outcome.summary(runs, "here", 64)
    self.assertEqual(found["peer"]["library"], "dictionary_learning")
    self.assertAlmostEqual(found["rows"], 0.21 / 0.30)
    self.assertAlmostEqual(found["seconds"], 0.16 / 0.30)
    self.assertEmpty(outcome.summary(runs, "elsewhere", 64))

  def test_more_seeds_only_for_the_defaults_and_the_best(self):
    todo = outcome.settings(1024, 16, ("sae_lens",))
    self.assertLen({json.dumps(setting) for setting in todo}, len(todo))
    runs = [
      {"site": "here", **setting, "seed": 0, "fvu": 1 / (1 + i)}
      for i, setting in enumerate(todo)
    ]
    kept = outcome.chosen(runs, todo, "here")
    peers = [s for s in kept if s["library"] == "sae_lens"]
    self.assertEqual([s["rate"] for s in peers], [None, todo[-1]["rate"]])
    self.assertLen(kept, 5 + 2)

  def test_ours_is_trained_once_and_kept(self):
    config = self.config(seeds=1, n=(16,), k=2)
    kept = outcome.Results(config.write)
    todo = {"library": "saejax", "n": 16, "k": 2, "rate": 1e-2, "passes": 2}
    todo["batch_rows"] = 50
    outcome.prepare(config, str(self.folder))
    x = np.load(self.folder / "train.npy")
    np.testing.assert_allclose([x.mean(), (x**2).mean()], [0, 1], atol=1e-5)
    found = outcome.trained(config, todo, 0, str(self.folder))
    self.assertBetween(found["fvu"], 0.01, 0.9)
    self.assertGreater(found["seconds"], 0)
    kept.add(found)
    again = outcome.Results(config.write)
    self.assertEqual(again.find({"site": "here", **todo, "seed": 0}), found)
    self.assertIsNone(again.find({"site": "here", **todo, "seed": 1}))

  def test_a_peer_that_cannot_run_is_reported(self):
    config = self.config(peers_python=sys.executable)
    outcome.prepare(config, str(self.folder))
    todo = outcome.settings(16, 2, ("no_such_library",))[-1]
    found = outcome.trained(config, todo, 0, str(self.folder))
    self.assertNotIn("fvu", found)
    self.assertIn("rror", found["error"])


if __name__ == "__main__":
  absltest.main()
