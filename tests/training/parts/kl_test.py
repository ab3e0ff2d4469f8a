"""Tests of saejax.training.parts.kl."""

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax.sae.context import Pre
from saejax.training.parts import kl
from tests import toy


def record(mean, logvar=None, z=None):
  out = toy.record(jnp.ones_like(mean) if z is None else z, a=mean)
  pre = Pre(a=mean, mean=mean, logvar=logvar)
  return out.replace(forward=out.forward.replace(pre=pre))


class KLTest(parameterized.TestCase):
  @parameterized.parameters((0.0, 0.0), (0.7, -1.3), (2.0, 1.0), (0.01, -6.0))
  def test_is_the_integral(self, mean, logvar):
    sd = np.exp(logvar / 2)
    t = np.linspace(mean - 12 * sd, mean + 12 * sd, 200_001)
    log_q = -((t - mean) ** 2) / (2 * sd**2) - np.log(sd)
    each = np.exp(log_q) / np.sqrt(2 * np.pi) * (log_q + t**2 / 2)
    want = np.trapezoid(each, t)
    got = kl.kl(record(jnp.full((1, 1), mean), jnp.full((1, 1), logvar)))
    np.testing.assert_allclose(got, [want], rtol=1e-4, atol=1e-6)
    self.assertEqual(bool(got[0] == 0), (mean, logvar) == (0, 0))

  def test_of_a_fixed_variance_is_half_the_square_of_the_mean(self):
    mean = jnp.abs(toy.rows(5, 7))
    want = jnp.sum(mean**2, axis=-1) / 2
    np.testing.assert_allclose(kl.kl(record(mean)), want, rtol=1e-5)
    zero = jnp.zeros_like(mean)
    np.testing.assert_allclose(kl.kl(record(mean, zero)), want, rtol=1e-5)

  def test_large_means_count_as_ten(self):
    got = kl.kl(record(jnp.asarray([[25.0, 0.0]])))
    np.testing.assert_allclose(got, [50])

  def test_masked_counts_the_latents_that_are_kept(self):
    mean, logvar = jnp.abs(toy.rows(5, 7)), toy.rows(5, 7, seed=2)
    z = jnp.where(jnp.arange(7) < 3, -mean, 0)
    got = kl.masked_kl(record(mean, logvar, z))
    want = kl.kl(record(mean[:, :3], logvar[:, :3]))
    np.testing.assert_allclose(got, want, rtol=1e-5)

  def test_needs_a_gaussian_head(self):
    out = toy.record(jnp.ones((2, 3)), a=jnp.ones((2, 3)))
    with self.assertRaisesRegex(ValueError, "Gaussian head"):
      kl.kl(out)


if __name__ == "__main__":
  absltest.main()
