"""Tests of saejax.report.curves."""

import numpy as np
from absl.testing import absltest

from saejax.report import axes, curves

PNG = b"\x89PNG"


class CurvesTest(absltest.TestCase):
  def test_means_and_deviations_are_over_points_that_agree(self):
    points = [
      {"k": 4, "l0": 4.0, "fvu": 0.4},
      {"k": 4, "l0": 6.0, "fvu": 0.2},
      {"k": 2, "l0": 2.0, "fvu": 0.8},
      {"k": 2, "l0": None, "fvu": 0.1},
    ]
    curve = curves.over_seeds(points, "l0", "fvu", by=("k",))
    np.testing.assert_allclose(curve.x, [2, 5])
    np.testing.assert_allclose(curve.y, [0.8, 0.3])
    np.testing.assert_allclose(curve.y_spread, [0, np.std([0.4, 0.2], ddof=1)])

  def test_arms_without_numbers_are_left_out(self):
    points = [
      {"arm": "a", "k": 1, "coefficient": 1, "l0": 1.0, "fvu": 0.5},
      {"arm": "b", "k": 1, "coefficient": 1, "l0": 1.0, "fvu": None},
    ]
    self.assertEqual(list(curves.by_arm(points, "l0", "fvu")), ["a"])

  def test_every_plot_is_drawn(self):
    curve = curves.Curve([1, 2, 4], [0.5, 0.3, 0.2], y_spread=[0.1, 0.1, 0.1])
    axis = curves.Axis("x", log=True)
    made = (
      curves.panels({"one": {"a": curve}, "two": {"b": curve}}, axis, axis),
      curves.heat(
        {"d = 2": np.array([[0.1, np.nan], [0.5, 1.0]])},
        ("n", (1, 2)),
        ("s", (3, 4)),
        "share",
      ),
      curves.intervals(
        [("a", -0.1, -0.2, -0.05, "holds"), ("b", 0.0, -0.1, 0.1, "undecided")],
        "effect",
        groups={"holds": "green", "undecided": "grey"},
        legend="verdict",
      ),
      curves.intervals(
        [("a", 1.1, 1.0, 1.2, "one"), ("a", 0.9, 0.8, 1.0, "two")],
        "ratio",
        at=1.0,
      ),
    )
    for figure in made:
      self.assertStartsWith(axes.png(figure), PNG)


if __name__ == "__main__":
  absltest.main()
