"""Tests of saejax.sae.decoders."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from saejax.sae import decoders
from tests import toy


class NormalisedTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.W, self.b = 3 * toy.rows(10, 6), jnp.zeros(6)

  def test_rows_have_unit_norm_and_the_direction_of_the_weights(self):
    rows = decoders.Normalised(W=self.W, b=self.b).rows()
    np.testing.assert_allclose(jnp.linalg.norm(rows, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(
      jnp.sum(rows * self.W, axis=1), jnp.linalg.norm(self.W, axis=1), rtol=1e-6
    )

  def test_gradients_flow_through_the_norm_and_never_along_a_row(self):
    target = toy.rows(10, 6, seed=4)
    loss = lambda W: jnp.sum(decoders.Normalised(W=W, b=self.b).rows() * target)
    g = jax.grad(loss)(self.W)
    self.assertGreater(float(jnp.abs(g).max()), 0.01)
    np.testing.assert_allclose(jnp.sum(g * self.W, axis=1), 0, atol=1e-5)

  def test_a_row_of_zeros_stays_finite(self):
    W = self.W.at[2].set(0)
    rows = decoders.Normalised(W=W, b=self.b).rows()
    np.testing.assert_array_equal(rows[2], 0)

  def test_a_free_decoder_is_its_weights(self):
    self.assertIs(decoders.Free(W=self.W, b=self.b).rows(), self.W)


class UnitRowsTest(absltest.TestCase):
  def test_rows_have_norm_1_and_rows_of_0_stay(self):
    W = toy.rows(5, 4).at[2].set(0)
    got = np.linalg.norm(decoders.unit_rows(W), axis=1)
    np.testing.assert_allclose(got, [1, 1, 0, 1, 1], rtol=1e-6)
    got = np.linalg.norm(decoders.unit_rows(W, axis=-2), axis=0)
    np.testing.assert_allclose(got, 1, rtol=1e-6)


if __name__ == "__main__":
  absltest.main()
