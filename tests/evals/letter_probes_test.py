"""saejax/evals/spelling/letter_probes.py: planted latents of letters."""

import numpy as np
import scipy.sparse
from absl.testing import absltest

from saejax.errors import InputError
from saejax.evals.spelling import letter_probes
from tests.evals import spelling_world


def cases(shares, *, rows=400, seed=0):
  """Words of which one half has the letter, and latents at shares of these.

  Latents i > 0 are at words where those before are not. Two more are noise.
  """
  rng = np.random.default_rng(seed)
  is_letter = np.arange(rows) % 2 == 0
  place = rng.random(rows)
  ends = np.cumsum(shares)
  z = np.zeros((rows, len(shares) + 2))
  for i, end in enumerate(ends):
    z[is_letter & (place >= end - shares[i]) & (place < end), i] = 1.0
  z[:, -2:] = rng.random((rows, 2)) * (rng.random((rows, 2)) < 0.3)
  return scipy.sparse.csr_array(z), is_letter, rng.random(rows) < 0.5


class LetterProbesTest(absltest.TestCase):
  def split(self, shares, tau=letter_probes.TAU):
    z, is_letter, train = cases(shares)
    letters = np.array([0, 1])
    order = letter_probes.ranked(
      z, np.where(is_letter, 1, 0), letters, train, most=4
    )
    return letter_probes.split(z, is_letter, train, order[1], tau=tau)

  def test_one_latent_of_a_letter_is_not_split(self):
    found = self.split([1.0])
    self.assertEqual(found.main.tolist(), [0])
    self.assertEqual(found.f1[0], 1.0)
    self.assertLen(found.f1, 2)  # the first that fails is the last

  def test_latents_of_parts_of_a_letter_are_split(self):
    found = self.split([0.6, 0.4])
    self.assertEqual(found.main.tolist(), [0, 1])
    self.assertLess(found.f1[0], 0.8)
    self.assertEqual(found.f1[1], 1.0)
    found = self.split([0.4, 0.35, 0.25])
    self.assertEqual(sorted(found.main.tolist()), [0, 1, 2])

  def test_tau_is_the_least_rise_of_f1(self):
    shares = [0.9, 0.1]  # F1 rises from 0.95 by about 0.05
    self.assertLen(self.split(shares, tau=0.01).main, 2)
    self.assertLen(self.split(shares, tau=0.1).main, 1)

  def test_a_rise_counts_from_the_best_so_far(self):
    found = self.split([0.6, 0.4])
    rises = np.diff(found.f1)
    self.assertGreater(rises[0], letter_probes.TAU)
    self.assertLessEqual(rises[1], letter_probes.TAU)

  def test_latents_that_speak_against_a_letter_are_not_its_own(self):
    z, is_letter, train = cases([0.7])
    letters = np.array([0, 1])
    order = letter_probes.ranked(z, is_letter.astype(int), letters, train)
    self.assertEqual(order[1, 0], 0)
    self.assertNotEqual(order[0, 0], 0)

  def test_the_truth_is_found_in_activations(self):
    w = spelling_world.world(False, noise=0.05)
    found = letter_probes.truth(w.x, w.letter, w.train)
    self.assertEqual(found.letters.tolist(), [0, 1, 2, 3])
    self.assertGreater(found.f1.min(), 0.99)
    unit = found.weight - found.weight.mean(axis=0)
    unit /= np.linalg.norm(unit, axis=-1, keepdims=True)
    theirs = w.letters - w.letters.mean(axis=0)
    theirs /= np.linalg.norm(theirs, axis=-1, keepdims=True)
    self.assertGreater(np.sum(unit * theirs, axis=-1).min(), 0.9)
    own = found.found(w.letter, 2)
    self.assertEqual(set(w.letter[own]), {2})

  def test_the_unit_of_activations_does_not_matter(self):
    w = spelling_world.world(False, noise=0.3)
    one = letter_probes.truth(w.x, w.letter, w.train)
    ten = letter_probes.truth(10 * w.x, w.letter, w.train)
    np.testing.assert_allclose(ten.score, one.score, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(
      10 * ten.weight, one.weight, rtol=1e-3, atol=1e-3
    )
    score = w.x @ one.weight.T + one.bias
    np.testing.assert_allclose(score, one.score, rtol=1e-3, atol=1e-3)

  def test_held_out_words_decide(self):
    # Labels of the held-out words are exchanged: what is learnt is wrong there.
    w = spelling_world.world(False)
    letter = np.where(w.train, w.letter, (w.letter + 1) % 4)
    self.assertEqual(letter_probes.truth(w.x, letter, w.train).f1.max(), 0)
    z, is_letter, train = cases([1.0])
    wrong = np.where(train, is_letter, ~is_letter)
    found = letter_probes.split(z, wrong, train, np.array([0, 1]))
    self.assertEqual(found.f1[0], 0)

  def test_all_probes_are_fitted_by_letter(self):
    w = spelling_world.world(True)
    fitted = letter_probes.fit(w.x, w.z, w.letter, w.train)
    for place, own in enumerate(fitted.splits):
      self.assertEqual(own.main[0], place)
      words = fitted.true_positives(place)
      self.assertFalse(fitted.train[words].any())
      np.testing.assert_array_equal(w.letter[words], place)

  def test_a_letter_with_fewer_than_20_words_is_refused(self):
    w = spelling_world.world(False)
    few = np.flatnonzero(w.letter == 3)[19:]
    keep = np.setdiff1d(np.arange(len(w.letter)), few)
    with self.assertRaisesRegex(InputError, "^letter={3: 19}.*at least 20"):
      letter_probes.truth(w.x[keep], w.letter[keep], w.train[keep])
    with self.assertRaisesRegex(InputError, r"^train=\[3\].*of train words"):
      letter_probes.truth(w.x, w.letter, w.letter != 3)
    with self.assertRaisesRegex(InputError, "^letter=1: .*two letters"):
      own = w.letter == 0
      letter_probes.truth(w.x[own], w.letter[own], w.train[own])


if __name__ == "__main__":
  absltest.main()
