"""Tests of saejax.evals.ensembles."""

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from saejax.evals import ensembles
from tests import toy


class ConnectivityTest(absltest.TestCase):
  def test_it_counts_pairs_that_ever_meet(self):
    # 0 meets 1, 1 meets 2, 3 is never on: (0, 1, 2) and both pairs twice.
    z = jnp.asarray([[1.0, 2, 0, 0], [0, -1, 3, 0]])
    got = ensembles.connectivity(lambda x: x, [z[:1], z[1:]])
    self.assertAlmostEqual(got, 1 - 7 / 16)
    with self.assertRaisesRegex(ValueError, "at least one batch"):
      ensembles.connectivity(lambda x: x, [])


class StabilityTest(absltest.TestCase):
  def test_of_a_permuted_dictionary_it_is_1(self):
    W = toy.rows(40, 16)
    order = np.random.default_rng(0).permutation(40)
    for how in ("assigned", "nearest"):
      self.assertAlmostEqual(
        ensembles.stability(W, 2 * W[order], how), 1, places=5
      )

  def test_nearest_is_at_least_assigned(self):
    W, other = toy.rows(40, 16, seed=1), toy.rows(40, 16, seed=2)
    nearest = ensembles.stability(W, other, "nearest")
    self.assertGreaterEqual(nearest, ensembles.stability(W, other))
    with self.assertRaisesRegex(ValueError, "assigned or nearest"):
      ensembles.stability(W, other, "mean")


class DiversityTest(absltest.TestCase):
  def test_near_duplicates_count_once(self):
    W = toy.dictionary(20, 64)
    self.assertEqual(ensembles.diversity(W), 20)
    near = W + 0.02 * toy.rows(20, 64)
    self.assertEqual(ensembles.diversity(jnp.concatenate([W, near])), 20)
    self.assertEqual(ensembles.diversity(jnp.concatenate([W, -W])), 40)


if __name__ == "__main__":
  absltest.main()
