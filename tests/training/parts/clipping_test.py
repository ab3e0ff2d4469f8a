import math

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax.errors import InputError
from saejax.training.parts import clipping


class ClippingTest(parameterized.TestCase):
  @parameterized.parameters(
    (None, 7.0, 1.0),
    ("unit", 4.0, 0.25),
    ("unit", 0.01, 100.0),
    (2.0, 8.0, 0.25),
    (2.0, 1.0, 1.0),
  )
  def test_scale(self, norm, found, scale):
    clip = clipping.by_norm(norm)
    self.assertAlmostEqual(float(clip.scale(jnp.float32(found))), scale, 5)

  @parameterized.parameters(None, "unit", 0.5)
  def test_gradients_of_zero_stay_zero_and_nan_is_not_hidden(self, norm):
    scale = clipping.by_norm(norm).scale
    self.assertEqual(float(0 * scale(jnp.float32(0))), 0)
    self.assertTrue(norm is None or np.isnan(scale(jnp.float32(jnp.nan))))

  def test_only_a_limit_reports_whether_it_acted(self):
    limit = clipping.by_norm(1.0)
    acted = jax.vmap(limit.metrics)(jnp.asarray([0.5, 1.0, 1.5]))
    np.testing.assert_array_equal(acted["clipped"], [0, 0, 1])
    for other in (None, "unit"):
      self.assertEmpty(clipping.by_norm(other).metrics(jnp.float32(2)))

  @parameterized.parameters(0.0, -1.0, math.nan, "one", "own")
  def test_refuses(self, norm):
    with self.assertRaisesRegex(InputError, f"^clip_norm={norm}: must be"):
      clipping.by_norm(norm)


if __name__ == "__main__":
  absltest.main()
