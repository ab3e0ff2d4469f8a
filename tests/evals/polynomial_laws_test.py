"""Tests of saejax.evals.polynomial_laws."""

import numpy as np
from absl.testing import absltest

from saejax.evals import loss_grid, polynomial_laws

NS, KS = (512, 1024, 2048, 4096), (4, 8, 16)


def scores(log_loss, ns=NS):
  points = [
    {"n": n, "k": k, "nmse": np.exp(log_loss(np.log(n), np.log(k)))}
    for n in ns
    for k in KS
  ]
  return polynomial_laws.scores(loss_grid.usable(points))


class ScoresTest(absltest.TestCase):
  def test_each_law_is_exact_on_its_own_surface(self):
    line, parabola = scores(lambda x, y: 1 - 0.2 * x - 0.1 * y)
    for score in (line, parabola):
      self.assertAlmostEqual(score.r2, 1.0, places=9)
      self.assertAlmostEqual(score.holdout_error, 0.0, places=9)
    self.assertEqual(
      [(s.law, s.parameters) for s in (line, parabola)],
      [("log-linear", 3), ("quadratic", 6)],
    )

  def test_a_bend_is_left_over_by_the_straight_law_alone(self):
    c = np.log(2.0)
    line, parabola = scores(lambda x, y: 0.01 * x**2 - 0.4 * x + 0.02 * x * y)
    self.assertAlmostEqual(parabola.r2, 1.0, places=9)
    self.assertAlmostEqual(parabola.holdout_error, 0.0, places=9)
    self.assertLess(line.r2, 0.999)
    # x^2 at x0 + 2c on the line through x0 - c, x0, x0 + c, moved by 2/3 c^2
    # to their mean, is 4c^2 - 2/3 c^2 too high; with x y it is exact in y's
    # mean and off by 2c (y - mean y), on both sides alike.
    y = np.log(KS) - np.log(KS).mean()
    off = 0.01 * (4 - 2 / 3) * c**2 + 0.02 * 2 * c * y
    self.assertAlmostEqual(line.holdout_error, np.abs(off).mean(), places=9)

  def test_seeds_count_by_their_mean(self):
    rng = np.random.default_rng(0)
    points = [
      {"n": n, "k": k, "seed": s, "nmse": 0.3 + 0.01 * rng.uniform()}
      for n in NS
      for k in KS
      for s in range(3)
    ]
    grid = loss_grid.usable(points)
    means = [
      {"n": n, "k": k, "nmse": loss}
      for n, k, loss in zip(
        grid.cells()[0].n, grid.cells()[0].k, grid.cells()[0].loss, strict=True
      )
    ]
    self.assertEqual(
      polynomial_laws.scores(grid),
      polynomial_laws.scores(loss_grid.usable(means)),
    )

  def test_small_grids_have_no_extrapolation_and_equal_losses_no_r2(self):
    for score in scores(lambda x, y: 0.0 * x, NS[:3]):
      self.assertIsNone(score.holdout_error)
      self.assertIsNone(score.r2)


if __name__ == "__main__":
  absltest.main()
