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
    tried = defaults.departures(15, 8000, 16)
    self.assertEqual(tried[0], {})
    self.assertTrue(all(len(given) == 1 for given in tried[1:]))
    some = [{}, {"learning_rate": 1e-4}, {defaults.B2: 0.9}, {"batch_rows": 64}]
    with mock.patch.object(defaults, "departures", lambda *_: some):
      defaults.main(config)
    found = json.loads((folder / "out.json").read_text())["settings"]
    self.assertEqual(
      [row["setting"] for row in found],
      ["defaults", "learning_rate", "b2", "batch_rows"],
    )
    self.assertLen({row["FVU"] for row in found}, 4)
    self.assertLess(float(found[3]["FVU"]), float(found[1]["FVU"]))


if __name__ == "__main__":
  absltest.main()
