"""Tests of saejax.evals.probing.probe: scikit-learn's fits, and what must be true."""

import pathlib

import numpy as np
import safetensors.numpy
import scipy.sparse
from absl.testing import absltest, parameterized

from saejax.errors import InputError
from saejax.evals import metrics
from saejax.evals.probing import probe

GOLDEN = safetensors.numpy.load_file(
  pathlib.Path(__file__).parents[1] / "golden/sklearn.safetensors"
)
CASES = {
  "l2": lambda x, y, t: probe.logistic(x, y, l2=0.5),
  "balanced": lambda x, y, t: probe.logistic(x, y, balanced=True),
  "l1": lambda x, y, t: probe.logistic(x, y, l1=4.0, l2=0.0),
  "elastic": lambda x, y, t: probe.logistic(x, y, l1=3.0, l2=3.0),
  "ridge": lambda x, y, t: probe.ridge(x, t, l2=2.0),
  "lasso": lambda x, y, t: probe.lasso(x, t, alpha=0.2),
}


def planted(rows=400, d=12, seed=0):
  """Rows and labels that depend on the first two columns, with noise."""
  rng = np.random.default_rng(seed)
  x = rng.standard_normal((rows, d))
  noise = rng.standard_normal(rows)
  return x, x[:, 0] - x[:, 1] + 0.5 * noise > 0


class FitTest(parameterized.TestCase):
  @parameterized.parameters(*CASES)
  def test_a_fit_is_that_of_scikit_learn(self, case):
    found = CASES[case](GOLDEN["x"], GOLDEN["y"], GOLDEN["target"])
    for name in ("weight", "bias"):
      wanted = GOLDEN[f"{case}/{name}"]
      np.testing.assert_allclose(getattr(found, name), wanted, atol=1e-6)
    if case in ("l1", "elastic", "lasso"):
      np.testing.assert_array_equal(
        found.weight == 0, GOLDEN[f"{case}/weight"] == 0
      )
      self.assertTrue((found.weight == 0).any())

  def test_with_more_columns_than_rows_too(self):
    found = probe.logistic(GOLDEN["wide"], GOLDEN["wide_y"], l2=0.5)
    for name in ("weight", "bias"):
      wanted = GOLDEN[f"wide/{name}"]
      np.testing.assert_allclose(getattr(found, name), wanted, atol=1e-6)

  @parameterized.parameters(0.0, 3.0)
  def test_the_slope_at_a_fit_is_0_or_within_the_penalty(self, l1):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((60, 90)) + 2, rng.random(60) < 0.4
    found = probe.logistic(x, y, l2=0.1, l1=l1)
    error = 1 / (1 + np.exp(-found.score(x)[:, 0])) - y
    self.assertAlmostEqual(error.sum(), 0, places=7)
    slope = x.T @ error + 0.1 * found.weight[0]
    on = found.weight[0] != 0
    sign = np.sign(found.weight[0])
    np.testing.assert_allclose(slope[on], -l1 * sign[on], atol=1e-7)
    self.assertLessEqual(np.abs(slope[~on]).max(initial=0), l1 * (1 + 1e-8))
    self.assertEqual(on.all(), l1 == 0)

  def test_l2_does_not_depend_on_a_rotation_and_l1_does(self):
    x, y = planted()
    test, label = planted(seed=1)
    Q = np.linalg.qr(np.random.default_rng(2).standard_normal((12, 12)))[0]

    def accuracies(**penalty):
      return [
        (
          (probe.logistic(x @ R, y, **penalty).score(test @ R)[:, 0] > 0)
          == label
        ).mean()
        for R in (np.eye(12), Q)
      ]

    straight, rotated = accuracies(l2=20.0)
    self.assertAlmostEqual(straight, rotated, delta=1e-3)
    straight, rotated = accuracies(l2=0.0, l1=60.0)
    self.assertGreater(abs(straight - rotated), 1e-3)

  def test_classes_in_one_call_are_those_in_turn(self):
    x, y = GOLDEN["x"], GOLDEN["y"]
    both = probe.logistic(x, y, l1=1.0)
    for i in range(2):
      one = probe.logistic(x, y[:, i], l1=1.0)
      np.testing.assert_array_equal(one.weight[0], both.weight[i])

  def test_the_dual_form_of_ridge_is_the_primal_one(self):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((20, 30)), rng.standard_normal((20, 2))
    found = probe.ridge(x, y, l2=0.7)
    centred = x - x.mean(axis=0)
    slope = centred.T @ (y - found.score(x)) - 0.7 * found.weight.T
    np.testing.assert_allclose(slope, 0, atol=1e-10)
    free = probe.ridge(x, y, l2=0.0)
    np.testing.assert_allclose(free.score(x), y, atol=1e-9)

  @parameterized.parameters("squared", "logistic")
  def test_lasso_to_count_finds_the_planted_columns(self, loss):
    x, y = planted()
    found = probe.lasso_to_count(x, y, count=2, loss=loss)
    self.assertEqual(np.flatnonzero(found.weight[0]).tolist(), [0, 1])
    wanted = probe.correlation(x, y)
    self.assertEqual(sorted(probe.top(wanted, 2)[0].tolist()), [0, 1])

  def test_of_duplicated_latents_correlation_takes_both_and_lasso_one(self):
    x, y = planted()
    x = np.concatenate([x[:, :1], x], axis=1)  # columns 0 and 1 are equal
    chosen = probe.top(probe.correlation(x, x[:, 0] - 0.3 * x[:, 2]), 2)
    self.assertEqual(sorted(chosen[0].tolist()), [0, 1])
    found = probe.lasso_to_count(x, y, count=2).weight[0]
    self.assertEqual((found[:2] != 0).sum(), 1)
    self.assertNotEqual(found[2], 0)

  @parameterized.parameters(
    (lambda x, y: probe.logistic(x, y | True), "^y=column 0, all True"),
    (lambda x, y: probe.logistic(x, y * np.nan), "^y=nan"),
    (lambda x, y: probe.logistic(x * np.nan, y), "^x=nan"),
    (lambda x, y: probe.logistic(x, y[1:]), "^y=shape"),
    (lambda x, y: probe.logistic(x, y, l2=-1.0), "^l2=-1.0"),
    (lambda x, y: probe.ridge(x, y / 0.0, l2=1.0), "^y="),
    (lambda x, y: probe.lasso(x, y, alpha=0.0), "^alpha=0.0"),
    (lambda x, y: probe.lasso_to_count(x, y, count=13), "^count=13"),
    (lambda x, y: probe.lasso_to_count(x, y, count=1, loss="l"), "^loss=l"),
    (lambda x, y: probe.mean_gap(x, y & False), "^y=column 0, all False"),
    (lambda x, y: probe.top(probe.mean_gap(x, y), 13), "^k=13"),
    (lambda x, y: probe.separation(x, y, compat="other"), "^compat=other"),
  )
  def test_refuses_what_cannot_be_fitted(self, fit, message):
    x, y = planted(40)
    with np.errstate(all="ignore"), self.assertRaisesRegex(InputError, message):
      fit(x, y)


class SelectionTest(parameterized.TestCase):
  def test_mean_gap_is_the_difference_of_means_of_sparse_rows_too(self):
    x, y = planted(50)
    x = np.maximum(x, 0)
    labels = np.stack([y, ~y], axis=1)
    wanted = x[y].mean(axis=0) - x[~y].mean(axis=0)
    for rows in (x, scipy.sparse.csr_array(x)):
      found = probe.mean_gap(rows, labels)
      np.testing.assert_allclose(found, [wanted, -wanted])

  def test_correlation_is_pearsons_and_0_of_a_constant(self):
    x, y = planted(50)
    x[:, 3] = 0.1
    found = probe.correlation(x, y)[0]
    self.assertEqual(found[3], 0)
    self.assertAlmostEqual(found[0], np.corrcoef(x[:, 0], y)[0, 1])
    sparse = probe.correlation(scipy.sparse.csr_array(x), y)[0]
    np.testing.assert_allclose(sparse, found)

  def test_separation_counts_active_rows_only_and_compat_fills_up(self):
    x = np.zeros((100, 3))
    x[[50, 60, 70], 0] = 1.0
    x[:, 1] = np.arange(100)
    y = np.zeros(100)
    y[[50, 60]], y[:5] = 1, 1
    found = probe.separation(x, y, largest=5)[0]
    self.assertAlmostEqual(found[0], 2 / 3 - 5 / 97)
    self.assertAlmostEqual(found[1], 0 - 1)
    self.assertEqual(found[2], 0)  # never active
    filled = probe.separation(x, y, largest=5, compat="hypothesaes")[0]
    self.assertAlmostEqual(filled[0], 4 / 5 - 5 / 97)
    self.assertAlmostEqual(filled[2], 1 - y.mean())  # by the order of rows

  def test_top_is_by_size_and_the_first_of_equal_ones(self):
    found = probe.top(np.array([[1.0, -3.0, 2.0, 3.0]]), 3)
    self.assertEqual(found.tolist(), [[1, 3, 2]])


class SplitTest(absltest.TestCase):
  def test_folds_hold_whole_documents_and_like_numbers_of_rows(self):
    groups = np.repeat(np.arange(40), np.arange(40) % 7 + 1)
    fold = probe.folds(groups, 5, seed=0)
    for document in range(40):
      self.assertLen(set(fold[groups == document]), 1)
    sizes = np.bincount(fold, minlength=5)
    self.assertLessEqual(sizes.max() - sizes.min(), 7)
    self.assertFalse(np.array_equal(fold, probe.folds(groups, 5, seed=1)))

  def test_split_keeps_documents_whole_and_the_share(self):
    groups = np.repeat(np.array([f"d{i}" for i in range(50)]), 4)
    train = probe.split(groups, test=0.2, seed=0)
    self.assertEqual(train.sum(), 160)
    self.assertEmpty(set(groups[train]) & set(groups[~train]))
    few = probe.split(np.array([0, 0, 0, 1]), test=0.01, seed=0)
    self.assertTrue(few.any() and not few.all())

  def test_refuses_fewer_documents_than_folds(self):
    with self.assertRaisesRegex(InputError, "^count=5"):
      probe.folds(np.array([0, 1, 2, 2, 2, 2]), 5, seed=0)
    with self.assertRaisesRegex(InputError, "^groups="):
      probe.split(np.zeros(9), seed=0)
    with self.assertRaisesRegex(InputError, "^test=1.5"):
      probe.split(np.arange(9), test=1.5, seed=0)


class UseTest(absltest.TestCase):
  def test_a_probe_of_folds_predicts_held_out_rows(self):
    x, y = planted()
    fold = probe.folds(np.arange(len(x)), 4, seed=0)
    score = np.zeros(len(x))
    for i in range(4):
      fit = probe.logistic(x[fold != i], y[fold != i])
      score[fold == i] = fit.score(x[fold == i])[:, 0]
    best = metrics.auroc(x[:, 0] - x[:, 1], y)  # of the planted score
    self.assertAlmostEqual(metrics.auroc(score, y), best, delta=0.03)
    permuted = np.random.default_rng(0).permutation(y)
    self.assertLess(abs(metrics.auroc(score, permuted) - 0.5), 0.1)


if __name__ == "__main__":
  absltest.main()
