"""Tests of saejax.evals.scaling_law, loss_grid and power_laws."""

import json

import numpy as np
from absl.testing import absltest, parameterized

from saejax import errors
from saejax.evals import loss_grid, power_laws, scaling_law

# The constants quoted for GPT-4's SAEs, and a surface like that of a small
# model: steeper in n, less irreducible loss.
GPT4 = np.array([-0.50, 0.26, -0.017, -0.042, -1.32, -0.085])
SMALL = np.array([-0.30, -0.05, -0.12, -0.025, -2.0, -0.2])
NS, KS = (512, 1024, 2048, 4096), (4, 8, 16, 32)
WIDE_NS = tuple(2**i for i in range(9, 20))
WIDE_KS = (8, 16, 32, 64, 128, 256)


def planted(truth, ns=NS, ks=KS, *, noise=0.0, seeds=1, seed=0):
  rng = np.random.default_rng(seed)
  return [
    {
      "n": n,
      "k": k,
      "seed": s,
      "nmse": float(
        scaling_law.surface(truth, n, k) * np.exp(noise * rng.standard_normal())
      ),
    }
    for n in ns
    for k in ks
    for s in range(seeds)
  ]


def worst(fit, truth, ns=NS, ks=KS):
  """Largest |log(fitted / true)| on a grid."""
  n, k = np.meshgrid(ns, ks)
  true = scaling_law.surface(truth, n, k)
  return np.abs(np.log(fit.predict(n, k) / true)).max()


def worst_between(one, two):
  """Largest difference in log loss of the resampled surfaces of two fits."""
  n, k = np.meshgrid(NS, KS)
  return max(
    np.abs(
      power_laws.log_surface(a, n, k) - power_laws.log_surface(b, n, k)
    ).max()
    for a, b in zip(one.samples, two.samples, strict=True)
  )


class RecoveryTest(parameterized.TestCase):
  @parameterized.product(truth=(GPT4, SMALL), noise=(0.0, 0.002, 0.01))
  def test_recovers_a_planted_surface_within_noise(self, truth, noise):
    points = planted(truth, noise=noise)
    fit = scaling_law.fit(points, resamples=0)
    self.assertLess(worst(fit, truth), 2.5 * noise + 1e-6)
    self.assertGreater(fit.r2, 0.99)
    self.assertLess(fit.holdout.error, 4 * noise + 1e-5)

  @parameterized.parameters((GPT4,), (SMALL,))
  def test_recovers_the_parameters_where_the_grid_identifies_them(self, truth):
    exact = scaling_law.fit(planted(truth, WIDE_NS, WIDE_KS), resamples=0)
    np.testing.assert_allclose(exact.parameters, truth, atol=1e-4)
    noisy = planted(truth, WIDE_NS, WIDE_KS, noise=0.002, seed=3)
    fit = scaling_law.fit(noisy, resamples=100)
    np.testing.assert_allclose(fit.parameters, truth, atol=0.1)
    for (low, high), value in zip(fit.intervals().values(), truth, strict=True):
      self.assertBetween(value, low, high)

  def test_an_outlier_does_not_bend_the_surface(self):
    points = planted(SMALL, WIDE_NS, WIDE_KS, noise=0.002)
    points[30]["nmse"] *= 1.5
    fit = scaling_law.fit(points, resamples=0)
    self.assertLess(worst(fit, SMALL, WIDE_NS, WIDE_KS), 0.01)
    residual = np.abs(fit.residuals)
    self.assertEqual(residual.argmax(), 30)
    self.assertGreater(residual[30], 0.35)

  def test_the_same_points_give_the_same_fit(self):
    points = planted(SMALL, noise=0.002)
    one = scaling_law.fit(points, resamples=5)
    two = scaling_law.fit(points, resamples=5)
    np.testing.assert_array_equal(one.parameters, two.parameters)
    np.testing.assert_array_equal(one.samples, two.samples)

  def test_units_convert_back(self):
    n, k = map(np.ravel, np.meshgrid(NS, KS))
    surface = power_laws.Surface(n, k, np.zeros(16))
    theta = surface.units.standardised(GPT4)
    np.testing.assert_allclose(surface.units.raw(theta), GPT4, atol=1e-12)
    np.testing.assert_allclose(
      surface.model.predict(theta), power_laws.log_surface(GPT4, n, k)
    )

  def test_a_minimum_that_few_starts_find_is_found(self):
    # gamma > 0: from 8 starts around a flat second term, 60 % of such data
    # sets ended in a minimum of several times the cost.
    truth = np.array([4.74, -0.98, -1.13, 0.151, -0.98, -0.363])
    for seed in range(3):
      fit = scaling_law.fit(planted(truth, noise=0.002, seed=seed), resamples=0)
      self.assertLess(worst(fit, truth), 0.005)


class BootstrapTest(parameterized.TestCase):
  def test_bands_cover_the_planted_surface_and_new_saes(self):
    n, k = np.meshgrid(NS, KS)
    true = scaling_law.surface(GPT4, n, k)
    rng = np.random.default_rng(9)
    covered, predicted, wider = [], [], []
    for seed in range(4):
      points = planted(GPT4, noise=0.01, seed=seed)
      fit = scaling_law.fit(points, resamples=50)
      low, high = fit.band(n, k, noise=False)
      self.assertEqual(low.shape, n.shape)
      covered.append((low < true) & (true < high))
      new = true * np.exp(0.01 * rng.standard_normal((20, *n.shape)))
      low2, high2 = fit.band(n, k)
      predicted.append((low2 < new) & (new < high2))
      wider.append(np.log(high2 / low2).mean() > np.log(high / low).mean())
    self.assertGreater(np.mean(covered), 0.9)
    self.assertGreater(np.mean(predicted), 0.85)
    self.assertTrue(all(wider))

  def test_seeds_of_one_cell_are_drawn_together(self):
    # Seeds that agree are not more data: what the law misses is the same.
    points = planted(SMALL, noise=0.01)
    once = scaling_law.fit(points, resamples=5)
    twice = scaling_law.fit(points + points, resamples=5)
    self.assertGreater(once.samples.std(axis=0).min(), 0)
    self.assertLess(worst_between(once, twice), 1e-4)
    for one, two in zip(
      once.band(700, np.array(KS)), twice.band(700, np.array(KS)), strict=True
    ):
      np.testing.assert_allclose(one, two, rtol=0.01)

  def test_bands_are_widened_as_residuals_were_shrunk(self):
    fit = scaling_law.fit(planted(SMALL, noise=0.01), resamples=0)
    # 16 cells, 10 degrees of freedom: t is 2.228, z is 1.960.
    self.assertAlmostEqual(fit.widening(), 1.6**0.5 * 2.228 / 1.960, places=3)
    self.assertAlmostEqual(fit.widening(0.5), 1.6**0.5 * 0.700 / 0.6745, 3)


class RefusalTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ("two_n", (512, 1024), KS, "sae.n=512,1024"),
    ("two_k", NS, (4, 8), "sae.k=4,8"),
    ("nothing", (), (), "sae.n=none"),
  )
  def test_small_grids_are_refused_by_name(self, ns, ks, names):
    with self.assertRaisesRegex(errors.InputError, names) as caught:
      scaling_law.fit(planted(SMALL, ns, ks))
    self.assertIn("at least 3 n x 3 k and 9", str(caught.exception))
    self.assertNotIn("\n", str(caught.exception))

  def test_eight_pairs_are_refused(self):
    points = planted(SMALL, NS[:3], KS[:3])[:-1]
    with self.assertRaisesRegex(errors.InputError, "8 pairs"):
      scaling_law.fit(points)

  def test_seeds_do_not_count_as_points(self):
    points = planted(SMALL, NS[:3], KS[:3], seeds=3)[:-3]
    with self.assertRaisesRegex(errors.InputError, "8 pairs"):
      scaling_law.fit(points)


class DegenerateTest(parameterized.TestCase):
  def test_nine_points_fit_without_extrapolation(self):
    points = planted(SMALL, NS[:3], KS[:3], noise=0.01)
    fit = scaling_law.fit(points, resamples=20)
    self.assertIsNone(fit.holdout)
    self.assertIn("2,048", fit.holdout_reason)
    record = fit.record()
    self.assertIsNone(record["holdout_error"])
    self.assertEqual(
      [s["holdout_error"] for s in record["comparison"]], 3 * [None]
    )

  def test_unusable_points_are_dropped_and_listed(self):
    points = planted(SMALL, noise=0.002)
    points[0]["nmse"] = float("nan")
    points[5]["nmse"] = None
    points[9]["nmse"] = 0.0
    points[12]["status"] = "frozen"
    fit = scaling_law.fit(points, resamples=5)
    self.assertLen(fit.grid.loss, 12)
    reasons = [(d["n"], d["k"], d["reason"]) for d in fit.grid.dropped]
    self.assertEqual(
      reasons,
      [
        (512, 4, "loss is not finite"),
        (1024, 8, "loss is not finite"),
        (2048, 8, "loss is not positive"),
        (4096, 4, "status frozen"),
      ],
    )
    self.assertLess(worst(fit, SMALL), 0.02)

  def test_of_several_learning_rates_the_best_is_fitted(self):
    good = [p | {"learning_rate": 4e-3} for p in planted(SMALL)]
    bad = [
      p | {"learning_rate": 1e-3, "nmse": 1.3 * p["nmse"]}
      for p in planted(SMALL)
    ]
    fit = scaling_law.fit(bad + good, resamples=0)
    self.assertLess(worst(fit, SMALL), 1e-4)
    self.assertLen(fit.grid.dropped, 16)
    self.assertIn("0.004 is better", fit.grid.dropped[0]["reason"])

  @parameterized.named_parameters(
    ("equal", lambda n, k, r: 0.3),
    ("tiny", lambda n, k, r: 1e-12 / (n * k)),
    ("steps", lambda n, k, r: 0.3 + 0.5 * ((n * k) % 3 == 1)),
    ("noise", lambda n, k, r: r.uniform()),
    ("decades", lambda n, k, r: 10.0 ** r.uniform(-8, 8)),
    ("one_cell_away", lambda n, k, r: 100.0 if n * k == 2048 else 0.1),
  )
  def test_odd_losses_never_crash(self, loss):
    rng = np.random.default_rng(0)
    points = [{"n": n, "k": k, "nmse": loss(n, k, rng)} for n in NS for k in KS]
    fit = scaling_law.fit(points, resamples=10)
    json.dumps(fit.record(), allow_nan=False)
    low, high = fit.band(np.array([[64], [10**6]]), np.array([1, 500]))
    self.assertTrue(np.all(low <= high))

  def test_equal_losses_have_no_r2(self):
    points = [{"n": n, "k": k, "nmse": 0.25} for n in NS for k in KS]
    fit = scaling_law.fit(points, resamples=3)
    self.assertIsNone(fit.r2)
    np.testing.assert_allclose(fit.predict(700, 9), 0.25, rtol=1e-3)


class SingleVariableTest(parameterized.TestCase):
  def test_laws_against_n_recover_power_and_floor(self):
    ns = [2**i for i in range(8, 18)]
    points = [
      {"n": n, "k": k, "nmse": float(np.exp(1.2) * n**-0.4 + 0.01 * k)}
      for n in ns
      for k in (4, 8, 16)
    ]
    found = scaling_law.laws(loss_grid.usable(points), "n")
    self.assertEqual([law.at for law in found], [4, 8, 16])
    for law in found:
      self.assertAlmostEqual(law.a, 1.2, places=3)
      self.assertAlmostEqual(law.b, -0.4, places=3)
      self.assertAlmostEqual(np.exp(law.c), 0.01 * law.at, places=4)
      self.assertGreater(law.r2, 1 - 1e-6)
      self.assertAlmostEqual(
        float(law.predict(ns[0])),
        float(np.exp(1.2) * ns[0] ** -0.4 + 0.01 * law.at),
        places=4,
      )

  def test_laws_against_k_recover_the_power(self):
    points = [
      {"n": n, "k": k, "nmse": 0.5 * n**-0.1 * k**-0.3} for n in NS for k in KS
    ]
    found = scaling_law.laws(loss_grid.usable(points), "k")
    self.assertLen(found, 4)
    for law in found:
      self.assertAlmostEqual(law.b, -0.3, places=6)
      self.assertIsNone(law.c)

  def test_too_few_values_give_no_law(self):
    grid = loss_grid.usable(planted(SMALL, (512, 1024), KS))
    self.assertEqual(scaling_law.laws(grid, "n"), ())
    self.assertLen(scaling_law.laws(grid, "k"), 2)


if __name__ == "__main__":
  absltest.main()
