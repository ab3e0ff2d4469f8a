"""Tests of saejax.evals.autointerp.autointerp_examples."""

import numpy as np
from absl.testing import absltest, parameterized

from saejax.errors import InputError
from saejax.evals.autointerp import autointerp_examples as given
from saejax.features import activity, summary
from tests.evals import keyword_world as world


def values(count, seed=0):
  return np.random.default_rng(seed).exponential(size=count)


class SplitTest(parameterized.TestCase):
  """Check 3: no window explains and tests; quantiles are ordered."""

  @parameterized.product(count=(200, 503), how=given.HOW)
  def test_train_and_test_are_disjoint_for_any_seed(self, count, how):
    for seed in range(20):
      found = given.split(values(count, seed), how=how, seed=seed)
      self.assertEmpty(np.intersect1d(found.train, found.test))
      self.assertLen(np.unique(found.train), 40)
      self.assertLen(np.unique(found.test), 50)

  def test_delphis_overlap_is_kept_under_compat(self):
    found = given.split(values(200), compat="delphi")
    self.assertGreaterEqual(len(np.intersect1d(found.train, found.test)), 10)

  def test_maxima_of_a_quantile_are_at_least_those_of_the_next(self):
    value = values(333)
    found = given.split(value)
    for q in range(9):
      self.assertGreaterEqual(
        value[found.quantile == q].min(), value[found.quantile == q + 1].max()
      )
    sizes = np.bincount(found.quantile)
    self.assertLessEqual(sizes.max() - sizes.min(), 1)

  def test_test_has_equal_counts_of_each_quantile(self):
    found = given.split(values(400))
    counts = np.bincount(found.quantile[found.test], minlength=10)
    self.assertEqual(counts.tolist(), [5] * 10)
    counts = np.bincount(found.quantile[found.train], minlength=10)
    self.assertEqual(counts.tolist(), [4] * 10)

  def test_top_and_mix_take_the_strongest_of_their_part(self):
    value = values(400)
    top = given.split(value, how="top")
    self.assertGreater(value[top.train].min(), np.median(value))
    mix = given.split(value, how="mix", seed=3)
    ours = np.setdiff1d(np.arange(400), mix.test)
    self.assertGreaterEqual(
      np.isin(mix.train[:8], ours[np.argsort(-value[ours])][:40]).sum(), 8
    )
    self.assertLess(value[mix.train].min(), np.median(value))

  def test_ranks_are_those_of_the_sample_and_tests_are_of_it(self):
    value = np.concatenate([values(300), 20 + np.arange(50.0)])
    sampled = np.arange(350) < 300
    found = given.split(value, how="top", sampled=sampled)
    self.assertTrue(sampled[found.test].all())
    self.assertGreater((~sampled[found.train]).sum(), 10)
    self.assertTrue((found.quantile[300:] == 0).all())
    self.assertEqual(np.bincount(found.quantile[:300]).tolist(), [30] * 10)

  @parameterized.parameters(
    ({"train": 0}, "train=0"),
    ({"how": "best"}, "how=best"),
    ({"compat": "x"}, "compat=x"),
    ({"quantiles": 300}, "windows=200"),
  )
  def test_wrong_settings_are_refused(self, settings, said):
    with self.assertRaisesRegex(InputError, said):
      given.split(values(200), **settings)


class SilentTest(absltest.TestCase):
  def test_silent_windows_are_drawn_without_replacement(self):
    pool = [*world.silent(60), *world.active(60)]
    found = given.silent(pool, 50)
    self.assertLen({w.key for w in found}, 50)
    self.assertFalse(any(w.active.any() for w in found))
    rest = given.silent(pool, 50, without=found)
    self.assertLen(rest, 10)  # of a dense latent, as many as there are
    self.assertEmpty({w.key for w in rest} & {w.key for w in found})

  def test_hard_ones_are_those_nearest_in_embedding(self):
    pool = [*world.silent(40), *world.silent(5, word="cat", seed=7)]

    def embed(texts):
      return np.array([[" cat" in t, 0.1] for t in texts], float)

    found = given.hard(world.active(30), pool, 5, embed)
    self.assertTrue(all(" cat" in w.text for w in found))
    self.assertFalse(any(w.active.any() for w in found))

  def test_neighbours_by_jaccard_and_cosine(self):
    n, rows = 4, 100
    z = np.zeros((rows, n), bool)
    z[:40, 0] = z[20:50, 1] = z[:80, 2] = True
    found = activity.Activity(
      summary=summary.Summary(
        latents=np.array([0]),
        rows=rows,
        count=z[:, :1].sum(axis=0),
        sum=np.zeros(1),
        square=np.zeros(1),
        top_values=np.zeros((1, 0)),
        top_rows=np.zeros((1, 0), int),
      ),
      histogram=np.zeros((1, activity.BINS), int),
      samples=activity.drawn(0, *summary.NONE),
      together=(z[:, :1].T.astype(int) @ z.astype(int)).astype(np.int32),
      count=z.sum(axis=0),
    )
    score = given.jaccard(found, 0)
    np.testing.assert_allclose(score, [0, 20 / 50, 40 / 80, 0])
    self.assertEqual(given.nearest(score, 3).tolist(), [2, 1])
    W = np.array([[1.0, 0], [3, 4], [0, 2], [-1, 0]])
    np.testing.assert_allclose(given.cosine(W, 0), [0, 0.6, 0, -1])


if __name__ == "__main__":
  absltest.main()
