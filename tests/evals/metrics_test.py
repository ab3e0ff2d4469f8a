"""Tests of saejax.evals.metrics: scikit-learn's numbers, and definitions."""

import pathlib

import numpy as np
import safetensors.numpy
from absl.testing import absltest, parameterized

from saejax.errors import InputError
from saejax.evals import metrics

GOLDEN = safetensors.numpy.load_file(
  pathlib.Path(__file__).parents[1] / "golden/sklearn.safetensors"
)


class MetricsTest(parameterized.TestCase):
  @parameterized.parameters(
    ("auroc", lambda g: metrics.auroc(g["score"], g["y"][:, 0])),
    ("ami", lambda g: metrics.ami(g["a"], g["b"])),
    ("silhouette", lambda g: metrics.silhouette(g["x"], g["b"])),
    ("f1", lambda g: metrics.f1(g["y"][:, 0], g["y"][:, 1])),
    (
      "balanced_accuracy",
      lambda g: metrics.balanced_accuracy(g["a"], g["b"]),
    ),
  )
  def test_it_is_that_of_scikit_learn(self, name, compute):
    self.assertAlmostEqual(compute(GOLDEN), float(GOLDEN[name][0]), delta=1e-6)

  def test_auroc_is_the_share_of_ordered_pairs_with_ties_as_halves(self):
    rng = np.random.default_rng(0)
    score, label = rng.integers(0, 5, 60), rng.random(60) < 0.3
    gap = score[label][:, None] - score[~label]
    pairs = (gap > 0).mean() + (gap == 0).mean() / 2
    self.assertAlmostEqual(metrics.auroc(score, label), pairs)
    self.assertAlmostEqual(metrics.auroc(-score, label), 1 - pairs)

  def test_fpr95_counts_the_negatives_at_the_threshold_of_95_percent(self):
    positives = np.arange(20) + 10.0  # 19 of 20 are at least 11
    negatives = np.array([0.0, 10.0, 11.0, 50.0])
    score = np.r_[positives, negatives]
    label = np.arange(24) < 20
    self.assertEqual(metrics.fpr95(score, label), 0.5)
    self.assertEqual(metrics.fpr95(np.where(label, 1, 0), label), 0)

  def test_ami_of_independent_partitions_is_0_and_of_renamed_ones_1(self):
    rng = np.random.default_rng(0)
    a = rng.integers(0, 10, 200)
    drawn = [metrics.ami(a, rng.permutation(a)) for _ in range(100)]
    error = np.std(drawn) / 10
    self.assertLess(abs(np.mean(drawn)), 3 * error)
    self.assertAlmostEqual(metrics.ami(a, 7 - 2 * a), 1)
    self.assertEqual(metrics.ami(np.zeros(5), np.ones(5)), 1)
    self.assertEqual(metrics.ami(np.arange(3), np.array([2, 0, 1])), 1)

  def test_silhouette_in_blocks_is_that_of_all_pairs(self):
    x, label = GOLDEN["x"], GOLDEN["b"]
    whole = metrics.silhouette(x, label)
    size, metrics._BLOCK_ENTRIES = metrics._BLOCK_ENTRIES, 7 * len(x)
    self.addCleanup(setattr, metrics, "_BLOCK_ENTRIES", size)
    self.assertAlmostEqual(metrics.silhouette(x, label), whole, places=12)

  def test_f1_without_a_prediction_is_0(self):
    self.assertEqual(metrics.f1(np.zeros(3), np.array([1, 0, 0])), 0)

  @parameterized.parameters(
    (lambda: metrics.auroc(np.ones(3), np.ones(3)), "^label=all positive"),
    (lambda: metrics.fpr95(np.ones(3), np.zeros(3)), "^label=all negative"),
    (lambda: metrics.auroc([1, np.nan], np.array([0, 1])), "^score=NaN"),
    (lambda: metrics.auroc(np.ones(3), np.ones(2)), "^score=shape"),
    (lambda: metrics.auroc(np.ones(2), np.array([0, 2])), "^label=2"),
    (lambda: metrics.ami(np.ones(3), np.ones(2)), "^a=shape"),
    (lambda: metrics.silhouette(np.ones((3, 1)), np.ones(3)), "^label=1 clus"),
    (lambda: metrics.silhouette(np.ones((3, 1)), [0, 1, 2]), "^label=3 clus"),
    (lambda: metrics.silhouette(np.full((3, 1), np.nan), [0, 1, 1]), "^x="),
  )
  def test_refuses_what_has_no_value(self, compute, message):
    with self.assertRaisesRegex(InputError, message):
      compute()


if __name__ == "__main__":
  absltest.main()
