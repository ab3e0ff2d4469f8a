"""Tests of saejax.sae.jumprelu: the estimators against their closed forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax.sae import activations, jumprelu
from saejax.sae.context import Pre
from tests import toy

THETA, LAMBDA = 0.8, 0.3
DENSITY = float(jax.scipy.stats.norm.pdf(THETA))
KERNELS = tuple(jumprelu.KERNELS)


@functools.partial(jax.jit, static_argnames=("kernel", "eps", "post_jump"))
def gradients(kernel, eps, post_jump=False, theta=THETA):
  """Mean and variance of the gradients in theta over a ~ N(0, 1).

  By quadrature, of (a - z)^2 and of lambda H; the points are a grid in which
  the edges of the kernel fall between two of them.
  """
  each = eps / 100
  half = int(8 / each)
  a = theta + (jnp.arange(-half, half, dtype=jnp.float32) + 0.5) * each
  p = jax.scipy.stats.norm.pdf(a) * each
  activation = lambda t: jumprelu.JumpReLU(t, eps, kernel, post_jump=post_jump)
  pre, ctx = Pre(a=a), toy.context()
  error = lambda t: jnp.sum(jnp.square(a - activation(t)(pre, ctx)))
  count = lambda t: LAMBDA * jnp.sum(activation(t).opened(pre, ctx))
  found = []
  for loss in (error, count):
    g = jax.grad(loss)(jnp.full_like(a, theta))  # of each point on its own
    mean = jnp.sum(p * g)
    found.append((mean, jnp.sum(p * jnp.square(g)) - jnp.square(mean)))
  return found


class KernelsTest(parameterized.TestCase):
  @parameterized.product(kernel=KERNELS, eps=[0.001, 2.0])
  def test_have_unit_mass_and_are_even(self, kernel, eps):
    # t = tan(phi) reaches far enough for the Cauchy tails.
    phi = (np.arange(-100_000, 100_000) + 0.5) * np.pi / 200_000
    t = jnp.asarray(eps * np.tan(phi), jnp.float32)
    each = eps / np.cos(phi) ** 2 * np.pi / 200_000
    K = np.asarray(jumprelu.KERNELS[kernel](t, eps), np.float64)
    self.assertAlmostEqual(np.sum(K * each), 1.0, delta=2e-4)
    np.testing.assert_allclose(K, K[::-1], rtol=1e-4, atol=1e-6 / eps)

  def test_are_the_eight_of_the_literature(self):
    self.assertLen(KERNELS, 8)


class EstimatorTest(parameterized.TestCase):
  @parameterized.parameters(*KERNELS)
  def test_is_unbiased_as_eps_falls_and_its_variance_grows(self, kernel):
    # E = theta^2 p(theta) of the error, -lambda p(theta) of the count.
    wanted = THETA**2 * DENSITY, -LAMBDA * DENSITY
    self.assertAlmostEqual(wanted[0], 0.1854, delta=1e-4)
    self.assertAlmostEqual(wanted[1], -0.0869, delta=1e-4)
    scaled = []
    for eps in (0.2, 0.05, 0.0125):
      allowed = (2 if kernel == "cauchy" else 0.3) * eps
      found = gradients(kernel, eps)
      for (mean, _), want in zip(found, wanted, strict=True):
        self.assertLess(abs(mean / want - 1), allowed + 1e-4)
      scaled.append([variance * eps for _, variance in found])
    ratios = np.asarray(scaled) / np.asarray(scaled[-1])
    np.testing.assert_allclose(ratios, 1, atol=0.2)

  def test_after_the_jump_only_half_of_the_window_counts(self):
    mean = gradients("rectangle", 0.05, post_jump=True)[1][0]
    self.assertAlmostEqual(float(mean), -LAMBDA * DENSITY / 2, delta=1e-3)

  def test_after_the_jump_small_thresholds_see_all_that_is_off(self):
    # theta < eps / 2: half of the rows over eps, instead of p(theta).
    post, pre = (
      float(gradients("rectangle", 0.01, post_jump=flag, theta=0.004)[1][0])
      for flag in (True, False)
    )
    self.assertAlmostEqual(pre, -LAMBDA * 0.4, delta=0.01)
    self.assertAlmostEqual(post, -LAMBDA * 50, delta=0.5)

  @parameterized.parameters(*KERNELS)
  def test_reaches_the_input_only_where_asked(self, kernel):
    a, theta, eps = toy.rows(64), 0.3 + 0.1 * toy.rows(64, seed=2), 0.5
    K = jumprelu.KERNELS[kernel](a - theta, eps)
    H = (a > theta).astype(jnp.float32)
    for asked in (False, True):
      slope = lambda f, asked=asked: jax.grad(
        lambda a, t: jnp.sum(f(a, t, eps, kernel, asked)), argnums=(0, 1)
      )(a, theta)
      z_a, z_theta = slope(jumprelu.jump)
      h_a, h_theta = slope(jumprelu.step)
      np.testing.assert_allclose(z_theta, -theta * K, rtol=1e-6)
      np.testing.assert_allclose(h_theta, -K, rtol=1e-6)
      np.testing.assert_allclose(z_a, H + float(asked) * theta * K, rtol=1e-6)
      np.testing.assert_allclose(h_a, float(asked) * K, rtol=1e-6)

  def test_members_at_once_equal_one_by_one(self):
    a, theta = toy.rows(3, 5, 8), jnp.abs(toy.rows(3, 8, seed=2))
    loss = lambda a, t: jnp.sum(jumprelu.jump(a, t, 0.5) ** 2)
    slope = jax.grad(loss, argnums=(0, 1))
    both = jax.vmap(slope)(a, theta)
    for i in range(3):
      for got, want in zip(both, slope(a[i], theta[i]), strict=True):
        np.testing.assert_allclose(got[i], want, rtol=1e-6)


class LimitsTest(parameterized.TestCase):
  def test_threshold_0_is_relu(self):
    a, ctx = toy.rows(10, 6), toy.context()
    both = []
    for activation in (jumprelu.JumpReLU(jnp.zeros(6)), activations.ReLU()):
      square = lambda a, f=activation: jnp.sum(f(Pre(a=a), ctx) ** 2)
      both.append((activation(Pre(a=a), ctx), jax.grad(square)(a)))
    toy.assert_trees_equal(*both)

  def test_infinite_threshold_leaves_the_bias(self):
    sae = toy.sae(activation=jumprelu.JumpReLU(jnp.full((24,), jnp.inf)))
    x_hat = sae.reconstruct(toy.rows(5, 8))
    want = jnp.broadcast_to(sae.b_dec, x_hat.shape)
    np.testing.assert_array_equal(x_hat, want)

  def test_latents_are_those_of_a_plain_threshold(self):
    theta, a = jnp.abs(toy.rows(6, seed=2)), toy.rows(10, 6)
    np.testing.assert_array_equal(
      toy.activate(jumprelu.JumpReLU(theta), a),
      toy.activate(activations.Threshold(theta), a),
    )


if __name__ == "__main__":
  absltest.main()
