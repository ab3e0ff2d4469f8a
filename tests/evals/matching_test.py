"""Tests of saejax.evals.matching."""

import itertools

import numpy as np
from absl.testing import absltest, parameterized

from saejax import errors
from saejax.evals import matching
from saejax.sae import encoders
from tests import toy

METHODS = matching.METHODS


def dictionary(n, d=64, seed=0):
  return np.array(toy.dictionary(n, d, seed=seed))


def sae(W_dec, W_enc=None):
  """An SAE with those rows."""
  given = toy.sae(n=len(W_dec), d=W_dec.shape[1])
  W_enc = W_dec if W_enc is None else W_enc
  return given.replace(
    encoder=encoders.Affine(W=W_enc, b=np.zeros(len(W_dec), np.float32)),
    decoder=given.decoder.replace(W=W_dec),
  )


class MatchTest(parameterized.TestCase):
  @parameterized.product(by=matching.SIDES, method=METHODS)
  def test_a_permuted_rescaled_copy_is_all_shared(self, by, method):
    rng = np.random.default_rng(0)
    W, W_enc, order = (
      dictionary(200),
      dictionary(200, seed=1),
      rng.permutation(200),
    )
    scale = rng.uniform(0.5, 3, (200, 1)).astype(np.float32)
    found = matching.match(
      sae(W, W_enc),
      sae(scale * W[order], W_enc[order] / scale),
      by=by,
      method=method,
    )
    self.assertEqual(found.fraction, 1)
    np.testing.assert_array_equal(order[found.pairs[:, 1]], found.pairs[:, 0])
    self.assertAlmostEqual(found.score, 1, places=5)

  @parameterized.product(by=matching.SIDES, method=METHODS)
  def test_random_dictionaries_share_nothing(self, by, method):
    found = matching.match(
      sae(dictionary(256, seed=1)),
      sae(dictionary(256, seed=2)),
      by=by,
      method=method,
    )
    self.assertEqual(found.fraction, 0)
    self.assertLess(found.score, 0.6)

  @parameterized.product(by=matching.SIDES, method=METHODS)
  def test_half_shared_is_half(self, by, method):
    a, b = dictionary(256, seed=1), dictionary(256, seed=2)
    b[:128] = a[:128]
    found = matching.match(sae(a), sae(b), by=by, method=method)
    self.assertAlmostEqual(found.fraction, 0.5, delta=0.02)
    counts = found.histogram()["counts"]
    self.assertEqual(sum(counts), len(found.pairs))
    self.assertEqual(counts[-1], 128)  # bimodal

  @parameterized.parameters(*METHODS)
  def test_a_row_whose_sign_is_flipped_drops_out(self, method):
    a = dictionary(100)
    b = a.copy()
    b[7] = -b[7]
    found = matching.match(sae(a), sae(b), by="decoder", method=method)
    shared = found.pairs[found.shared, 0]
    self.assertNotIn(7, shared)
    # The best assignment may give up one more pair (j, j): c_j7 - c_7j + 0 is
    # as much as 1 - 1.
    self.assertGreaterEqual(len(shared), 99 - (method == "exact"))

  def test_the_assignment_is_the_best_and_above_greedy_and_mutual(self):
    a, b = dictionary(7, 3, seed=1), dictionary(7, 3, seed=2)
    c = a @ b.T
    _, exact = matching.match_rows(a, b)
    orders = itertools.permutations(range(7))
    best = max(c[np.arange(7), list(order)].sum() for order in orders)
    self.assertAlmostEqual(exact.sum(), best, places=5)
    left, greedy = c.copy(), 0.0
    for _ in range(7):
      i, j = np.unravel_index(np.argmax(left), left.shape)
      greedy += c[i, j]
      left[i], left[:, j] = -np.inf, -np.inf
    self.assertGreaterEqual(exact.sum(), greedy - 1e-6)
    wide = [dictionary(300, seed=i) for i in (1, 2)]
    totals = [matching.match_rows(*wide, how)[1].sum() for how in METHODS]
    self.assertGreater(totals[0], totals[1])

  def test_mutual_neighbours_do_not_depend_on_the_block(self):
    a, b = dictionary(50, 6, seed=1), dictionary(40, 6, seed=2)
    c = a @ b.T
    want = [
      (i, j) for i, j in enumerate(c.argmax(axis=1)) if c[:, j].argmax() == i
    ]
    with absltest.mock.patch.object(matching, "BLOCK_ROWS", 7):
      pairs, cosines = matching.match_rows(a, b, "mnn")
      exact, _ = matching.match_rows(a, b)
    np.testing.assert_array_equal(pairs, want)
    np.testing.assert_allclose(cosines, c[pairs[:, 0], pairs[:, 1]], rtol=1e-5)
    self.assertLen(exact, 40)

  def test_by_both_needs_one_partner_and_the_mean_cosine(self):
    a = dictionary(60)
    # The encoders of latents 0 and 1 are exchanged.
    crossed = a.copy()
    crossed[[0, 1]] = a[[1, 0]]
    found = matching.match(sae(a), sae(a, crossed))
    np.testing.assert_array_equal(
      found.pairs[found.shared, 0], np.arange(2, 60)
    )
    # Decoders equal, encoders at cosine c: the mean (1 + c) / 2.
    tilted = matching.unit(a + 1.2 * dictionary(60, seed=3))
    found = matching.match(sae(a), sae(a, tilted))
    c = np.sum(a * tilted, axis=-1)
    np.testing.assert_allclose(found.cosines, (1 + c) / 2, rtol=1e-5)
    np.testing.assert_array_equal(found.shared, (1 + c) / 2 > 0.7)

  def test_dead_latents_can_be_left_out(self):
    # Both runs started alike, and half never moved.
    a, b = dictionary(100, seed=1), dictionary(100, seed=2)
    b[50:] = a[50:]
    alive = np.arange(100) < 50
    self.assertEqual(matching.match(sae(a), sae(b)).fraction, 0.5)
    found = matching.match(sae(a), sae(b), alive_a=alive, alive_b=alive)
    self.assertEqual((found.fraction, found.alive), (0, 50))
    self.assertLess(found.pairs.max(), 50)
    none = matching.match(sae(a), sae(b), alive_a=np.zeros(100, bool))
    self.assertEqual((none.fraction, len(none.pairs)), (0, 0))

  def test_numbers_of_left_out_latents_stay(self):
    a = dictionary(10)
    alive = np.arange(10) % 2 == 1
    found = matching.match(sae(a), sae(a[::-1].copy()), alive_a=alive)
    np.testing.assert_array_equal(found.pairs[:, 0], np.arange(1, 10, 2))
    np.testing.assert_array_equal(found.pairs[:, 1], 9 - found.pairs[:, 0])

  def test_latents_are_counted_over_several_seeds(self):
    a, b, c = (dictionary(40, seed=i) for i in range(3))
    b[:20], c[:10] = a[:20], a[:10]
    counts = matching.found_in([sae(a), sae(b), sae(c)])
    np.testing.assert_array_equal(counts, [2] * 10 + [1] * 10 + [0] * 20)

  def test_rows_of_no_number_match_nothing(self):
    a = dictionary(10)
    b = a.copy()
    b[3] = np.nan
    found = matching.match(sae(a), sae(b), by="decoder")
    self.assertEqual(found.shared.sum(), 9)

  def test_refuses_what_cannot_be_matched(self):
    one, two = sae(dictionary(10)), sae(dictionary(10, 32))
    for rule, options in (
      ("one of decoder, encoder, both", {"by": "rows"}),
      ("one of exact, mnn", {"method": "auction"}),
    ):
      with self.assertRaisesRegex(errors.InputError, rule):
        matching.match(one, one, **options)
    with self.assertRaisesRegex(errors.InputError, "the width of sae_a, 64"):
      matching.match(one, two)
    with absltest.mock.patch.object(matching, "EXACT_LIMIT", 9):
      with self.assertRaisesRegex(
        errors.InputError, "at most 9 latents, got 10"
      ):
        matching.match(one, one)
      self.assertEqual(matching.match(one, one, method="mnn").fraction, 1)


if __name__ == "__main__":
  absltest.main()
