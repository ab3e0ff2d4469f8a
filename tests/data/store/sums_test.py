"""Sums of rows against NumPy over all rows at once."""

import json

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax.data.store import sums


class SumsTest(parameterized.TestCase):
  @parameterized.parameters(np.float32, jnp.bfloat16)
  def test_stats_equal_those_of_all_rows(self, dtype):
    x = np.random.default_rng(0).standard_normal((10_007, 5)) * 3 + 1
    x = x.astype(dtype)
    parts = [sums.summed(x[i : i + 3000]) for i in range(0, len(x), 3000)]
    found = sums.stats(sums.merge(parts, d=5), (5,))
    x = x.astype(np.float64)
    np.testing.assert_allclose(found["mean"], x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found["variance"], x.var(0), rtol=1e-9)
    self.assertAlmostEqual(
      found["mean_square"], (x**2).sum(-1).mean(), delta=1e-9
    )
    norms = np.linalg.norm(x, axis=-1)
    for q, value in found["norm_quantiles"].items():
      exact = np.quantile(norms, float(q))
      self.assertAlmostEqual(value / exact, 1, delta=0.02)
    ratio = (np.abs(x.mean(0)) / x.std(0)).max()
    self.assertAlmostEqual(found["mean_over_std_max"], ratio, places=9)
    self.assertEqual(found["max_abs"], np.abs(x).max())
    self.assertEqual(found["nonfinite_rows"], 0)

  def test_json_gives_the_bits_back(self):
    x = np.random.default_rng(0).standard_normal((100, 3)) / 3
    x[4] = 0
    found = sums.summed(x)
    again = sums.Sums.from_json(json.loads(json.dumps(found.to_json())))
    self.assertEqual(found.to_json(), again.to_json())
    np.testing.assert_array_equal(found.x, again.x)
    self.assertEqual(again.norms[None], 1)

  def test_rows_that_are_not_finite_are_counted_and_left_out(self):
    x = np.ones((10, 2))
    x[3, 1] = np.nan
    x[5, 0] = -np.inf
    found = sums.stats(sums.summed(x), (2,))
    self.assertEqual(found["nonfinite_rows"], 2)
    self.assertEqual(found["mean"], [1, 1])

  def test_no_rows_have_stats(self):
    found = sums.stats(sums.merge([], d=2), (2,))
    self.assertEqual(found["mean"], [0, 0])


if __name__ == "__main__":
  absltest.main()
