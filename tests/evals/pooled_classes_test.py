"""saejax/evals/probing/document_features.py, pooled_classes.py and trees.py."""

import numpy as np
from absl.testing import absltest, parameterized

from saejax import errors
from saejax.evals import metrics
from saejax.evals.probing import document_features as features
from saejax.evals.probing import pooled_classes, probe, trees


def latents(seed=0, B=6, T=9, n=12, share=0.3):
  rng = np.random.default_rng(seed)
  z = np.abs(rng.standard_normal((B, T, n))) * (rng.random((B, T, n)) < share)
  mask = np.arange(T) < rng.integers(1, T + 1, (B, 1))
  return z.astype(np.float32), mask


class PoolTest(parameterized.TestCase):
  def test_identities_of_pooling(self):
    # mosaic, check 1.
    z, mask = latents()
    n = z.shape[-1]
    count = features.pool(z, mask, "topn_count", top_n=n)
    np.testing.assert_array_equal(count, ((z != 0) & mask[..., None]).sum(1))
    other = features.pool(z, mask, "topn_count", top_n=n, compat="mosaic")
    length = mask.sum(axis=1).astype(np.float32)
    np.testing.assert_array_equal(other, np.repeat(length[:, None], n, axis=1))
    total, mean = (features.pool(z, mask, how) for how in ("sum", "mean"))
    np.testing.assert_allclose(total / length[:, None], mean, rtol=1e-6)
    largest = features.pool(z, mask, "max")
    np.testing.assert_array_equal(
      features.binarise(total, 0), features.binarise(largest, 0)
    )

  def test_poolings_are_those_of_the_definition(self):
    z, mask = latents(1)
    for i, length in enumerate(mask.sum(axis=1)):
      own = z[i, :length]
      for how, want in (
        ("sum", own.sum(0)), ("max", own.max(0)), ("last", own[-1]),
      ):  # fmt: skip
        got = features.pool(z, mask, how)[i]
        np.testing.assert_allclose(got, want, rtol=1e-6)
      top = np.zeros(z.shape[-1])
      for row in own:
        best = np.argsort(-row)[:3]
        top[best[row[best] > 0]] += 1
      got = features.pool(z, mask, "topn_count", top_n=3)[i]
      np.testing.assert_array_equal(got, top)

  def test_a_short_text_has_no_count_of_a_latent_that_never_fired(self):
    # mosaic, check 2.
    z = np.zeros((1, 3, 10), np.float32)
    z[0, :, 7], z[0, 1, 2] = 1, 0.5
    mask = np.ones((1, 3), bool)
    fired = (z > 0).any(axis=(0, 1))
    got = features.pool(z, mask, "topn_count", top_n=5)
    np.testing.assert_array_equal(got[0][~fired], 0)
    np.testing.assert_array_equal(got[0][fired], [1, 3])
    other = features.pool(z, mask, "topn_count", top_n=5, compat="mosaic")
    self.assertGreater(float(other[0][~fired].max()), 0)
    self.assertEqual(float(other.sum()), 15)

  def test_counts_do_not_overflow(self):
    z = np.ones((1, 300, 2), np.float32)
    got = features.pool(z, np.ones((1, 300), bool), "topn_count", top_n=2)
    np.testing.assert_array_equal(got, 300)

  def test_a_document_without_tokens_has_0(self):
    z, _ = latents()
    for how in features.HOW:
      got = features.pool(z, np.zeros(z.shape[:2], bool), how)
      np.testing.assert_array_equal(got, 0)

  def test_other_choices_are_refused(self):
    z, mask = latents()
    for options in ({"how": "min"}, {"compat": "x"}):
      with self.assertRaises(errors.InputError):
        features.pool(z, mask, **options)
    with self.assertRaisesRegex(errors.InputError, r"top_n=13.*\[1, n=12\]"):
      features.pool(z, mask, "topn_count", top_n=13)


class BaselinesTest(absltest.TestCase):
  def test_tf_idf_weighs_rare_tokens_more(self):
    ids = np.array([[1, 2, 2], [1, 3, 9], [1, 2, 9]])
    mask = np.array([[1, 1, 1], [1, 1, 0], [1, 1, 0]], bool)
    found = features.tf_idf(ids, mask)
    self.assertEqual(found.tokens.tolist(), [1, 2, 3])
    want = np.log(4 / np.array([4, 3, 2])) + 1
    np.testing.assert_allclose(found.weight, want)
    x = found(ids, mask)
    np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1)
    np.testing.assert_allclose(x[0, 1] / x[0, 0], 2 * want[1] / want[0])
    other = found(np.array([[7, 8, 3]]), np.ones((1, 3), bool))
    np.testing.assert_allclose(other, [[0, 0, 1]])
    self.assertEqual(features.tf_idf(ids, mask, most=2).tokens.tolist(), [1, 2])
    np.testing.assert_array_equal(features.lengths(mask)[:, 0], [3, 2, 2])


def planted(length, *, documents=200, seed=0):
  """Latent 0 fires at 1 on two tokens of documents of class 1, and is noisy."""
  rng = np.random.default_rng(seed)
  shape = documents, length, 6
  z = rng.uniform(0, 0.5, shape) * (rng.random(shape) < 0.3)
  label = np.arange(documents) % 2
  for row, positive in zip(z, label, strict=True):
    if positive:
      row[rng.choice(length, 2, replace=False), 0] = 1
  return z.astype(np.float32), np.ones(shape[:2], bool), label


class ClassesTest(parameterized.TestCase):
  def test_a_planted_class_is_found_by_max_and_lost_by_mean(self):
    # mosaic, check 3.
    found = []
    for length in (8, 64, 400):
      z, mask, label = planted(length)
      largest = np.asarray(features.pool(z, mask, "max"))
      table = {
        "max": largest,
        "binary": features.binarise(largest, 0.7),
        "mean": np.asarray(features.pool(z, mask, "mean")),
        "length": features.lengths(mask),
      }
      result = pooled_classes.compare(table, label, standardise=("length",))
      self.assertEqual(result["max"].macro_f1, 1)
      self.assertEqual(result["binary"].macro_f1, 1)
      self.assertEqual(result["max"].auc, 1)
      self.assertLess(result["length"].macro_f1, 0.7)
      found.append(result["mean"].macro_f1)
    self.assertGreater(found[0], found[1])
    self.assertGreater(found[1], found[2])
    self.assertGreater(found[0] - found[2], 0.3)

  def test_l2_is_the_same_in_rotated_features_and_l1_is_not(self):
    # mosaic, check 4.
    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, 30))
    y = x[:, 0] + 0.8 * rng.standard_normal(300) > 0
    Q = np.linalg.qr(rng.standard_normal((30, 30)))[0]
    train = pooled_classes.train_rows(y)
    lasso = {"l1": lambda x, y: probe.logistic(x, y, l1=6.0, l2=0.0)}
    scores = {}
    for name, settings in (("l2", None), ("l1", lasso)):
      scores[name] = [
        pooled_classes.fit(features_[train], y[train], settings=settings).score(
          features_[~train]
        )[:, 1]
        for features_ in (x, x @ Q)
      ]
    accuracy = lambda score: np.mean((score > 0) == y[~train])
    same, other = scores["l2"], scores["l1"]
    self.assertAlmostEqual(accuracy(same[0]), accuracy(same[1]), delta=1e-3)
    np.testing.assert_allclose(same[0], same[1], atol=1e-3)
    self.assertGreater(np.abs(other[0] - other[1]).max(), 0.1)
    self.assertNotAlmostEqual(
      accuracy(other[0]), accuracy(other[1]), delta=1e-3
    )

  def test_several_classes_and_another_source(self):
    rng = np.random.default_rng(0)
    label = np.array(["de", "en", "fr"])[rng.integers(3, size=150)]
    centre = {"de": [3, 0], "en": [0, 3], "fr": [-3, -3]}
    draw = lambda: (
      np.array([centre[k] for k in label]) + 0.5 * rng.standard_normal((150, 2))
    )
    train = pooled_classes.train_rows(label)
    for name in centre:
      self.assertAlmostEqual((~train)[label == name].mean(), 0.2, delta=0.03)
    classifier = pooled_classes.fit(draw()[train], label[train])
    found = classifier.measure(draw(), label)  # transfer
    self.assertGreater(found.macro_f1, 0.97)
    self.assertGreater(found.auc, 0.99)
    self.assertIn(classifier.setting, pooled_classes.L2_GRID)
    predicted = np.array(["de", "de", "fr", "fr"])
    truth = np.array(["de", "en", "fr", "de"])
    self.assertAlmostEqual(
      pooled_classes.macro_f1(predicted, truth), (0.5 + 0 + 2 / 3) / 3
    )

  def test_documents_of_a_group_are_in_one_fold(self):
    # Labels of groups at random: from its copies a document is known.
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 4)
    x = np.eye(40)[groups] + 0.01 * rng.standard_normal((160, 40))
    label = rng.integers(2, size=40)[groups]
    settings = {1: pooled_classes.logistic(1.0)}
    together = pooled_classes.fit(x, label, groups=groups, settings=settings)
    apart = pooled_classes.fit(x, label, settings=settings)
    self.assertGreater(apart.validation, 0.95)
    self.assertLess(together.validation, 0.7)
    for of, low, high in ((groups, 0, 0.75), (None, 0.95, 1)):
      given = {"settings": settings} | ({} if of is None else {"groups": of})
      found = pooled_classes.compare({"x": x}, label, **given)["x"].macro_f1
      self.assertBetween(found, low, high)

  def test_one_class_is_refused(self):
    with self.assertRaisesRegex(errors.InputError, "at least 2 classes"):
      pooled_classes.fit(np.ones((5, 2)), np.zeros(5, int))
    with self.assertRaisesRegex(errors.InputError, "2 documents"):
      pooled_classes.train_rows(np.array([0, 0, 1]))


class TreesTest(parameterized.TestCase):
  def exclusive_or(self, count=200, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.random((count, 3))
    x[:, 0] *= 0.9  # or no first division helps
    return x, (x[:, 0] > 0.5) ^ (x[:, 1] > 0.5)

  def test_a_tree_finds_what_no_line_divides(self):
    x, y = self.exclusive_or()
    tree = pooled_classes.fit(x, y, settings=trees.settings((5,), (2,), (1,)))
    line = pooled_classes.fit(x, y)
    other, truth = self.exclusive_or(seed=1)
    self.assertGreater(tree.measure(other, truth).macro_f1, 0.9)
    self.assertLess(line.measure(other, truth).macro_f1, 0.7)

  def test_the_first_division_has_the_least_impurity(self):
    rng = np.random.default_rng(0)
    x = np.round(rng.random((40, 5)), 1)  # with ties
    y = np.eye(3, dtype=bool)[rng.integers(3, size=40)]
    tree = trees.fit(x, y, depth=1, min_leaf=4)

    def impurity(low):
      sides = [y[low], y[~low]]
      return sum(len(s) * (1 - (s.mean(axis=0) ** 2).sum()) for s in sides)

    candidates = [
      impurity(x[:, j] <= t)
      for j in range(5)
      for t in np.unique(x[:, j])[:-1]
      if 4 <= (x[:, j] <= t).sum() <= 36
    ]
    got = impurity(x[:, tree.feature[0]] <= tree.threshold[0])
    self.assertAlmostEqual(got, min(candidates))
    self.assertLen(tree.feature, 3)
    share = tree.score(x).sum(axis=1)
    np.testing.assert_allclose(share, 1)

  def test_neighbouring_floats_are_divided(self):
    x = np.array([[np.nextafter(1.0, 0)], [1.0]])
    tree = trees.fit(x, np.array([[False], [True]]), depth=1)
    np.testing.assert_array_equal(tree.score(x)[:, 0] > 0, [False, True])

  def test_limits_hold(self):
    x, y = self.exclusive_or()
    tree = trees.fit(x, y[:, None], depth=3, min_split=20, min_leaf=7)
    node = np.zeros(len(x), int)
    for _ in range(3):
      inner = tree.feature[node] >= 0
      low = x[np.arange(len(x)), tree.feature[node]] <= tree.threshold[node]
      step = np.where(low, tree.left[node], tree.right[node])
      node = np.where(inner, step, node)
    self.assertTrue((tree.feature[node] == -1).all())  # at most 3 deep
    self.assertGreaterEqual(np.bincount(node)[np.unique(node)].min(), 7)
    deep = trees.fit(x, y[:, None], depth=30)
    np.testing.assert_array_equal(deep.score(x)[:, 0] > 0, y)
    self.assertEqual(metrics.f1(deep.score(x)[:, 0] > 0, y), 1)


if __name__ == "__main__":
  absltest.main()
