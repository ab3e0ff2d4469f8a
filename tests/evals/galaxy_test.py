"""Tests of saejax.evals.dictionary.galaxy: clouds of known spectra and entropies."""

import numpy as np
from absl.testing import absltest, parameterized

from saejax.errors import InputError
from saejax.evals.dictionary import galaxy


def cloud(rows, d, alpha, seed=0):
  """Gaussian rows whose covariance has eigenvalues r^-alpha, in a random basis."""
  rng = np.random.default_rng(seed)
  basis = np.linalg.qr(rng.standard_normal((d, d)))[0]
  scale = np.arange(1, d + 1) ** (-alpha / 2)
  return (rng.standard_normal((rows, d)) * scale) @ basis


class SpectrumTest(absltest.TestCase):
  def test_the_exponent_of_a_power_law_is_found(self):
    values = galaxy.spectrum(cloud(6000, 200, 0.7))
    found = galaxy.power_law(values)
    self.assertAlmostEqual(found.alpha, 0.7, delta=0.05)
    self.assertLess(found.low, found.alpha)
    self.assertLess(found.high - found.low, 0.1)
    flat = galaxy.spectrum(galaxy.gaussian(6000, 200))
    self.assertLess(galaxy.power_law(flat).alpha, 0.2)

  def test_the_interval_is_that_of_the_slope(self):
    # An exact law with one outlier: the interval by hand.
    values = np.arange(1, 31) ** -0.5
    values[14] *= 1.3
    found = galaxy.power_law(np.sort(values)[::-1], first=1, last=30)
    x, y = np.log(np.arange(1, 31)), np.log(np.sort(values)[::-1])
    slope, intercept = np.polyfit(x, y, 1)
    residual = y - slope * x - intercept
    se = np.sqrt((residual**2).sum() / 28 / ((x - x.mean()) ** 2).sum())
    self.assertAlmostEqual(found.alpha, -slope)
    self.assertAlmostEqual(found.high - found.alpha, 2.0484 * se, places=4)

  def test_refuses_ranks_that_are_not_there(self):
    values = np.append(np.arange(1, 21) ** -1.0, np.zeros(5))
    with self.assertRaisesRegex(InputError, "^last=21: .*20"):
      galaxy.power_law(values, first=1, last=21)
    with self.assertRaisesRegex(InputError, "^first=9: "):
      galaxy.power_law(values, first=9, last=10)


class EntropyTest(parameterized.TestCase):
  @parameterized.parameters(1, 3)
  def test_of_a_gaussian_it_is_the_closed_form(self, k):
    scale = np.array([1, 2, 0.5, 1, 3])
    x = np.random.default_rng(0).standard_normal((2000, 5)) * scale
    self.assertAlmostEqual(
      galaxy.entropy(x, k=k), galaxy.gaussian_entropy(scale**2), delta=0.1
    )

  def test_the_paper_s_estimate_is_not(self):
    x = np.random.default_rng(0).standard_normal((2000, 5))
    self.assertAlmostEqual(galaxy.gaussian_entropy(np.ones(5)), 7.09, places=1)
    self.assertAlmostEqual(galaxy.entropy(x), 7.09, delta=0.1)
    # As in their notebook, with psi(k + 1) and eigenvalues for the unit ball.
    far = np.linalg.norm(x[:, None] - x[None], axis=-1)
    rho = np.sort(far, axis=1)[:, 1] + 0.01
    values = np.linalg.eigvalsh(np.cov(x, rowvar=False))
    want = np.log(values).mean() + np.log(1999) + 0.577216 - 1
    want += 5 * np.log(rho).mean()
    self.assertAlmostEqual(galaxy.entropy_compat(x), want, places=5)
    self.assertLess(want, 6)

  def test_distances_are_exact_far_from_the_origin(self):
    x = np.array([[1e8], [1e8 + 0.5], [1e8 + 2]])
    np.testing.assert_allclose(
      galaxy.neighbour_distance(x, 1), [0.5, 0.5, 1.5], atol=1e-6
    )

  def test_blocks_do_not_matter(self):
    x = np.random.default_rng(0).standard_normal((50, 3))
    far = np.sort(np.linalg.norm(x[:, None] - x[None], axis=-1), axis=1)
    for k in (1, 4):
      with absltest.mock.patch.object(galaxy, "_ROWS", 7):
        np.testing.assert_allclose(galaxy.neighbour_distance(x, k), far[:, k])

  def test_clusters_have_more_than_their_control(self):
    rng = np.random.default_rng(0)
    centres = 3 * rng.standard_normal((20, 8))
    x = centres[rng.integers(20, size=1200)] + 0.3 * rng.standard_normal(
      (1200, 8)
    )
    how = {"components": 5, "points": 600, "draws": 4}
    found = galaxy.clustering(x, **how)
    self.assertGreater(found.value, found.control + 1)
    self.assertAlmostEqual(found.control, 0, delta=0.2)
    self.assertLess(found.sd, 0.2)
    plain = galaxy.clustering(rng.standard_normal((1200, 8)), **how)
    self.assertAlmostEqual(plain.value, plain.control, delta=0.2)
    self.assertEqual(found.record()["clustering_points"], 600)

  def test_refuses_equal_points_and_too_many_components(self):
    x = np.repeat(np.random.default_rng(0).standard_normal((20, 3)), 2, axis=0)
    with self.assertRaisesRegex(InputError, "^x=40 of them: .*1 equal"):
      galaxy.entropy(x)
    self.assertTrue(np.isfinite(galaxy.entropy(x, k=2)))
    with self.assertRaisesRegex(InputError, "^components=4: .*3"):
      galaxy.clustering(x, components=4)
    with self.assertRaisesRegex(InputError, "^k=40: "):
      galaxy.entropy(x, k=40)


if __name__ == "__main__":
  absltest.main()
