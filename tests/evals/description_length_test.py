"""Tests of saejax.evals.probing.description_length: codes of known length."""

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from saejax.errors import InputError
from saejax.evals.probing import description_length


class Dictionary:
  """z = x W^-1 where it is above 0, decoded by W."""

  def __init__(self, W):
    self.W, self.inverse = jnp.asarray(W), jnp.asarray(np.linalg.inv(W))

  def encode(self, x):
    return jnp.round(jnp.maximum(x @ self.inverse, 0), 4)

  def decode(self, z):
    return z @ self.W


def length(W, z, **options):
  x = (z @ W).astype(np.float32)
  return description_length.description_length(
    Dictionary(W.astype(np.float32)), x, **options
  )


class DescriptionLengthTest(absltest.TestCase):
  def test_fair_binary_latents_take_a_bit_each(self):
    z = np.stack(np.meshgrid(*[[0, 1]] * 3), axis=-1).reshape(-1, 3)
    found = length(np.eye(3), np.tile(z, (5, 1)), bins=(1, 4), batch_rows=7)
    np.testing.assert_allclose(found.bits, 3)
    np.testing.assert_allclose(found.loss, 0, atol=1e-10)
    self.assertEqual(found.length, 3)

  def test_even_values_take_the_log_of_the_bins_where_active(self):
    values = np.r_[np.arange(8) + 1.0, np.zeros(24)]  # active on a quarter
    z = np.stack([values, np.roll(values, 8)], axis=1)
    found = length(np.eye(2), z, bins=(2, 4, 8))
    p = 0.25
    entropy = -(p * np.log2(p) + (1 - p) * np.log2(1 - p))
    wanted = [2 * (entropy + p * bits) for bits in (1, 2, 3)]
    np.testing.assert_allclose(found.bits, wanted)
    self.assertTrue((np.diff(found.loss) < 0).all())

  def test_the_shortest_code_within_the_tolerance_is_taken(self):
    z = np.random.default_rng(0).random((400, 3)) + 0.1
    found = length(np.eye(3), z, bins=(2, 4, 16, 32))
    inside = found.loss <= 0.01
    self.assertEqual(inside.tolist(), [False, False, True, True])
    self.assertEqual(found.best, 16)
    self.assertEqual(found.record()["length"], found.length)
    # A uniform value in b bins has the variance of a bin: 1/b^2 of the whole.
    np.testing.assert_allclose(
      found.loss, [1 / 4, 1 / 16, 1 / 256, 1 / 1024], rtol=0.1
    )
    none = length(np.eye(3), z, bins=(2,))
    self.assertIsNone(none.best)
    self.assertEqual(none.length, np.inf)

  def test_order_and_scale_of_latents_do_not_matter(self):
    rng = np.random.default_rng(0)
    z = np.round(np.maximum(rng.standard_normal((200, 4)), 0), 1)
    W = np.linalg.qr(rng.standard_normal((4, 4)))[0]
    order = [2, 0, 3, 1]
    found = length(W, z)
    other = length(2 * W[order], z[:, order] / 2)
    np.testing.assert_allclose(other.loss, found.loss, rtol=0.05)
    np.testing.assert_allclose(other.bits, found.bits, rtol=0.02)

  def test_refuses_rows_without_variance(self):
    with self.assertRaisesRegex(InputError, "^x=equal rows"):
      length(np.eye(2), np.ones((5, 2)))
    with self.assertRaisesRegex(InputError, "^x=1 rows"):
      length(np.eye(2), np.ones((1, 2)))
    with self.assertRaisesRegex(InputError, "^bins="):
      length(np.eye(2), np.eye(2), bins=(0,))


if __name__ == "__main__":
  absltest.main()
