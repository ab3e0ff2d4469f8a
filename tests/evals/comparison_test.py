"""Tests of saejax.evals.comparison."""

import numpy as np
from absl.testing import absltest, parameterized
from scipy import stats

from saejax.evals import comparison


class DifferenceTest(parameterized.TestCase):
  def test_is_the_mean_of_pairs_with_students_interval(self):
    a, b = [1.0, 2.0, 4.0, 3.0], [0.5, 1.0, 2.0, 3.5]
    found = comparison.difference(a, b)
    test = stats.ttest_rel(a, b).confidence_interval(0.95)
    np.testing.assert_allclose(
      (found.effect, found.low, found.high), (0.75, test.low, test.high)
    )
    self.assertEqual(found.pairs, 4)

  def test_one_pair_has_no_interval(self):
    found = comparison.difference([2.0], [1.0])
    self.assertEqual((found.low, found.high), (-np.inf, np.inf))
    self.assertEqual(
      comparison.verdict(found, claim="higher", margin=0), comparison.UNDECIDED
    )

  def test_unequal_numbers_are_refused(self):
    with self.assertRaisesRegex(ValueError, "equally many values, got 1 and 2"):
      comparison.difference([1.0], [1.0, 2.0])

  @parameterized.parameters(
    (-0.2, -0.1, "lower", comparison.HOLDS),
    (-0.2, -0.1, "higher", comparison.FAILS),
    (0.02, 0.3, "higher", comparison.HOLDS),
    (-0.2, -0.005, "lower", comparison.UNDECIDED),
    (-0.009, 0.1, "lower", comparison.FAILS),  # at best inside the margin
    (-0.1, 0.1, "lower", comparison.UNDECIDED),
    (float("nan"), 0.1, "lower", comparison.UNDECIDED),
  )
  def test_verdict_looks_at_the_whole_interval(self, low, high, claim, want):
    found = comparison.Difference((low + high) / 2, low, high, 5)
    self.assertEqual(comparison.verdict(found, claim=claim, margin=0.01), want)


class ResampledTest(absltest.TestCase):
  def test_the_interval_is_that_of_the_normal_limit(self):
    rng = np.random.default_rng(0)
    difference = rng.normal(0.3, 2.0, 500)
    found = comparison.resampled(difference, np.full(500, 4.0))
    self.assertAlmostEqual(found.effect, difference.mean() / 4)
    half = 1.96 * difference.std() / np.sqrt(500) / 4
    self.assertAlmostEqual(found.high - found.effect, half, delta=0.1 * half)
    self.assertAlmostEqual(found.effect - found.low, half, delta=0.1 * half)

  def test_a_common_factor_of_units_has_no_part_in_it(self):
    weight = np.random.default_rng(0).uniform(1, 9, 50)
    found = comparison.resampled(0.5 * weight, weight)
    for value in (found.effect, found.low, found.high):
      self.assertAlmostEqual(value, 0.5)

  def test_one_unit_has_no_interval(self):
    found = comparison.resampled(np.array([1.0]), np.array([2.0]))
    self.assertEqual((found.effect, found.high), (0.5, np.inf))


class LogFvuTest(absltest.TestCase):
  def test_is_linear_in_log_l0_between_points(self):
    l0, fvu = [16.0, 4.0], [0.1, 0.4]
    self.assertAlmostEqual(comparison.log_fvu_at(l0, fvu, 8), np.log(0.2))
    self.assertAlmostEqual(comparison.log_fvu_at(l0, fvu, 16), np.log(0.1))

  def test_the_line_goes_on_for_a_tenth_and_no_further(self):
    l0, fvu = [4, 8, 16], [0.9, 0.4, 0.2]
    self.assertAlmostEqual(comparison.log_fvu_at(l0, fvu, 17), np.log(3.2 / 17))
    slope = np.log(0.4 / 0.9) / np.log(2)
    want = np.log(0.9) + slope * np.log(3.7 / 4)
    self.assertAlmostEqual(comparison.log_fvu_at(l0, fvu, 3.7), want)
    for at in (3.6, 17.7):
      self.assertTrue(np.isnan(comparison.log_fvu_at(l0, fvu, at)))

  def test_a_single_point_stands_for_itself(self):
    self.assertTrue(np.isnan(comparison.log_fvu_at([8], [0.4], 9)))
    self.assertAlmostEqual(comparison.log_fvu_at([8], [0.4], 8.2), np.log(0.4))


if __name__ == "__main__":
  absltest.main()
