"""Tests of saejax.evals.hypotheses.regression."""

import numpy as np
import scipy.stats
from absl.testing import absltest, parameterized

from saejax.errors import InputError
from saejax.evals.hypotheses import regression


def data(seed=0, N=200, h=3):
  rng = np.random.default_rng(seed)
  X = (rng.random((N, h)) < 0.4).astype(float)
  return X, rng


class FitTest(parameterized.TestCase):
  def test_one_variable_is_scipys_linear_regression(self):
    X, rng = data(h=1)
    y = 0.3 * X[:, 0] + rng.normal(size=200)
    found = regression.fit(X, y)
    want = scipy.stats.linregress(X[:, 0], y)
    self.assertAlmostEqual(found.coefficient[0], want.slope)
    self.assertAlmostEqual(found.intercept, want.intercept)
    self.assertAlmostEqual(found.p[0], want.pvalue)

  def test_several_are_those_of_the_projection_of_one_from_the_others(self):
    X, rng = data()
    y = X @ [0.5, -0.2, 0.0] + rng.normal(size=200)
    found = regression.fit(X, y)
    A = np.column_stack([np.ones(200), X[:, :2]])
    rest = lambda v: v - A @ np.linalg.lstsq(A, v, rcond=None)[0]
    x, r = rest(X[:, 2]), rest(y)
    w = x @ r / (x @ x)
    se = np.sqrt(np.sum((r - w * x) ** 2) / 196 / (x @ x))
    self.assertAlmostEqual(found.coefficient[2], w)
    self.assertAlmostEqual(found.p[2], 2 * scipy.stats.t.sf(abs(w / se), 196))

  def test_a_logit_of_one_binary_variable_has_the_log_odds_ratio(self):
    X, rng = data(h=1, N=400)
    y = rng.random(400) < np.where(X[:, 0] > 0, 0.7, 0.4)
    found = regression.fit(X, y)
    odds = [y[X[:, 0] == v].mean() for v in (0, 1)]
    logit = [np.log(p / (1 - p)) for p in odds]
    self.assertAlmostEqual(found.coefficient[0], logit[1] - logit[0], places=4)
    self.assertAlmostEqual(found.intercept, logit[0], places=4)
    table = [
      [(y & (X[:, 0] == v)).sum(), (~y & (X[:, 0] == v)).sum()] for v in (0, 1)
    ]
    want = scipy.stats.chi2_contingency(
      table, correction=False, lambda_="log-likelihood"
    )
    self.assertAlmostEqual(found.p[0], want.pvalue, places=6)

  @parameterized.parameters(False, True)
  def test_p_values_are_uniform_where_nothing_goes_with_the_target(self, logit):
    p = []
    for seed in range(100):
      X, rng = data(seed, N=80)
      y = rng.random(80) < 0.5
      p.append(regression.fit(X, y if logit else y + rng.normal(size=80)).p)
    self.assertGreater(scipy.stats.kstest(np.ravel(p), "uniform").pvalue, 0.01)

  @parameterized.parameters(False, True)
  def test_constant_and_dependent_variables_have_p_1(self, logit):
    X, rng = data()
    X = np.column_stack([X[:, 0], np.ones(200), X[:, 1], X[:, 0] - X[:, 1]])
    y = X[:, 0] + rng.normal(size=200) > 0.5
    found = regression.fit(X, y if logit else y + 0.0)
    self.assertEqual(found.p[[1, 3]].tolist(), [1, 1])
    self.assertEqual(found.coefficient[[1, 3]].tolist(), [0, 0])
    self.assertLess(found.p[0], 1e-3)

  def test_separated_classes_are_significant(self):
    X, _ = data(h=2)
    found = regression.fit(X, X[:, 0] > 0)
    self.assertLess(found.p[0], 1e-20)
    self.assertTrue(np.isfinite(found.coefficient).all())

  @parameterized.parameters(
    (np.zeros((9, 1)), np.ones(9), "y=9 rows: must take two values"),
    (np.zeros((9, 1)), np.arange(8.0), "y=.*one value for each row"),
    (np.eye(4), np.arange(4.0), "X=4: must be at least"),
    (np.full((9, 1), np.nan), np.arange(9.0), "must be finite"),
  )
  def test_what_cannot_be_fitted_is_refused(self, X, y, said):
    with self.assertRaisesRegex(InputError, said):
      regression.fit(X, y)


if __name__ == "__main__":
  absltest.main()
