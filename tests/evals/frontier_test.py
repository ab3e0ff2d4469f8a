"""Tests of saejax.evals.frontier."""

import numpy as np
from absl.testing import absltest

from saejax.evals import frontier


def point(method, l0, fvu, seed=0, **more):
  return {
    "site": "here",
    "method": method,
    "family": "row",
    "k": round(l0),
    "coefficient": 1.0,
    "seed": seed,
    "status": "ok",
    "l0": l0,
    "fvu": fvu,
    "dead": 0.1,
    "parameters": 100,
    "encode_flops": 10.0,
    "seconds": 1.0,
    **more,
  }


def topk(l0, seed=0):
  """FVU falls with L0 along a line in logarithms, at another height a seed."""
  return (1 + seed) * l0**-0.5


class AgainstTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.points = [
      point("topk", l0, topk(l0, seed), seed)
      for l0 in (8, 32)
      for seed in (0, 1)
    ]

  def of(self, *points):
    found = frontier.against([*self.points, *points], "topk")
    return found[-1]

  def test_topk_is_at_1(self):
    found = self.of()
    self.assertEqual(found["method"], "topk")
    self.assertAlmostEqual(found["log_ratio"], 0)
    self.assertEqual(found["settings"], 2)
    self.assertEqual(found["over_parameters"], 1)

  def test_ratio_is_at_the_l0_and_seed_of_each_point(self):
    found = self.of(
      *(
        point("gba", l0, ratio * topk(l0, seed), seed, parameters=150)
        for l0, seed, ratio in ((9.5, 0, 2), (20, 0, 2), (12, 1, 3))
      )
    )
    self.assertAlmostEqual(found["log_ratio"], np.log([2, 3]).mean())
    self.assertAlmostEqual(found["log_ratio_sd"], np.log([2, 3]).std(ddof=1))
    self.assertEqual(found["over_parameters"], 1.5)

  def test_points_out_of_range_or_frozen_do_not_count(self):
    found = self.of(
      point("gba", 9, 2 * topk(9)),
      point("gba", 50, 9.0, dead=0.9),
      point("gba", 10, 9.0, status="frozen"),
    )
    self.assertAlmostEqual(found["log_ratio"], np.log(2))
    self.assertEqual((found["settings"], found["dead"]), (1, 0.1))
    found = self.of(point("gba", 50, 0.1))
    self.assertIsNone(found["log_ratio"])


if __name__ == "__main__":
  absltest.main()
