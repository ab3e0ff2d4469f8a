"""Tests of saejax.evals.null: p values that are uniform where nothing is planted."""

import numpy as np
import scipy.stats
from absl.testing import absltest, parameterized

from saejax.errors import InputError
from saejax.evals import null


def gap(x, y):
  """Mean of the positives minus that of the negatives."""
  return float(x[y].mean() - x[~y].mean())


class NullTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ("continuous", lambda rng: rng.standard_normal(40)),
    ("mostly_ties", lambda rng: (rng.random(40) < 0.1).astype(float)),
  )
  def test_p_is_uniform_on_permuted_data(self, draw):
    rng, p = np.random.default_rng(0), []
    y = np.arange(40) < 12
    for i in range(50):
      x = draw(rng)  # without any relation to y
      draws = np.array([gap(x, z) for z in null.permuted(y, count=99, seed=i)])
      p.append(null.p_value(gap(x, y), draws, seed=i))
    self.assertGreater(scipy.stats.kstest(p, "uniform").pvalue, 0.01)
    self.assertGreaterEqual(min(p), 1 / 100)

  def test_p_of_a_planted_gap_is_the_least_and_never_0(self):
    rng = np.random.default_rng(0)
    y = np.arange(40) < 12
    x = rng.standard_normal(40) + 5 * y
    draws = [gap(x, z) for z in null.permuted(y, count=99, seed=0)]
    found = null.Null(gap(x, y), np.array(draws))
    self.assertEqual(found.p, 1 / 100)
    self.assertGreater(found.z, 4)
    self.assertEqual(found.record()["draws"], 99)
    self.assertAlmostEqual(found.sd, np.std(draws, ddof=1))

  def test_p_at_ties_is_every_rank_equally_often(self):
    draws = np.array([1.0, 1.0, 1.0, 2.0])
    p = [null.p_value(1.0, draws, seed=i) for i in range(400)]
    values, counts = np.unique(p, return_counts=True)
    np.testing.assert_allclose(values, [0.4, 0.6, 0.8, 1.0])
    self.assertGreater(scipy.stats.chisquare(counts).pvalue, 0.01)

  def test_permuted_rows_stay_together(self):
    y = np.stack([np.arange(9), 10 * np.arange(9)], axis=1)
    orders = list(null.permuted(y, count=3, seed=0))
    for order in orders:
      np.testing.assert_array_equal(order[:, 1], 10 * order[:, 0])
      self.assertCountEqual(order[:, 0].tolist(), range(9))
    self.assertFalse(np.array_equal(orders[0], orders[1]))

  def test_random_directions_have_the_norms_and_no_direction(self):
    like = np.random.default_rng(1).uniform(1, 5, (2000, 1)) * np.eye(8)[0]
    found = null.random_directions(like, seed=0)
    np.testing.assert_allclose(
      np.linalg.norm(found, axis=1), np.linalg.norm(like, axis=1)
    )
    unit = found / np.linalg.norm(found, axis=1, keepdims=True)
    self.assertLess(np.linalg.norm(unit.mean(axis=0)), 0.06)

  def test_matched_latents_are_others_of_near_density(self):
    rng = np.random.default_rng(0)
    density = 10 ** rng.uniform(-5, 0, 1000)
    density[:50] = 0
    chosen = np.argsort(-density)[:40]  # the densest: the hardest to match
    sets = null.matched(density, chosen, count=5, seed=0)
    for one in sets:
      self.assertLen(set(one.tolist()), 40)
      self.assertEmpty(set(one.tolist()) & set(chosen.tolist()))
      ratio = np.log10(density[one] / density[chosen])
      self.assertLess(np.abs(ratio).max(), 0.7)
    self.assertFalse(np.array_equal(sets[0], sets[1]))
    middle = np.argsort(density)[400:440:4]
    ratio = np.log10(
      density[null.matched(density, middle, count=20, seed=0)] / density[middle]
    )
    self.assertLess(np.abs(ratio).max(), 0.15)

  @parameterized.parameters(
    (lambda: null.p_value(1.0, np.zeros(0), seed=0), "^draws="),
    (lambda: null.p_value(1.0, np.array([np.nan]), seed=0), "^draws=NaN"),
    (lambda: null.p_value(np.nan, np.ones(3), seed=0), "^observed=NaN"),
    (
      lambda: null.matched(np.ones(5), np.arange(3), count=1, seed=0),
      "^chosen=3 latents",
    ),
    (
      lambda: null.matched(np.ones(9), np.array([1, 1]), count=1, seed=0),
      "^chosen=",
    ),
  )
  def test_refuses_what_has_no_null(self, compute, message):
    with self.assertRaisesRegex(InputError, message):
      compute()


if __name__ == "__main__":
  absltest.main()
