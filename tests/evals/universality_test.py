"""Tests of saejax.evals.spaces.universality, similarity and token_alignment."""

import functools

import numpy as np
import scipy.sparse
from absl.testing import absltest, parameterized

from saejax.errors import InputError
from saejax.evals.spaces import (
  semantics,
  similarity,
  token_alignment,
  universality,
)
from tests import toy

ROWS, N, D = 600, 64, 16


def rotation(d, seed=0):
  """A random rotation of a space."""
  rng = np.random.default_rng(seed)
  return np.linalg.qr(rng.standard_normal((d, d)))[0]


def latents(rows=ROWS, n=N, seed=0):
  """Sparse latents."""
  rng = np.random.default_rng(seed)
  on = rng.random((rows, n)) < 0.1
  return (on * rng.exponential(1, (rows, n))).astype(np.float32)


def sums_of(z_a, z_b, *edges):
  """Sums over rows that are cut at edges."""
  sums = universality.CrossSums(z_a.shape[1], z_b.shape[1])
  for a, b in zip(np.split(z_a, edges), np.split(z_b, edges), strict=True):
    sums.add(a, b)
  return sums


class CorrelationTest(parameterized.TestCase):
  @parameterized.parameters([()], [(1,)], [(100, 101, 350)], [range(7, 600, 7)])
  def test_streamed_correlations_are_those_of_numpy(self, edges):
    z_a, z_b = latents(), latents(n=40, seed=1)
    z_b[:, :10] += z_a[:, :10]
    found = sums_of(z_a, z_b, *edges).correlation
    want = np.corrcoef(z_a.T, z_b.T)[:N, N:]
    np.testing.assert_allclose(found, want, atol=1e-5)

  def test_sparse_rows_and_merged_sums_are_the_same(self):
    z_a, z_b = latents(), latents(n=40, seed=1) + 3
    whole = sums_of(z_a, z_b)
    parts = [universality.CrossSums(N, 40) for _ in range(2)]
    for sums, p in zip(parts, (slice(0, 333), slice(333, None)), strict=True):
      sums.add(*(scipy.sparse.csr_array(z[p]) for z in (z_a, z_b)))
    merged = parts[0].merged(parts[1])
    self.assertEqual(merged.rows, ROWS)
    np.testing.assert_allclose(
      merged.correlation, whole.correlation, atol=1e-12
    )

  def test_latents_that_do_not_vary_have_no_partner(self):
    z_a, z_b = latents(), latents(seed=1)
    z_a[:, 3], z_b[:, 5], z_b[:, 6] = 0, 0, 0.7
    sums = sums_of(z_a, z_b)
    self.assertTrue((sums.correlation[3] == 0).all())
    self.assertTrue((sums.correlation[:, [5, 6]] == 0).all())
    for how in universality.MATCHINGS:
      pairs = universality.match(sums, how, least=-1)
      self.assertNotIn(3, pairs.a)
      self.assertEmpty({5, 6} & set(pairs.b.tolist()))

  def test_refuses_other_rows_and_too_many_latents(self):
    with self.assertRaisesRegex(InputError, "^z_b="):
      sums_of(latents(), latents()).add(latents(5), latents(6))
    with self.assertRaisesRegex(InputError, "^n_b=65536: with n_a=65536"):
      universality.CrossSums(65536, 65536)


class MatchingTest(parameterized.TestCase):
  @parameterized.parameters(*universality.MATCHINGS)
  def test_matching_recovers_a_permutation(self, how):
    order = np.random.default_rng(3).permutation(N)
    z = latents()
    pairs = universality.match(sums_of(z, 2 * z[:, order]), how)
    self.assertLen(pairs, N)
    by_b = np.argsort(pairs.b)
    np.testing.assert_array_equal(pairs.a[by_b], order)
    np.testing.assert_allclose(pairs.correlation, 1, atol=1e-6)

  def test_many_to_one_one_to_one_and_the_assignment_differ(self):
    z = latents(n=3)
    noise = 0.5 * latents(n=3, seed=2)
    # b0 and b1 both follow a0, b1 less; a1 is second for b1.
    z_b = np.stack([z[:, 0], z[:, 0] + noise[:, 0] + 0.7 * z[:, 1]], axis=1)
    sums = sums_of(z, z_b)
    many = universality.match(sums, "many_to_one")
    self.assertEqual(many.a.tolist(), [0, 0])
    one = universality.match(sums, "one_to_one")
    self.assertEqual((one.a.tolist(), one.b.tolist()), ([0], [0]))
    best = universality.match(sums, "hungarian")
    self.assertEqual(best.a[np.argsort(best.b)].tolist(), [0, 1])
    few = universality.match(sums, "hungarian", least=0.9)
    self.assertEqual(few.b.tolist(), [0])
    with self.assertRaisesRegex(InputError, "^how=best"):
      universality.match(sums, "best")

  def test_filters_by_top_tokens(self):
    top_a = [[" Monday", "Friday"], [".", "cat"], ["dog"], ["june"], ["x"]]
    top_b = [["monday"], ["cat"], ["wolf"], ["\u0120June"], [" "]]
    every = np.arange(5)
    pairs = universality.Pairs(every, every, np.ones(5))
    kept = universality.concepts(pairs, top_a, top_b)
    self.assertEqual(kept.a.tolist(), [0, 3])
    kept = universality.concepts(pairs, top_a, top_b, shared=False)
    self.assertEqual(kept.a.tolist(), [0, 2, 3])
    words = semantics.KEYWORDS["calendar"]
    found = universality.subspace(pairs, top_a, top_b, words)
    self.assertEqual(found.tolist(), [0, 3])

  def test_one_pass_gives_sums_and_top_tokens(self):
    sae_a, sae_b = toy.sae(seed=0), toy.sae(n=16, seed=1)
    x = np.asarray(toy.rows(200, 8))
    x_b = x.copy()
    x_b[17] = np.nan
    batches = [(x[:90], x_b[:90]), (x[90:], x_b[90:])]
    found = universality.observe(sae_a, sae_b, batches, top=3, batch_rows=64)
    good = np.delete(np.arange(200), 17)
    z_a, z_b = (np.asarray(toy.encode(s, x[good])) for s in (sae_a, sae_b))
    self.assertEqual(found.sums.rows, 199)
    want = sums_of(z_a, z_b).correlation
    np.testing.assert_allclose(found.sums.correlation, want, atol=1e-5)
    for latent in range(sae_b.n):
      rows = found.b.top(latent)[1]
      order = np.argsort(-z_b[:, latent], kind="stable")[: len(rows)]
      np.testing.assert_array_equal(rows, good[order])


class SimilarityTest(parameterized.TestCase):
  def planted(self, m=512, d=32):
    rng = np.random.default_rng(0)
    A = rng.standard_normal((m, d))
    return A, A @ rotation(d)

  def test_a_rotated_decoder_has_the_same_geometry(self):
    A, B = self.planted()
    for found in (
      similarity.svcca(A, B, count=19),
      similarity.svcca(A, B, share=None, count=19),
      similarity.rsa(A, B, count=19),
    ):
      self.assertAlmostEqual(found.score, 1, delta=1e-6)
      self.assertLess(found.shuffled.p, 0.06)

  @parameterized.parameters((16, 0.92), (32, 0.97), (512, 0.998))
  def test_rsa_by_correlation_depends_on_a_rotation(self, d, want):
    A, B = self.planted(m=160, d=d)
    order = np.arange(len(A))
    found = similarity.rsa_score(A, B, inner="correlation")(order)
    self.assertAlmostEqual(found, want, delta=0.02)
    self.assertLess(found, 1 - 1e-4)
    self.assertAlmostEqual(similarity.rsa_score(A, B)(order), 1, delta=1e-6)

  @parameterized.parameters((512, 0.21), (64, 0.64))
  def test_shuffled_pairs_are_biased_where_m_is_near_d(self, m, want):
    A, B = self.planted(m=m)
    rng = np.random.default_rng(1)
    means = [
      similarity.canonical(A, B[rng.permutation(m)]).mean() for _ in range(8)
    ]
    self.assertAlmostEqual(float(np.mean(means)), want, delta=0.02)

  def test_too_few_pairs_are_refused_or_reduced(self):
    A, B = self.planted(m=64)
    with self.assertRaisesRegex(
      InputError, "^pairs=64: must be at least 4 for"
    ):
      similarity.svcca(A, B, share=None)
    found = similarity.svcca(A, B, count=30)  # of at most 16 directions
    self.assertAlmostEqual(found.score, 1, delta=1e-6)
    self.assertLess(found.shuffled.mean, 0.5)
    with self.assertRaisesRegex(InputError, "^pairs=3: must be at least 4"):
      similarity.rsa(A[:3], B[:3])
    with self.assertRaisesRegex(InputError, "^B="):
      similarity.rsa(A, B[:5])
    with self.assertRaisesRegex(InputError, "^inner=dot"):
      similarity.rsa(A, B, inner="dot")
    with self.assertRaisesRegex(InputError, "^compat=code"):
      similarity.svcca(A, B, compat="code")

  def test_principal_directions_are_counted_by_shares_of_the_variance(self):
    rng = np.random.default_rng(0)
    A = rng.standard_normal((1000, 20)) * np.geomspace(10, 0.01, 20)
    B = rng.standard_normal((1000, 20))
    B[:, 0] = A[:, 0]  # only the first direction is shared
    first = np.arange(1000)
    reduced = similarity.svcca_score(A, B)(first)
    reference = similarity.svcca_score(A, B, compat="reference")(first)
    self.assertLess(reduced, 0.5)
    # One direction of each: that of A is shared, that of B is any.
    U, V = A - A.mean(axis=0), B - B.mean(axis=0)
    one = [np.linalg.svd(Z, full_matrices=False)[0][:, 0] for Z in (U, V)]
    self.assertAlmostEqual(reference, abs(float(one[0] @ one[1])), places=6)
    # Where the variance is below 1, the reference compares as it should.
    small = [Z / np.sqrt((Z**2).sum() / 999) for Z in (U, V)]
    again = similarity.svcca_score(*small, compat="reference")(first)
    self.assertAlmostEqual(again, similarity.svcca_score(*small)(first), 6)

  def test_of_independent_saes_p_is_uniform(self):
    for score in (similarity.svcca, similarity.rsa):
      p = []
      for seed in range(50):
        rng = np.random.default_rng(seed)
        A, B = rng.standard_normal((2, 60, 6))
        p.append(score(A, B, count=39, seed=seed).shuffled.p)
      self.assertAlmostEqual(float(np.mean(p)), 0.5, delta=0.13)
      self.assertLess(np.mean(np.array(p) <= 0.1), 0.3)
      self.assertGreater(np.mean(np.array(p) > 0.5), 0.25)

  def test_a_subset_is_compared_with_other_subsets(self):
    rng = np.random.default_rng(0)
    A = rng.standard_normal((200, 12))
    B = rng.standard_normal((200, 12))
    B[:40] = A[:40] @ rotation(12)
    score = functools.partial(similarity.rsa_score, inner="cosine")
    shared = similarity.of_subset(A, B, np.arange(40), score, count=39)
    self.assertAlmostEqual(shared.score, 1, delta=1e-6)
    self.assertLess(shared.subsets.p, 0.05)
    self.assertLess(shared.shuffled.p, 0.05)
    other = similarity.of_subset(A, B, np.arange(100, 140), score, count=39)
    self.assertGreater(other.subsets.p, 0.05)
    self.assertIn("subsets", shared.record())


class AlignmentTest(parameterized.TestCase):
  @parameterized.parameters(
    (["un", "do", " it"], ["undo", " ", "it"], [[1, 0], [2, 2]]),
    (["The", " cat"], ["the", " c", "at"], [[0, 0], [1, 2]]),
    (["a", " b"], ["a b"], [[1, 0]]),
    (["no", ".", " yes"], ["no", "?? ", "yes"], [[0, 0], [2, 2]]),
    (["a", " cat", " sat"], ["a", " ca"], [[0, 0]]),
    ([], [], []),
  )
  def test_words_end_together(self, a, b, want):
    found = token_alignment.common_word_ends(a, b)
    self.assertEqual(found.tolist(), want)

  def test_tokens_of_other_texts_are_refused(self):
    with self.assertRaisesRegex(InputError, "^tokens_b=two dogs"):
      token_alignment.common_word_ends(["one", " cat"], ["two", " dogs"])

  def test_same_tokens_are_joined_by_document_and_position(self):
    rng = np.random.default_rng(0)
    doc, pos = np.repeat(np.arange(5) * 2**40, 8), np.tile(np.arange(8), 5)
    a, b = rng.permutation(40)[:30], rng.permutation(40)[:25]
    found = token_alignment.same_tokens((doc[a], pos[a]), (doc[b], pos[b]))
    np.testing.assert_array_equal(a[found[:, 0]], b[found[:, 1]])
    self.assertLen(found, len(set(a) & set(b)))


if __name__ == "__main__":
  absltest.main()
