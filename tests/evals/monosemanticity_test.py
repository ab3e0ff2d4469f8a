"""Tests of saejax.evals.items.monosemanticity."""

import numpy as np
from absl.testing import absltest

from saejax.errors import InputError
from saejax.evals import matching
from saejax.evals.items import monosemanticity


def unit(rows, d, seed=0):
  return matching.unit(np.random.default_rng(seed).standard_normal((rows, d)))


def by_pairs(a, e):
  """The definition, pair by pair."""
  a = (a - a.min(axis=0)) / (a.max(axis=0) - a.min(axis=0))
  i, j = np.triu_indices(len(a), 1)
  weight = a[i] * a[j]
  return (weight * np.sum(e[i] * e[j], axis=1)[:, None]).sum(0) / weight.sum(0)


class ScoresTest(absltest.TestCase):
  def test_the_closed_form_is_the_sum_over_pairs(self):
    e = unit(200, 16).astype(np.float64)
    a = np.random.default_rng(1).gamma(0.3, size=(200, 5)) + 0.2
    found = monosemanticity.scores([(a, 3 * e)])
    np.testing.assert_allclose(found.score, by_pairs(a, e), atol=1e-6)
    i, j = np.triu_indices(200, 1)
    self.assertAlmostEqual(
      found.floor, float(np.mean(np.sum(e[i] * e[j], axis=1))), places=6
    )

  def test_order_and_batches_do_not_matter(self):
    e, a = unit(200, 16), np.random.default_rng(1).gamma(0.3, size=(200, 5))
    want = monosemanticity.scores([(a, e)]).score
    order = np.random.default_rng(2).permutation(200)
    batches = [(a[own], e[own]) for own in np.array_split(order, 7)]
    found = monosemanticity.scores(batches)
    np.testing.assert_allclose(found.score, want, atol=1e-9)

  def test_one_class_of_no_spread_is_1_and_two_are_known(self):
    m = 8
    e = np.repeat(np.eye(4), m, axis=0)
    one = np.repeat([1.0, 0, 0, 0], m)
    two = np.repeat([1.0, 1, 0, 0], m)
    found = monosemanticity.scores([(np.stack([one, two], axis=1), e)])
    np.testing.assert_allclose(
      found.score, [1, (m - 1) / (2 * m - 1)], atol=1e-12
    )

  def test_a_latent_of_noise_is_at_the_floor(self):
    e = matching.unit(unit(1000, 8, seed=1) + 0.7 * unit(1, 8, seed=2))
    noise = np.random.default_rng(3).random((1000, 4))
    found = monosemanticity.scores([(noise, e)])
    self.assertGreater(found.floor, 0.2)
    np.testing.assert_allclose(found.above_floor, 0, atol=0.02)

  def test_latents_without_a_score_are_counted_and_left_out(self):
    e = unit(50, 4)
    a = np.random.default_rng(0).random((50, 5))
    a[:, 1], a[:, 2], a[:, 3] = 0, 7, 0
    a[20, 3] = 2
    found = monosemanticity.scores([(a[:25], e[:25]), (a[25:], e[25:])])
    np.testing.assert_array_equal(np.isnan(found.score), [0, 1, 1, 1, 0])
    self.assertEqual((found.dead, found.single), (2, 1))
    record = found.record()
    self.assertEqual(record["latents"], 2)
    self.assertAlmostEqual(
      record["monosemanticity"], float(found.score[[0, 4]].mean())
    )
    self.assertAlmostEqual(
      record["monosemanticity_above_floor"],
      float(found.above_floor[[0, 4]].mean()),
    )

  def test_refuses_items_without_a_direction_and_a_single_reading(self):
    a, e = np.ones((3, 2)), unit(3, 4)
    zero, bad = e.copy(), a.copy()
    zero[1], bad[1, 1] = 0, np.nan
    for batches, rule in (
      ([(a, zero)], "embeddings"),
      ([(bad, e)], "activations"),
      ([(a[:1], e[:1])], "at least 2 items"),
      (iter([(a, e)]), "readable twice"),
    ):
      with self.assertRaisesRegex(InputError, rule):
        monosemanticity.scores(batches)


class UniquenessTest(absltest.TestCase):
  def test_overlaps_are_those_of_sets(self):
    rng = np.random.default_rng(0)
    top = np.stack([rng.choice(12, 5, replace=False) for _ in range(9)])
    top[3] = top[1]
    top[4, 2] = -1
    kept = [i for i in range(9) if i != 4]
    sets = [set(top[i]) for i in kept]
    want = np.array([[len(a & b) / len(a | b) for b in sets] for a in sets])
    np.fill_diagonal(want, 0)
    with absltest.mock.patch.object(monosemanticity, "_ROWS", 3):
      found = monosemanticity.uniqueness(top)
    np.testing.assert_array_equal(found.latents, kept)
    np.testing.assert_allclose(found.largest, want.max(axis=1))
    self.assertEqual(found.largest[kept.index(3)], 1)
    self.assertAlmostEqual(found.mean, want.sum() / (8 * 7))

  def test_top_items_are_the_largest_over_batches(self):
    a = np.random.default_rng(0).random((100, 3))
    a[:, 2] = 0
    a[70:73, 2] = [1, 3, 2]
    found = monosemanticity.top_items(np.array_split(a, 4), top=5)
    np.testing.assert_array_equal(
      found.top_rows[:2], np.argsort(-a[:, :2], axis=0)[:5].T
    )
    np.testing.assert_array_equal(found.top_rows[2], [71, 72, 70, -1, -1])

  def test_refuses_a_single_latent(self):
    with self.assertRaisesRegex(InputError, "^top=1 latents"):
      monosemanticity.uniqueness(np.array([[0, 1], [2, -1]]))


if __name__ == "__main__":
  absltest.main()
