"""Tests of saejax.evals.probing.targeted: ablations with known effects."""

import dataclasses

import numpy as np
import scipy.sparse
import scipy.stats
from absl.testing import absltest, parameterized

from saejax.errors import InputError
from saejax.evals.probing import minibatch_probe, probe, reseeding, targeted

C, N, D = 4, 800, 12


def converged(x, y, seed):
  """The probe at its minimum, for exact expectations."""
  return probe.logistic(x, y, l1=1e-3 * len(x), l2=0.0)


def world(seed=0):
  """x = sum_c y_c v_c with orthonormal v_c, independent y_c and z_c = y_c."""
  rng = np.random.default_rng(seed)
  y = rng.random((N, C)) < 0.5
  V = np.linalg.qr(rng.standard_normal((D, D)))[0][:C]
  z = y.astype(float)
  return targeted.Documents(z @ V, z, V), y


def spurious(strength, seed=0):
  """Two labels, each with a latent for true and one for false.

  The second label moves x by some strength times what the first one does.
  """
  rng = np.random.default_rng(seed)
  y = rng.random((N, 2)) < 0.5
  first, second = np.linalg.qr(rng.standard_normal((D, D)))[0][:2]
  V = np.stack([first, -first, strength * second, -strength * second])
  z = np.stack([y[:, 0], ~y[:, 0], y[:, 1], ~y[:, 1]], axis=1)
  z = z * rng.uniform(1, 1.3, z.shape)
  x = z @ V + 0.05 * rng.standard_normal((N, D))
  return targeted.Documents(x, z, V), y


class TPPTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ("minibatch", minibatch_probe.fit, 1), ("converged", converged, 2)
  )
  def test_one_latent_per_class_is_half_intended_and_0_unintended(
    self, fit, repeats
  ):
    documents, y = world()
    found = targeted.tpp(documents, y, counts=(0, 1), repeats=repeats, fit=fit)
    np.testing.assert_allclose(found.change[:, 0], 0)  # n = 0 changes nothing
    for change in found.change[:, 1]:
      np.testing.assert_allclose(change, 0.5 * np.eye(C), atol=1e-12)
    np.testing.assert_allclose(found.total[:, 1], 0.5)
    record = found.record()
    self.assertAlmostEqual(record["tpp_threshold_1_intended_diff_only"], 0.5)
    self.assertAlmostEqual(record["tpp_threshold_1_unintended_diff_only"], 0)
    self.assertEqual(record["tpp_threshold_0_total_metric"], 0)

  def test_a_latent_that_mixes_two_classes_has_an_unintended_effect(self):
    documents, y = world()
    rotated = np.eye(C)
    rotated[:2, :2] = np.array([[1, 1], [-1, 1]]) / np.sqrt(2)
    mixed = targeted.Documents(
      documents.x, documents.z @ rotated.T, rotated @ documents.directions
    )
    found = targeted.tpp(mixed, y, counts=(1,), repeats=1, fit=converged)
    self.assertGreater(found.unintended[0, 0], 0.01)
    self.assertLess(found.total[0, 0], 0.45)

  def test_latents_that_fire_on_negatives_are_not_ablated(self):
    documents, y = world()
    off = 1.0 - y[:, :1]
    more = 5 * (documents.directions[1:2] - documents.directions[:1])
    found = targeted.tpp(
      targeted.Documents(
        documents.x,
        np.concatenate([documents.z, off], axis=1),
        np.concatenate([documents.directions, more]),
      ),
      y,
      counts=(1,),
      repeats=1,
      fit=converged,
    )
    np.testing.assert_allclose(found.change[0, 0], 0.5 * np.eye(C), atol=1e-12)

  def test_scores_are_means_over_classes_and_over_pairs_of_classes(self):
    change = np.array([[0.4, 0.1, 0.0], [0.0, 0.2, 0.1], [0.3, 0.1, 0.3]])
    found = targeted.TPP((5,), change[None, None], ["a", "b", "c"])
    self.assertAlmostEqual(found.intended[0, 0], 0.3)
    self.assertAlmostEqual(found.unintended[0, 0], 0.1)
    wanted = np.mean([0.4 - 0.05, 0.2 - 0.05, 0.3 - 0.2])
    self.assertAlmostEqual(found.total[0, 0], wanted)

  def test_the_error_is_kept(self):
    documents, _ = world()
    found = documents.without(np.array([2]), np.arange(5))
    off = documents.z[:5, 2:3] * documents.directions[2]
    np.testing.assert_allclose(found + off, documents.x[:5])

  def test_classes_against_the_rest_are_told_apart_by_name(self):
    rng = np.random.default_rng(0)
    labels = rng.choice(["a", "b", "c"], N)
    z = (labels[:, None] == np.array(["a", "b", "c"])).astype(float)
    documents = targeted.Documents(
      z + 0.01 * rng.standard_normal((N, 3)), z, np.eye(3)
    )
    found = targeted.tpp(
      documents, labels, counts=(1,), repeats=1, fit=converged
    )
    self.assertEqual(found.classes, ["a", "b", "c"])
    self.assertGreater(found.intended[0, 0], 0.3)
    self.assertGreater(found.intended[0, 0], found.unintended[0, 0] + 0.2)

  def test_only_latents_with_an_effect_above_0_are_ablated(self):
    effect = np.array([0.0, 2.0, -3.0, 1.0])
    self.assertEqual(targeted.strongest(effect, 3).tolist(), [1, 3])
    self.assertEqual(targeted.strongest(np.abs(effect), 2).tolist(), [2, 1])


class SCRTest(absltest.TestCase):
  def test_removing_the_spurious_latent_restores_the_clean_accuracy(self):
    documents, y = spurious(strength=2.0)  # the probe reads the second label
    found = targeted.scr(
      documents, y[:, 0], y[:, 1], counts=(0, 2), repeats=2, fit=converged
    )
    self.assertTrue((found.biased[:, 0] < found.biased[:, 1]).all())
    np.testing.assert_array_equal(found.metric, found.dir1)
    np.testing.assert_array_equal(found.dir1[:, 0], 0)
    self.assertGreater(found.dir1[:, 1].min(), 0.8)
    self.assertLess(found.dir2[:, 1].max(), found.dir1[:, 1].min())
    self.assertIn("scr_metric_threshold_2", found.record())

  def test_the_metric_is_the_direction_of_the_worse_label_or_of_both(self):
    directions = {"dir1": np.full((3, 1), 0.2), "dir2": np.full((3, 1), 0.6)}
    found = targeted.SCR(
      (1,),
      **directions,
      biased=np.array([[0.5, 0.9], [0.9, 0.5], [0.7, 0.7]]),
      clean=np.ones((3, 2)),
    )
    np.testing.assert_allclose(found.metric[:, 0], [0.2, 0.6, 0.4])

  def test_refuses_labels_that_never_occur_apart(self):
    documents, y = spurious(1.0)
    with self.assertRaisesRegex(InputError, "^labels=no row with first=False"):
      targeted.scr(documents, y[:, 0], y[:, 0], fit=converged)
    with self.assertRaisesRegex(InputError, "^second=799 labels"):
      targeted.scr(documents, y[:, 0], y[1:, 1], fit=converged)
    with self.assertRaisesRegex(InputError, "^first=2"):
      targeted.scr(documents, 2 * y[:, 0], y[:, 1], fit=converged)
    with self.assertRaisesRegex(InputError, "^labels=799 labels"):
      targeted.tpp(documents, y[1:], fit=converged)


class SparseTest(absltest.TestCase):
  def test_sparse_latents_give_the_same_scores(self):
    documents, y = spurious(strength=1.0)
    sparse = dataclasses.replace(
      documents, z=scipy.sparse.csr_array(documents.z)
    )
    dense, found = (
      targeted.tpp(each, y, counts=(1,), repeats=1, fit=converged)
      for each in (documents, sparse)
    )
    np.testing.assert_allclose(found.change, dense.change)


class NoiseTest(absltest.TestCase):
  def test_a_detectable_difference_is_found_in_80_percent_of_trials(self):
    rng = np.random.default_rng(0)
    R, trials = 8, 4000
    a = rng.standard_normal((trials, R))
    wanted = np.mean(
      [reseeding.Repeated(values).detectable for values in a[:500]]
    )
    b = rng.standard_normal((trials, R)) + wanted
    pooled = np.sqrt((a.var(axis=1, ddof=1) + b.var(axis=1, ddof=1)) / R)
    t = (b.mean(axis=1) - a.mean(axis=1)) / pooled
    found = (t > scipy.stats.t.ppf(0.975, 2 * R - 2)).mean()
    self.assertAlmostEqual(found, 0.8, delta=0.05)

  def test_one_more_run_falls_into_the_interval_in_95_percent(self):
    draws = np.random.default_rng(1).standard_normal((2000, 6))
    inside = 0
    for one in draws:
      low, high = reseeding.Repeated(one[:5]).interval
      inside += low < one[5] < high
    self.assertAlmostEqual(inside / 2000, 0.95, delta=0.015)

  def test_the_noise_of_one_run_is_unknown(self):
    found = reseeding.Repeated(np.array([0.3]))
    self.assertEqual(found.detectable, np.inf)
    self.assertIsNone(found.record()["low"])

  def test_noise_is_that_of_other_splits_and_probes(self):
    documents, y = spurious(strength=1.0)
    found = targeted.tpp(documents, y, counts=(1,), repeats=3, fit=converged)
    noise = found.noise()[1]
    self.assertLen(noise.values, 3)
    self.assertGreater(noise.sd, 0)
    self.assertGreater(noise.detectable, 0)


if __name__ == "__main__":
  absltest.main()
