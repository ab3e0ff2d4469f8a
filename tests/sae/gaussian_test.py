"""Tests of saejax.sae.gaussian."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax.sae import activations, gaussian
from tests import toy

D, N = 6, 10


def sae(posterior, k=N):
  drawn = gaussian.init(
    jax.random.key(0),
    posterior=posterior,
    n=N,
    d=D,
    activation=activations.TopK(k, score="magnitude", keep="signed"),
    pre_bias=False,
  )
  encoder = drawn.encoder.replace(b=0.3 * toy.rows(N))
  return drawn.replace(encoder=encoder)


class PosteriorTest(parameterized.TestCase):
  @parameterized.parameters(*gaussian.POSTERIORS)
  def test_evaluation_is_the_mean_and_only_training_draws(self, posterior):
    model, x = sae(posterior, k=3), toy.rows(5, D)
    a, b = (
      model.forward(x, train=True, key=jax.random.key(i)).latents.dense()
      for i in (0, 1)
    )
    self.assertEqual(bool(jnp.all(a == b)), posterior == "none")
    mean = jax.nn.relu(x @ model.encoder.W.T + model.encoder.b)
    want = jnp.where(mean >= jnp.sort(mean)[:, -3][:, None], mean, 0)
    np.testing.assert_allclose(toy.encode(model, x), want, atol=1e-5)
    np.testing.assert_array_equal(toy.encode(model, x), toy.encode(model, x))

  @parameterized.parameters("fixed", "learned")
  def test_training_without_a_key_is_refused(self, posterior):
    with self.assertRaisesRegex(ValueError, "pass key="):
      sae(posterior).forward(toy.rows(5, D), train=True)

  def test_none_trains_without_a_key(self):
    sae("none").forward(toy.rows(5, D), train=True)

  @parameterized.parameters("fixed", "learned")
  def test_samples_have_the_mean_and_deviation_of_the_head(self, posterior):
    model = sae(posterior)
    x = jnp.broadcast_to(toy.rows(D), (20_000, D))
    out = model.forward(x, train=True, key=jax.random.key(1))
    pre = out.pre
    sd = np.ones(N)
    if posterior == "learned":
      logvar = x[0] @ model.encoder.W_var.T + model.encoder.b_var
      self.assertLess(logvar.min(), -2)
      sd = np.exp(np.clip(logvar, -6, 2) / 2)
    z = np.asarray(out.latents.dense())
    np.testing.assert_allclose(z.mean(0), pre.mean[0], atol=5 * sd.max() / 141)
    np.testing.assert_allclose(z.std(0), sd, rtol=0.03)

  def test_log_variances_are_held_in_range(self):
    model = sae("learned")
    encoder = model.encoder.replace(W_var=100 * model.encoder.W_var)
    logvar = encoder(toy.rows(30, D), toy.context(toy.rows(30, D))).logvar
    self.assertEqual((logvar.min(), logvar.max()), (-6, 2))

  def test_gradient_of_an_expectation_is_that_of_the_closed_form(self):
    # E z^2 = mu^2 + sigma^2, so the derivative by logvar's bias is sigma^2.
    model = sae("learned")
    x = jnp.broadcast_to(0.1 * toy.rows(D), (50_000, D))

    def loss(model):
      out = model.forward(x, train=True, key=jax.random.key(1))
      return jnp.sum(jnp.mean(out.latents.dense() ** 2, axis=0))

    got = jax.grad(loss)(model)
    pre = model.encoder(x[:1], toy.context(x[:1]))
    mean, variance = pre.mean[0], jnp.exp(pre.logvar[0])
    np.testing.assert_allclose(got.encoder.b_var, variance, rtol=0.1)
    np.testing.assert_allclose(got.encoder.b, 2 * mean, atol=0.02)


if __name__ == "__main__":
  absltest.main()
