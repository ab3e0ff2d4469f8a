"""saejax/evals/recovery.py: what of a known dictionary was found."""

import jax
import numpy as np
from absl.testing import absltest

from saejax.data import synthetic
from saejax.evals import recovery


def rows(n, d=64, seed=0):
  W = np.random.default_rng(seed).standard_normal((n, d))
  return (W / np.linalg.norm(W, axis=1, keepdims=True)).astype(np.float32)


class RecoveryTest(absltest.TestCase):
  def test_a_permuted_rescaled_copy_is_found_entirely(self):
    truth = rows(40)
    order = np.random.default_rng(1).permutation(40)
    scale = np.linspace(0.1, 9, 40, dtype=np.float32)[:, None]
    found = recovery.recovery(truth, scale * truth[order])
    for name in ("precision", "recall", "frr", "share", "matched"):
      self.assertAlmostEqual(getattr(found, name), 1, places=5)

  def test_directions_of_mmcs(self):
    truth = np.eye(4, 8, dtype=np.float32)
    found = recovery.recovery(truth, truth[:2])
    self.assertAlmostEqual(found.precision, 1)
    self.assertAlmostEqual(found.recall, 0.5)
    self.assertAlmostEqual(recovery.mmcs(truth[:2], truth), 1)
    self.assertAlmostEqual(recovery.mmcs(truth, truth[:2]), 0.5)

  def test_a_latent_serves_one_feature_in_the_assignment_only(self):
    one = rows(1)
    truth = np.concatenate([one, one, rows(1, seed=5)])
    found = recovery.recovery(truth, np.concatenate([one, rows(3, seed=6)]))
    self.assertAlmostEqual(found.frr, 2 / 3)
    self.assertAlmostEqual(found.share, 1 / 3)

  def test_fewer_latents_than_features_count_as_not_found(self):
    truth = rows(8)
    self.assertAlmostEqual(recovery.recovery(truth, truth[:2]).share, 0.25)

  def test_the_rate_falls_with_the_threshold(self):
    truth = rows(30)
    found = truth + 0.08 * np.random.default_rng(2).normal(size=truth.shape)
    rates = [recovery.recovery_rate(truth, found, t) for t in (0.5, 0.84, 0.99)]
    self.assertEqual(rates[0], 1)
    self.assertBetween(rates[1], 0.01, 0.99)
    self.assertEqual(rates[2], 0)

  def test_a_flipped_row_is_found_only_without_signs(self):
    truth = rows(6)
    found = truth * np.array([1, 1, 1, 1, 1, -1])[:, None]
    self.assertAlmostEqual(recovery.recovery(truth, found).frr, 5 / 6)
    self.assertEqual(recovery.recovery(truth, found, signed=False).frr, 1)

  def test_rows_of_norm_0_are_near_nothing(self):
    c = recovery.cosines(rows(3), np.zeros((2, 64)))
    np.testing.assert_array_equal(c, 0)

  def test_no_baseline_finds_a_sparse_dictionary(self):
    # relu-l1, check 3: the truth of that check, d 32, 64 features, 3 active.
    key, data = jax.random.split(jax.random.key(0))
    V = synthetic.directions(key, 64, 32)
    x = np.asarray(synthetic.sparse(data, 5000, V, 3.0))
    found = recovery.baselines(np.asarray(V), x, 128)
    self.assertSetEqual(set(found), {"pca", "random", "data"})
    self.assertLess(found["pca"].recall, 0.6)
    self.assertLess(found["random"].recall, 0.6)
    # Rows of the data that have one feature only are that feature.
    self.assertBetween(found["data"].recall, 0.6, 0.95)

  def test_principal_directions_are_those_of_the_data(self):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2000, 4)) * np.array([1, 3, 9, 0.1]) + 5
    found = recovery.principal(x, 4)
    want = np.eye(4)[[2, 2, 1, 1]] * np.array([1, -1, 1, -1])[:, None]
    c = (found * want).sum(axis=1)
    np.testing.assert_allclose(np.abs(c), 1, atol=1e-2)
    np.testing.assert_allclose(found[0], -found[1])


if __name__ == "__main__":
  absltest.main()
