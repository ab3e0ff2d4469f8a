"""Tests of saejax.evals.circuits."""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from absl.testing import absltest, parameterized

from saejax.evals import circuits
from saejax.sae import activations
from tests import toy


def planted(seed=0, prompts=30, heads=24, inside=6, codes=24):
  """Codes of which those of some heads depend on the class.

  All heads use all codes equally often, so that only the class tells: a head
  with more codes scores higher whatever the class. The heads are spread out: edges that tie come in
  index order.
  """
  rng = np.random.default_rng(seed)
  truth = np.arange(heads) % (heads // inside) == 1
  positive, negative = rng.integers(0, codes, (2, prompts, heads))
  half = codes // 2
  positive[:, truth] %= half
  negative[:, truth] = half + negative[:, truth] % half
  return positive, negative, truth


class NodeTest(parameterized.TestCase):
  def test_codes_of_positives_alone_by_hand(self):
    positive, negative = np.asarray([[1], [2], [3]]), np.asarray([[3], [4]])
    scores = circuits.unique_code_scores
    np.testing.assert_array_equal(scores(positive, negative), [2])
    np.testing.assert_array_equal(
      scores(positive, negative, normalise=True), [2 / 4]
    )

  @parameterized.parameters(0, 1)
  def test_planted_heads_are_found_and_with_shuffled_classes_not(self, seed):
    score = circuits.unique_code_scores
    positive, negative, truth = planted(seed)
    null = circuits.null_scores(score, positive, negative)
    chance = np.mean([circuits.roc_auc(scores, truth) for scores in null])
    self.assertGreater(circuits.roc_auc(score(positive, negative), truth), 0.95)
    self.assertAlmostEqual(chance, 0.5, delta=0.05)

  def test_scores_above_chance_do_not_favour_heads_with_many_codes(self):
    rng = np.random.default_rng(0)
    positive, negative, truth = planted(inside=6)
    busy = rng.integers(0, 200, (2, 30, 10))  # many codes, none of a class
    positive = np.concatenate([positive, busy[0]], axis=1)
    negative = np.concatenate([negative, busy[1]], axis=1)
    truth = np.concatenate([truth, np.zeros(10, bool)])
    raw = circuits.unique_code_scores(positive, negative)
    fair = circuits.above_chance(
      circuits.unique_code_scores, positive, negative
    )
    self.assertLess(circuits.roc_auc(raw, truth), 0.8)
    self.assertGreater(circuits.roc_auc(fair, truth), 0.95)


class EdgeTest(absltest.TestCase):
  def test_planted_heads_are_found(self):
    # With many codes every pair of them is a new one, of any two heads. With
    # shuffled classes the mean AUC is not 0.5 (0.34 to 0.58, one data set
    # each): edges favour heads by the counts of their codes.
    for seed in range(3):
      positive, negative, truth = planted(seed, 30, 12, 3, 4)
      scores = circuits.edge_scores(positive, negative)
      self.assertGreater(circuits.roc_auc(scores, truth), 0.95)

  def test_sets_count_what_the_dense_array_does(self):
    rng = np.random.default_rng(0)
    positive, negative = rng.integers(0, 4, (2, 9, 5))
    dense = np.zeros((2, 5, 5, 4, 4), bool)
    for kind, codes in enumerate((positive, negative)):
      for row in codes:
        for h in range(5):
          for g in range(5):
            dense[kind, h, g, row[h], row[g]] = True
    want = (dense[0] & ~dense[1]).sum(axis=(2, 3))
    np.fill_diagonal(want, 0)
    np.testing.assert_array_equal(
      circuits.edge_counts(positive, negative), want
    )
    self.assertGreater(want.max(), 0)

  def test_heads_of_the_best_edges_are_counted(self):
    # Only the pair (0, 2) has codes of its own; it comes in both orders.
    positive = np.asarray([[0, 0, 0], [1, 0, 1]])
    negative = np.asarray([[0, 0, 1], [1, 0, 0]])
    np.testing.assert_array_equal(
      circuits.edge_counts(positive, negative),
      [[0, 0, 2], [0, 0, 0], [2, 0, 0]],
    )
    scores = circuits.edge_scores(positive, negative, entries=4)
    np.testing.assert_array_equal(scores, [2, 0, 2])
    self.assertEqual(circuits.edge_scores(positive, negative).sum(), 4)


class ScoreTest(parameterized.TestCase):
  def test_codes_are_the_largest_latents_and_0_without_any(self):
    sae = toy.sae(activation=activations.ReLU())
    x = toy.rows(6, 3, 8)
    want = np.asarray(sae.encode(x)).argmax(axis=-1)
    np.testing.assert_array_equal(circuits.codes(sae, x), want)
    silent = sae.replace(encoder=sae.encoder.replace(b=jnp.full((24,), -100.0)))
    np.testing.assert_array_equal(circuits.codes(silent, x), 0)

  def test_auc_by_counting_pairs_and_unchanged_by_softmax(self):
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 8, 40).astype(float)  # with ties
    truth = rng.random(40) < 0.3
    a, b = scores[truth][:, None], scores[~truth][None]
    want = ((a > b) + 0.5 * (a == b)).mean()
    self.assertAlmostEqual(circuits.roc_auc(scores, truth), want)
    soft = scipy.special.softmax(scores)
    self.assertAlmostEqual(circuits.roc_auc(soft, truth), want)
    soft = np.asarray(jax.nn.softmax(scores))
    self.assertAlmostEqual(circuits.roc_auc(soft, truth), want)

  @parameterized.parameters(True, False)
  def test_auc_needs_heads_of_both_kinds(self, all_inside):
    with self.assertRaisesRegex(ValueError, "inside and outside"):
      circuits.roc_auc(np.zeros(3), np.full(3, all_inside))


if __name__ == "__main__":
  absltest.main()
