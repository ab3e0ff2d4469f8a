"""Tests of saejax.evals.quasi_orthogonality."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax.evals import quasi_orthogonality
from saejax.sae import activations
from tests import toy


class BoundTest(parameterized.TestCase):
  def test_the_bound_holds_for_any_dictionary(self):
    # Many draws of rows and latents, with the exact eps of each dictionary.
    d, n = 6, 5

    def one(key):
      W_key, f_key, on_key = jax.random.split(key, 3)
      W = jax.random.normal(W_key, (n, d))
      on = jax.random.bernoulli(on_key, 0.6, (n,))
      f = jnp.where(on, jax.random.normal(f_key, (n,)), 0)
      z = f @ W
      squares = jnp.sum((f * jnp.linalg.norm(W, axis=1)) ** 2)
      eps = quasi_orthogonality.coherence(W)
      active = jnp.maximum(jnp.sum(f != 0) - 1, 0).astype(jnp.float32)
      return jnp.abs(z @ z - squares), eps * squares, active

    off, scale, active = jax.vmap(one)(
      jax.random.split(jax.random.key(0), 1000)
    )
    self.assertTrue((off <= scale * (n - 1) * (1 + 1e-4) + 1e-4).all())
    self.assertTrue((off <= scale * active * (1 + 1e-4) + 1e-4).all())
    self.assertGreater((off / scale)[active > 0].max(), 1)

  def test_orthonormal_rows_leave_nothing(self):
    W = jnp.linalg.qr(toy.rows(8, 8))[0]
    sae = toy.sae(n=8, activation=activations.ReLU())
    sae = sae.replace(
      encoder=sae.encoder.replace(W=W, b=jnp.zeros(8)),
      decoder=sae.decoder.replace(W=W, b=jnp.zeros(8)),
    )
    x = jnp.abs(toy.rows(20, 8)) @ W
    got = quasi_orthogonality.zf(sae, x)
    np.testing.assert_allclose(got.x, got.f, rtol=1e-5)
    np.testing.assert_allclose(got.least, 0, atol=1e-5)
    self.assertLess(quasi_orthogonality.coherence(W), 1e-5)

  @parameterized.parameters(False, True)
  def test_counts_the_entries_of_latents_and_bias(self, active):
    sae = toy.sae(activation=activations.TopK(3))
    x = sae.reconstruct(toy.rows(50, 8))
    out = sae.forward(x)
    got = quasi_orthogonality.zf(sae, x, active=active)
    z = np.asarray(out.latents.dense())
    norms = np.linalg.norm(np.asarray(sae.W_dec), axis=1)
    squares = ((z * norms) ** 2).sum(1) + (np.asarray(sae.b_dec) ** 2).sum()
    others = (z != 0).sum(1) if active else 24
    want = np.abs((np.asarray(x) ** 2).sum(1) - squares) / (others * squares)
    np.testing.assert_allclose(got.f, np.sqrt(squares), rtol=1e-5)
    np.testing.assert_allclose(got.least, want, rtol=1e-3, atol=1e-5)

  def test_a_row_without_latents_is_finite(self):
    sae = toy.sae(activation=activations.ReLU())
    sae = sae.replace(
      encoder=sae.encoder.replace(b=jnp.full(24, -100.0)),
      decoder=sae.decoder.replace(b=jnp.zeros(8)),
    )
    for active in (False, True):
      got = quasi_orthogonality.zf(sae, toy.rows(4, 8), active=active)
      self.assertTrue(jnp.isfinite(got.least).all())


if __name__ == "__main__":
  absltest.main()
