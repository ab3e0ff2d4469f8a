"""Tests of saejax.training.parts.tilted."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax import errors
from saejax.training.parts.tilted import Tilted

LOSSES = jnp.abs(jnp.asarray(np.random.default_rng(0).normal(1, 1, 200)))
LOSSES = LOSSES.astype(jnp.float32)


def both(t, losses=LOSSES, weight=None, **settings):
  """Value and gradient."""
  return jax.value_and_grad(Tilted(t, **settings))(losses, weight)


class TiltedTest(parameterized.TestCase):
  @parameterized.parameters(0.0, 1e-6, -1e-6, 1e-30)
  def test_a_small_tilt_is_the_mean(self, t):
    value, gradient = both(t)
    np.testing.assert_allclose(value, LOSSES.mean(), rtol=1e-4)
    np.testing.assert_allclose(gradient, 1 / 200, rtol=1e-4)

  @parameterized.parameters(1e6, 1e9, 3e38)
  def test_a_huge_tilt_is_the_extreme_and_finite(self, t):
    value, gradient = both(t)
    np.testing.assert_allclose(value, LOSSES.max(), rtol=1e-5)
    want = np.zeros(200)
    want[np.argmax(LOSSES)] = 1
    np.testing.assert_allclose(gradient, want, atol=1e-6)
    np.testing.assert_allclose(both(-t)[0], LOSSES.min(), atol=1e-5)
    self.assertTrue(np.isfinite(both(-t)[1]).all())

  # 0.2: about the mean; 30: about the extreme; the others near the edge.
  @parameterized.parameters(-30.0, -0.2, 0.2, 0.24, 0.26, 1.0, 30.0)
  def test_both_branches_are_the_definition(self, t):
    x = np.asarray(LOSSES, np.float64)
    value, gradient = both(t)
    want = np.log(np.mean(np.exp(t * x))) / t
    np.testing.assert_allclose(value, want, rtol=1e-5)
    share = np.exp(t * x) / np.exp(t * x).sum()
    np.testing.assert_allclose(gradient, share, rtol=2e-4, atol=1e-7)

  def test_it_rises_with_t_between_the_mean_and_the_largest(self):
    values = [float(both(t)[0]) for t in (0, 1e-3, 0.1, 0.3, 1, 10, 1e3, 1e9)]
    self.assertTrue((np.diff(values) >= -1e-6).all())
    self.assertGreaterEqual(values[0], float(LOSSES.mean()) - 1e-6)
    self.assertLessEqual(values[-1], float(LOSSES.max()) + 1e-6)

  @parameterized.parameters(0.0, 0.1, 3.0, 1e9)
  def test_equal_losses_are_their_value(self, t):
    value, gradient = both(t, jnp.full((5,), 2.0))
    np.testing.assert_allclose(value, 2, rtol=1e-6)
    np.testing.assert_allclose(gradient, 0.2, rtol=1e-5)

  @parameterized.parameters(0.0, 0.1, 3.0, 1e9)
  def test_rows_without_weight_do_not_count(self, t):
    losses = jnp.asarray([1.0, 2.0, 1e4, 3.0])
    value, gradient = both(t, losses, jnp.asarray([1.0, 1, 0, 1]))
    alone, gradient_alone = both(t, losses[jnp.asarray([0, 1, 3])])
    np.testing.assert_allclose(value, alone, rtol=1e-6)
    np.testing.assert_allclose(
      gradient[jnp.asarray([0, 1, 3])], gradient_alone, rtol=1e-5, atol=1e-7
    )
    self.assertEqual(float(gradient[2]), 0)

  def test_weights_are_shares(self):
    weight = jnp.asarray([3.0, 1.0])
    want = np.log(0.75 * np.exp(2.0) + 0.25 * np.exp(4.0)) / 2
    value, _ = both(2.0, jnp.asarray([1.0, 2.0]), weight)
    np.testing.assert_allclose(value, want, rtol=1e-6)

  def test_a_relative_tilt_does_not_depend_on_the_unit(self):
    value, gradient = both(2.0, relative=True)
    scaled, scaled_gradient = both(2.0, 1000 * LOSSES, relative=True)
    np.testing.assert_allclose(scaled, 1000 * value, rtol=1e-5)
    np.testing.assert_allclose(scaled_gradient, gradient, rtol=1e-4)
    plain, _ = both(2.0 / float(LOSSES.mean()))
    np.testing.assert_allclose(value, plain, rtol=1e-6)

  @parameterized.parameters(np.nan, np.inf, -np.inf)
  def test_refuses_a_tilt_that_is_not_finite(self, t):
    with self.assertRaisesRegex(errors.InputError, "t=.*must be finite"):
      Tilted(t)


if __name__ == "__main__":
  absltest.main()
