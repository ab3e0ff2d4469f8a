"""Tests of benchmarks/law_coverage.py, and of what it has recorded."""

import json

import numpy as np
from absl.testing import absltest, parameterized

from benchmarks import law_coverage
from saejax.evals import scaling_law


class CoverageTest(parameterized.TestCase):
  @parameterized.parameters(1, 2)
  def test_intervals_cover(self, seeds):
    # Of 10 data sets a 95 % interval misses 3 or more with probability 1 %;
    # bootstrap percentiles, which cover 65 to 80 % here, do so in most draws.
    shares = law_coverage.coverage(
      np.array(law_coverage.SURFACES["gpt4"]),
      noise=0.01,
      seeds=seeds,
      datasets=10,
    )
    self.assertEqual(set(shares), {"intervals", "open"})
    self.assertGreaterEqual(min(shares["intervals"].values()), 0.8)
    self.assertGreaterEqual(np.mean(list(shares["intervals"].values())), 0.9)

  def test_every_recorded_interval_covers_92_per_cent(self):
    recorded = json.loads(law_coverage.RESULTS.read_text())
    self.assertIn("cpu", recorded["environment"])
    self.assertGreaterEqual(recorded["datasets"], 200)
    settings = {
      (c["surface"], c["noise"], c["seeds"]) for c in recorded["coverage"]
    }
    self.assertLen(settings, 12)
    self.assertEqual({seeds for _, _, seeds in settings}, {1, 2})
    for record in recorded["coverage"]:
      for name in scaling_law.PARAMETERS:
        self.assertGreaterEqual(record["intervals"][name], 0.92, record)


if __name__ == "__main__":
  absltest.main()
