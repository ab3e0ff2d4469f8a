"""Tests of saejax.training.parts.contrast."""

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax import errors
from saejax.training.parts import contrast
from tests import toy

Z = jnp.abs(toy.rows(5, 2, 6))  # latents of five pairs


def record(z, weight=None):
  x = jnp.zeros((*z.shape[:-1], 1))
  return toy.record(z, x=x, batch=toy.Batch(x=x, weight=weight))


class ContrastTest(parameterized.TestCase):
  def test_terms_sum_over_latents_and_average_over_pairs(self):
    z = np.asarray(Z)
    c = np.abs(z[:, 0, :3] - z[:, 1, :3]).sum(axis=-1)
    d = np.abs(z[:, 0, 3:] * z[:, 1, 3:]).sum(axis=-1)
    np.testing.assert_allclose(contrast.common(record(Z)), c.mean(), rtol=1e-6)
    np.testing.assert_allclose(
      contrast.different(record(Z)), d.mean(), rtol=1e-6
    )

  def test_equal_rows_have_no_common_term_and_the_squares_of_the_other(self):
    same = jnp.stack([Z[:, 0], Z[:, 0]], axis=1)
    self.assertEqual(float(contrast.common(record(same))), 0)
    want = np.square(np.asarray(Z)[:, 0, 3:]).sum(axis=-1).mean()
    np.testing.assert_allclose(
      contrast.different(record(same)), want, rtol=1e-6
    )

  def test_the_order_of_a_pair_does_not_matter(self):
    for term in (contrast.common, contrast.different):
      np.testing.assert_allclose(
        term(record(Z)), term(record(Z[:, ::-1])), rtol=1e-6
      )

  def test_pairs_without_weight_do_not_count(self):
    weight = jnp.ones((5, 2)).at[4].set(0)
    for term in (contrast.common, contrast.different):
      np.testing.assert_allclose(
        term(record(Z, weight)), term(record(Z[:4])), rtol=1e-6
      )

  @parameterized.parameters((8,), (8, 3), (2,), (2, 3))
  def test_refuses_rows_that_are_not_pairs(self, *shape):
    with self.assertRaisesRegex(errors.InputError, r"pairs of rows \[R, 2, d"):
      contrast.common(record(jnp.zeros((*shape, 6))))


if __name__ == "__main__":
  absltest.main()
