"""Tests of saejax.sae.encoders."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from tests import toy


class AffineTest(absltest.TestCase):
  def test_largest_are_those_of_the_full_pre_activations(self):
    encoder, x = toy.sae(n=100).encoder, toy.rows(9, 8)
    c = toy.rows(8, seed=3)
    a = np.asarray(encoder(x, c))
    np.testing.assert_allclose(
      a, np.asarray(x - c) @ np.asarray(encoder.W).T + encoder.b, atol=2e-5
    )
    values, indices = jax.jit(lambda e, x: e.largest(x, c, 6))(encoder, x)
    want = np.argsort(-a, axis=1)[:, :6]
    np.testing.assert_array_equal(indices, want)
    np.testing.assert_allclose(
      values, np.take_along_axis(a, want, axis=1), atol=1e-5
    )

  def test_rows_are_the_encoder_of_those_latents(self):
    encoder, x = toy.sae().encoder, toy.rows(9, 8)
    chosen = jnp.asarray([3, 0, 17])
    zero = jnp.zeros(8)
    np.testing.assert_allclose(
      encoder.rows(chosen)(x, zero), encoder(x, zero)[:, chosen], atol=1e-5
    )


if __name__ == "__main__":
  absltest.main()
