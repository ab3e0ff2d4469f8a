"""Tests of saejax.evals.hypotheses.hypotheses and hypothesis_testing on planted concepts."""

import functools

import numpy as np
from absl.testing import absltest, parameterized

from saejax.errors import InputError
from saejax.evals.autointerp.judge import Constant, Oracle
from saejax.evals.autointerp.judge_keyword import Keyword
from saejax.evals.hypotheses import hypotheses, hypothesis_testing
from tests.evals import keyword_world

CONCEPTS = ("cat", "piano", "lawyer", "snow", "engine")
LATENTS = 12


@functools.cache
def world(N=400, seed=0):
  """Texts with words of concepts, concepts [N, 5], latents of embeddings [N, 12].

  Embeddings are sums of directions of concepts and noise; five latents read them,
  seven read random directions.
  """
  rng = np.random.default_rng(seed)
  c = rng.random((N, 5)) < 0.3
  V = np.linalg.qr(rng.normal(size=(32, 32)))[0]
  x = c @ V[:5] + 0.1 * rng.normal(size=(N, 32))
  W = np.concatenate([V[:5], 0.7 * V[5:LATENTS]])
  order = rng.permutation(LATENTS)
  z = np.maximum(x @ W[order].T - np.where(order < 5, 0.3, 0.05), 0)
  texts = []
  for row in c:
    words = [*rng.choice(keyword_world.WORDS, 8)]
    words += [word for word, has in zip(CONCEPTS, row, strict=True) if has]
    texts.append(" ".join(rng.permutation(words)))
  return texts, c, z, order


def target(c, seed=1):
  rng = np.random.default_rng(seed)
  return c[:, 0].astype(float) - c[:, 1] + 0.3 * rng.normal(size=len(c))


class SelectTest(parameterized.TestCase):
  @parameterized.parameters("lasso", "correlation", "separation")
  def test_latents_of_the_planted_concepts_are_selected(self, how):
    _, c, z, order = world()
    found = hypotheses.select(z, target(c), count=2, how=how)
    self.assertCountEqual(order[found.latents], [0, 1])
    for latent, score in zip(found.latents, found.score, strict=True):
      concept = order[latent]
      r = np.corrcoef(z[:, latent], c[:, concept])[0, 1]
      self.assertGreater(abs(r), 0.8)
      self.assertEqual(np.sign(score), 1 if concept == 0 else -1)

  @parameterized.parameters("lasso", "correlation")
  def test_of_labels_too(self, how):
    _, c, z, order = world()
    found = hypotheses.select(z, target(c) > 0.3, count=2, how=how)
    self.assertCountEqual(order[found.latents], [0, 1])

  def test_of_duplicates_correlation_takes_both_and_lasso_one(self):
    _, c, z, order = world()
    first, second = (int(np.flatnonzero(order == i)[0]) for i in (0, 1))
    both = np.column_stack([z, z[:, first]])
    twins = [first, LATENTS]
    y = (
      c[:, 0] - 0.8 * c[:, 1] + 0.3 * np.random.default_rng(1).normal(size=400)
    )
    found = hypotheses.select(both, y, count=2, how="correlation")
    self.assertCountEqual(found.latents, twins)
    found = hypotheses.select(both, y, count=2, how="lasso")
    self.assertLen(np.intersect1d(found.latents, twins), 1)
    self.assertIn(second, found.latents)

  def test_separation_looks_at_active_texts_alone(self):
    rng = np.random.default_rng(0)
    y = rng.normal(size=300)
    z = np.zeros((300, 2))
    z[:5, 0] = 1  # rare, and always with a high target
    y[:5] = 10
    found = hypotheses.select(z, y, count=1, how="separation")
    self.assertEqual(found.latents.tolist(), [0])
    self.assertAlmostEqual(found.score[0], 10 - y[5:].mean())
    theirs = hypotheses.select(
      z, y, count=1, how="separation", compat="hypothesaes"
    )
    self.assertAlmostEqual(theirs.score[0], y[:100].mean() - y[5:].mean())

  @parameterized.parameters(
    ({"how": "best"}, "how=best"), ({"count": 0}, "count=0"),
    ({"count": 13}, "count=13"),
  )  # fmt: skip
  def test_wrong_settings_are_refused(self, settings, said):
    _, c, z, _ = world()
    with self.assertRaisesRegex(InputError, said):
      hypotheses.select(z, target(c), **settings)


class DescribeTest(absltest.TestCase):
  def test_a_latent_is_described_by_its_word(self):
    texts, _, z, order = world()
    for concept, word in enumerate(CONCEPTS):
      latent = int(np.flatnonzero(order == concept)[0])
      found = hypotheses.describe(Keyword(), texts, z[:, latent], latent)
      self.assertEqual(found.text, word)
      self.assertGreater(found.f1, 0.95)

  def test_the_best_of_several_candidates_is_taken(self):
    texts, _, z, order = world()
    latent = int(np.flatnonzero(order == 2)[0])

    class Guessing(Keyword):
      def explain(self, windows, silent=()):
        said.append(["snow", "", "lawyer"][len(said)])
        return said[-1]

    said = []
    found = hypotheses.describe(
      Guessing(), texts, z[:, latent], latent, candidates=3
    )
    self.assertEqual((found.text, len(said)), ("lawyer", 3))

  def test_a_dead_latent_is_refused(self):
    texts, _, z, _ = world()
    with self.assertRaisesRegex(InputError, "latent=3: .*active"):
      hypotheses.describe(Keyword(), texts, np.zeros(len(z)), 3)


class AnnotateTest(absltest.TestCase):
  def test_failures_are_0_and_counted(self):
    class Deaf(Constant):
      def score(self, explanation, windows, question):
        return np.array([np.nan, 1.0, 0.0])

    found = hypotheses.annotate(Deaf(), ["a", ""], ["x", "y", "z"])
    self.assertEqual(found.fits.tolist(), [[0, 0], [1, 0], [0, 0]])
    self.assertEqual(found.failed, 1 + 3)

  def test_pairs_are_differences(self):
    first = hypotheses.annotate(Keyword(), ["cat"], ["a cat", "a", "cat"])
    second = hypotheses.annotate(Keyword(), ["cat"], ["a", "cat", "cat"])
    self.assertEqual(first.less(second).fits[:, 0].tolist(), [1, -1, 0])

  def test_a_judge_without_threshold_is_refused(self):
    with self.assertRaisesRegex(InputError, "judge.threshold=nan"):
      hypotheses.annotate(Oracle(threshold=float("nan")), ["a"], ["x"])


def annotated(seed=0):
  """Held-out texts, concepts and annotations of each latent, described on others."""
  texts, _, z, _ = world()
  held, c, _, _ = world(seed=7)
  words = [
    hypotheses.describe(Keyword(), texts, z[:, i], i, check=0).text
    for i in range(LATENTS)
  ]
  return held, c, hypotheses.annotate(Keyword(), words, held).fits


class TestingTest(parameterized.TestCase):
  def test_the_planted_concepts_are_significant_and_no_others(self):
    _, c, z, order = world()
    _, held, fits = annotated()
    selected = hypotheses.select(z, target(c), count=5)
    found = hypothesis_testing.test(
      fits[:, selected.latents], target(held, 9), sign=selected.score
    )
    kinds = order[selected.latents]
    self.assertCountEqual(kinds[found.significant], [0, 1])
    at = int(np.flatnonzero(kinds == 0)[0])
    self.assertAlmostEqual(found.separation[at], 1, delta=0.2)
    self.assertLess(found.separation_p[at], 1e-10)
    self.assertAlmostEqual(found.coefficient[at], 1, delta=0.2)
    self.assertAlmostEqual(found.prevalence[at], held[:, 0].mean())
    self.assertEqual(found.kind, "r2")
    self.assertGreater(found.score, 0.7)
    self.assertEqual(found.record()["significant_count"], 2)

  def test_on_permuted_targets_nothing_is_significant_in_9_of_10(self):
    _, c, z, _ = world()
    _, held, fits = annotated()
    none = 0
    for seed in range(50):
      rng = np.random.default_rng(seed)
      selected = hypotheses.select(
        z, rng.permutation(target(c)), count=5, how="correlation"
      )
      found = hypothesis_testing.test(
        fits[:, selected.latents],
        rng.permutation(target(held, 9)),
        sign=selected.score,
      )
      none += not found.significant.any()
    self.assertGreaterEqual(none, 45)

  def test_labels_have_an_auroc_of_texts_that_were_not_fitted(self):
    _, held, fits = annotated()
    y = target(held, 9) > 0.3
    found = hypothesis_testing.test(fits, y)
    self.assertEqual((found.kind, found.texts), ("auroc", 400))
    self.assertGreater(found.score, 0.8)

  def test_noise_has_no_r2_out_of_sample_and_some_in_the_references(self):
    rng = np.random.default_rng(0)
    fits, y = rng.random((80, 20)) < 0.5, rng.normal(size=80)
    self.assertLess(hypothesis_testing.test(fits, y).score, 0.05)
    found = hypothesis_testing.test(fits, y, compat="hypothesaes")
    self.assertGreater(found.score, 0.1)

  def test_the_claimed_sign_must_be_the_one_found(self):
    _, held, fits = annotated()
    y = target(held, 9)
    right = hypothesis_testing.test(fits, y)
    wrong = hypothesis_testing.test(fits, y, sign=-right.coefficient)
    self.assertTrue(right.significant.any())
    self.assertFalse(wrong.significant.any())

  def test_pairs_compare_the_two_signs(self):
    fits = np.array([[1.0], [1], [1], [-1], [-1], [-1], [0], [0]] * 3)
    y = fits[:, 0] * 2 + 0.1 * np.random.default_rng(0).normal(size=24)
    found = hypothesis_testing.test(fits, y)
    self.assertAlmostEqual(found.separation[0], 4, delta=0.3)
    self.assertAlmostEqual(found.prevalence[0], 0.75)

  @parameterized.parameters(
    (np.zeros((4, 0)), {}, "fits="), (np.zeros((3, 1)), {}, "fits="),
    (np.zeros((4, 1)), {"compat": "x"}, "compat=x"),
  )  # fmt: skip
  def test_wrong_annotations_are_refused(self, fits, more, said):
    with self.assertRaisesRegex(InputError, said):
      hypothesis_testing.test(fits, np.arange(4.0), **more)


class RecoveredTest(absltest.TestCase):
  def test_known_hypotheses_are_matched_one_to_one(self):
    _, c, _, _ = world()
    known = c[:, :3].astype(float)
    noise = np.random.default_rng(0).random(known.shape) < 0.05
    found = np.abs(known - noise)[:, [2, 0, 1]]
    found = np.column_stack([found, np.ones(len(found))])
    got = hypothesis_testing.recovered(known, found)
    self.assertEqual(got.pairs.tolist(), [[0, 1], [1, 2], [2, 0]])
    self.assertGreater(got.correlation.min(), 0.8)
    self.assertGreater(got.mean_f1, 0.85)
    self.assertLess(got.mean_f1, 1)

  def test_the_assignment_has_the_largest_sum(self):
    rng = np.random.default_rng(1)
    base = rng.random((500, 2)) < 0.5
    near = base[:, :1] ^ (rng.random((500, 1)) < 0.1)
    # Both known ones are nearest to the first found one.
    known = np.column_stack([base[:, 0], near[:, 0]]).astype(float)
    found = np.column_stack([base[:, 0], near[:, 0] ^ (rng.random(500) < 0.2)])
    got = hypothesis_testing.recovered(known, found)
    self.assertEqual(got.pairs.tolist(), [[0, 0], [1, 1]])


if __name__ == "__main__":
  absltest.main()
