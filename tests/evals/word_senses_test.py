"""saejax/evals/words/word_senses.py: planted senses, and the trivial answers."""

import numpy as np
from absl.testing import absltest, parameterized

from saejax.errors import InputError
from saejax.evals.words import word_senses
from saejax.sae import activations
from tests import toy

WORDS, SENSES, D = 20, 2, 64
NAMES = ("accuracy", "precision", "recall", "f1", "specificity")


def world(pairs=400, seed=0):
  """Pairs at words with senses: x is a direction of the word and of the sense.

  Returns:
    (x of first and second contexts, same, directions of words, of senses).
  """
  rng = np.random.default_rng(seed)
  W = np.linalg.qr(rng.standard_normal((D, D)))[0].astype(np.float32)
  of_word, of_sense = W[:WORDS], W[WORDS : WORDS + WORDS * SENSES]
  word = rng.integers(WORDS, size=pairs)
  same = np.arange(pairs) % 2 == 0
  first = rng.integers(SENSES, size=pairs)
  second = np.where(same, first, (first + 1) % SENSES)
  x1, x2 = (
    of_word[word] + of_sense[word * SENSES + sense] for sense in (first, second)
  )
  return x1, x2, same, of_word, of_sense


def encoder(W):
  return lambda x: np.maximum(np.asarray(x) @ np.asarray(W).T - 0.1, 0)


class WordSensesTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.x1, self.x2, self.same, self.of_word, self.of_sense = world()

  def scores(self, encode, turned=False):
    x = (self.x2, self.x1) if turned else (self.x1, self.x2)
    return word_senses.evaluate(encode, *x, self.same)

  def test_a_latent_per_sense_is_perfect(self):
    found = self.scores(encoder(self.of_sense))
    self.assertEqual([getattr(found, name) for name in NAMES], [1.0] * 5)
    self.assertEqual(found.l0, 1)
    self.assertEqual(found.silent, 0)

  def test_a_latent_per_word_has_f1_two_thirds_and_specificity_0(self):
    found = self.scores(encoder(self.of_word))
    self.assertAlmostEqual(found.f1, 2 / 3)
    self.assertEqual(found.specificity, 0)
    self.assertEqual((found.recall, found.precision), (1, 0.5))

  def test_always_different_has_f1_0_and_specificity_1(self):
    P = len(self.same)
    found = word_senses.score(np.arange(P), np.arange(P) + P, self.same)
    self.assertEqual((found.f1, found.precision, found.specificity), (0, 0, 1))

  def test_random_latents_have_a_recall_of_1_over_n(self):
    rng, n, P = np.random.default_rng(0), 8, 20_000
    first, second = rng.integers(n, size=(2, P))
    same = np.arange(P) % 2 == 0
    found = word_senses.score(first, second, same)
    # Of 10,000 pairs: a standard deviation of 0.0033.
    self.assertAlmostEqual(found.recall, 1 / n, delta=0.014)
    self.assertAlmostEqual(found.specificity, 1 - 1 / n, delta=0.014)

  def test_exchanging_the_contexts_changes_nothing(self):
    noisy = np.random.default_rng(3).standard_normal((30, D))
    for W in (self.of_sense, noisy):
      a, b = self.scores(encoder(W)), self.scores(encoder(W), turned=True)
      self.assertEqual(a.record(), b.record())

  @parameterized.parameters("sense", "random")
  def test_a_dense_latent_moves_any_sae_to_two_thirds(self, kind):
    W = self.of_sense
    if kind == "random":
      W = np.random.default_rng(1).standard_normal((50, D))
    own = encoder(W)
    dense = lambda x: np.concatenate([own(x), np.full((len(x), 1), 99)], axis=1)
    self.assertNotAlmostEqual(self.scores(own).f1, 2 / 3)
    found = self.scores(dense)
    self.assertAlmostEqual(found.f1, 2 / 3)
    self.assertEqual(found.specificity, 0)

  def test_counts_are_those_of_a_table(self):
    same = np.array([True] * 5 + [False] * 4)
    first = np.arange(9)
    second = np.array([0, 1, 2, 9, 9, 5, 9, 9, 9])
    found = word_senses.score(first, second, same)
    self.assertEqual((found.tp, found.fn, found.fp, found.tn), (3, 2, 1, 3))
    want = (6 / 9, 3 / 4, 3 / 5, 6 / 9, 3 / 4)
    for name, value in zip(NAMES, want, strict=True):
      self.assertAlmostEqual(getattr(found, name), value, msg=name)

  def test_cosines_of_rows_are_split_by_label(self):
    W = np.array([[1.0, 0], [0, 2], [3, 3], [0, 0]])
    first, second = np.array([0, 0, 1, -1]), np.array([0, 2, 0, 2])
    same = np.array([True, True, False, False])
    found = word_senses.score(
      first, second, same, rows={"encoder": W, "decoder": -W}
    )
    for name in ("encoder", "decoder"):
      alike, other = found.cosine[name]
      self.assertAlmostEqual(alike, (1 + np.sqrt(0.5)) / 2)
      self.assertAlmostEqual(other, 0)  # the silent pair is left out
    self.assertEqual(found.silent, 1 / 8)
    self.assertIn("encoder_cosine_same", found.record())
    self.assertNotIn("mse", found.record())

  def test_a_silent_latent_is_not_the_strongest_of_signed_ones(self):
    kind = activations.TopK(2, score="magnitude", keep="signed")
    sae, x = toy.sae(activation=kind), np.asarray(toy.rows(200, 8))
    latent, count = word_senses.strongest(sae.encode, x)
    z = np.asarray(sae.encode(x))
    np.testing.assert_array_equal(count, 2)
    self.assertTrue(np.all(z[np.arange(200), latent] != 0))

  def test_silence_is_no_latent(self):
    z = np.array([[0, 0, 0], [2, 1, 0], [0, 0, 3.0]])
    latent, active = word_senses.strongest(lambda x: x, z, batch_rows=2)
    self.assertEqual(latent.tolist(), [-1, 0, 2])
    self.assertEqual(active.tolist(), [0, 2, 1])

  def test_the_error_is_that_of_both_contexts(self):
    found = word_senses.evaluate(
      encoder(self.of_word),
      self.x1,
      self.x2,
      self.same,
      reconstruct=lambda x: np.zeros_like(x),
    )
    self.assertAlmostEqual(found.mse, 2 / D, places=5)  # |x|^2 is 2

  def test_refuses_pairs_of_one_label_and_other_lengths(self):
    m = np.zeros(4, int)
    with self.assertRaisesRegex(InputError, "^same=4 of 4"):
      word_senses.score(m, m, np.ones(4, bool))
    with self.assertRaisesRegex(InputError, "^same="):
      word_senses.score(m, m, np.ones(3, bool))


if __name__ == "__main__":
  absltest.main()
