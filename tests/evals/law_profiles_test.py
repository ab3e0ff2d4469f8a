"""Tests of saejax.evals.law_profiles."""

import numpy as np
import scipy.stats
from absl.testing import absltest

from saejax.evals import law_profiles, least_squares, power_laws

TRUTH = np.array([-0.30, -0.05, -0.12, -0.025, -2.0, -0.2])


def minima(truth, ns, ks, noise, *, seeds=1, seed=0):
  rng = np.random.default_rng(seed)
  n, k = (v.ravel().astype(float) for v in np.meshgrid(ns, ks, indexing="ij"))
  y = power_laws.log_surface(truth, n, k)
  y = y + noise * rng.standard_normal(y.shape)
  n, k, y = (np.repeat(v, seeds) for v in (n, k, y))
  cell = np.repeat(np.arange(len(n) // seeds), seeds)
  return power_laws.Surface(n, k, y).fit(0), cell


class IntervalsTest(absltest.TestCase):
  def test_with_little_noise_it_is_the_t_interval_of_linear_regression(self):
    ns, ks = [2**i for i in range(8, 18)], (8, 16, 32, 64, 128, 256)
    found, cell = minima(TRUTH, ns, ks, 1e-5)
    got = law_profiles.intervals(found, cell, 0.9)
    residuals = found.found.residuals[0]
    jacobian = found.surface.model.jacobian(found.found.theta[0])
    jacobian = jacobian @ np.linalg.inv(found.surface.units.matrix)
    freedom = len(cell) - 6
    variance = residuals @ residuals / freedom
    spread = np.diag(np.linalg.inv(jacobian.T @ jacobian)) * variance
    reach = scipy.stats.t.ppf(0.95, freedom) * np.sqrt(spread)
    want = np.stack([found.parameters - reach, found.parameters + reach], 1)
    np.testing.assert_allclose(
      (got - want) / reach[:, None], np.zeros((6, 2)), atol=0.02
    )

  def test_the_cost_has_risen_by_what_is_allowed_at_each_end(self):
    found, cell = minima(TRUTH, (512, 1024, 2048, 4096), (4, 8, 16, 32), 0.003)
    ends = law_profiles.intervals(found, cell)
    surface, residuals = found.surface, found.found.residuals[0]
    root = np.sqrt(1 + (residuals / found.scale) ** 2)
    variance = np.sum((residuals / root) ** 2) / 10 / np.mean(root**-3)
    allowed = scipy.stats.t.ppf(0.975, 10) ** 2 * variance / 2
    matrix = surface.units.matrix
    for row, pair in zip(matrix, ends, strict=True):
      span = np.linalg.svd(row[None])[2][1:].T
      for end in pair[np.isfinite(pair)]:
        starts = np.concatenate(
          [found.found.theta[:4], surface.starts((0.1, 0.5, 0.9), (0.0, 1.0))]
        )
        missing = (end - starts @ row) / (row @ row)
        held = least_squares.solve(
          surface.model,
          surface.log_loss,
          starts + missing[:, None] * row,
          found.scale,
          within=np.tile(span, (len(starts), 1, 1)),
        )
        rise = (held.cost.min() - found.found.cost[0]) / allowed
        self.assertAlmostEqual(rise, 1.0, delta=0.03)

  def test_a_second_term_that_is_not_there_has_open_ends(self):
    truth = TRUTH.copy()
    truth[4] = -20.0
    found, cell = minima(truth, (512, 1024, 2048, 4096), (4, 8, 16, 32), 0.003)
    low, high = law_profiles.intervals(found, cell).T
    self.assertEqual(low[4], -np.inf)
    np.testing.assert_array_equal([low[5], high[5]], [-np.inf, np.inf])
    self.assertTrue(np.all(np.isfinite(low[:4]) & np.isfinite(high[:4])))
    self.assertTrue(np.all((low < truth) & (truth < high)))

  def test_seeds_that_agree_are_not_more_data(self):
    grid = (512, 1024, 2048, 4096), (4, 8, 16, 32)
    once = law_profiles.intervals(*minima(TRUTH, *grid, 0.003))
    twice = law_profiles.intervals(*minima(TRUTH, *grid, 0.003, seeds=2))
    np.testing.assert_allclose(once, twice, rtol=0.01, atol=1e-3)

  def test_a_higher_level_is_wider(self):
    found = minima(TRUTH, (512, 1024, 2048, 4096), (4, 8, 16, 32), 0.001)
    inner = law_profiles.intervals(*found, level=0.8)
    outer = law_profiles.intervals(*found, level=0.99)
    self.assertTrue(np.all(outer[:, 0] < inner[:, 0]))
    self.assertTrue(np.all(outer[:, 1] > inner[:, 1]))


if __name__ == "__main__":
  absltest.main()
