"""Tests of sae.pursuit; tests/interop/golden_test.py compares it with SAELens."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from saejax.sae import encoders, pursuit
from tests import toy


class PursuitTest(absltest.TestCase):
  def test_orthonormal_rows_are_found_exactly(self):
    W = jnp.eye(8)
    sae = toy.sae(n=8, activation=pursuit.Pursuit(1e-6, 8), pre_bias=False)
    sae = sae.replace(
      encoder=encoders.tied(W), decoder=sae.decoder.replace(W=W, b=jnp.zeros(8))
    )
    x = jnp.abs(toy.rows(5, 3, 8))
    np.testing.assert_allclose(sae.encode(x), x, rtol=1e-6)
    few = sae.replace(activation=pursuit.Pursuit(1e-6, 2))
    z = few.encode(x)
    largest = jnp.sort(x, axis=-1)[..., -2:].sum(axis=-1)
    np.testing.assert_allclose(z.sum(axis=-1), largest, rtol=1e-6)
    self.assertTrue(bool(jnp.all((z != 0).sum(axis=-1) == 2)))

  def test_it_runs_under_jit_until_little_is_left(self):
    sae = toy.sae(n=24, activation=pursuit.Pursuit(0.5, 99, False))
    sae = sae.replace(encoder=encoders.tied(sae.W_dec))
    x = toy.rows(32, 8)
    z = jax.jit(lambda s, x: s.encode(x))(sae, x)
    left = jnp.linalg.norm(x - sae.decode(z), axis=-1)
    self.assertLess(float(left.max()), 0.5)
    self.assertGreater(float(left.min()), 0.01)


if __name__ == "__main__":
  absltest.main()
