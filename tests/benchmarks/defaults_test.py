"""Tests of benchmarks/defaults.py: settings differ one at a time."""

import json
import pathlib
from unittest import mock

import numpy as np
from absl.testing import absltest

from benchmarks import defaults


class DefaultsTest(absltest.TestCase):
  def test_each_setting_departs_alone_and_is_trained(self):
    folder = pathlib.Path(self.create_tempdir().full_path)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(8100, 8)).astype(np.float32)
    np.save(folder / "x.npy", x[:8000])
    np.save(folder / "h.npy", x[8000:])
    config = defaults.DefaultsConfig(
      rows=str(folder / "x.npy"),
      held_out=str(folder / "h.npy"),
      site="drawn",
      n=16,
      k=2,
      write=str(folder / "out.json"),
    )
    tried = defaults.departures(config, 8000, 8)
    self.assertEqual(tried[0], {})
    self.assertTrue(all(len(given) == 1 for given in tried[1:-1]))
    self.assertEqual(tried[-1]["k_aux"], 4)  # of the paper: d/2
    some = [
      {},
      {"learning_rate": 1e-4},
      {defaults.B2: 0.9},
      {"batch_rows": 64},
      tried[-1],
    ]
    with mock.patch.object(defaults, "departures", lambda *_: some):
      defaults.main(config)
    found = json.loads((folder / "out.json").read_text())["settings"]
    self.assertEqual(
      [row["setting"] for row in found],
      ["defaults", "learning_rate", "b2", "batch_rows", defaults.PAPERS],
    )
    self.assertLen({row["FVU"] for row in found[:4]}, 4)
    self.assertLess(float(found[3]["FVU"]), float(found[1]["FVU"]))

  def test_the_settings_given_are_those_that_depart(self):
    config = defaults.DefaultsConfig(
      rows="", held_out="", site="", settings=("k_aux", defaults.PAPERS)
    )
    tried = defaults.departures(config, 8000, 384)
    self.assertEqual(tried[:2], [{}, {"k_aux": 64}])
    self.assertEqual(tried[2]["k_aux"], 256)
    self.assertLen(tried, 3)


if __name__ == "__main__":
  absltest.main()
