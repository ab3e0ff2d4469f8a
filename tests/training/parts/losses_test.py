"""Tests of saejax.training.parts.losses: closed forms, and where gradients go."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax.sae.latents import SparseLatents
from saejax.training.parts import losses
from tests import toy


def written(x, z, W, b):
  """A record of a pass whose every number is given."""
  return toy.record(z, x=x, W=W, b=b)


class ReconstructionTest(parameterized.TestCase):
  def test_mse_sums_over_d(self):
    x, z, W, b = (toy.rows(*s) for s in ((5, 4), (5, 3), (3, 4), (4,)))
    got = losses.mse(written(x, z, W, b))
    want = ((np.asarray(x) - (np.asarray(z) @ W + b)) ** 2).sum(axis=1)
    self.assertEqual(got.shape, (5,))
    np.testing.assert_allclose(got, want, rtol=1e-5)

  def test_normalised_mse_of_predicting_the_mean_is_one(self):
    x = 3 * toy.rows(50, 6) + 7
    nothing = jnp.zeros((50, 2)), jnp.ones((2, 6))
    record = written(x, *nothing, jnp.mean(x, axis=0))
    np.testing.assert_allclose(
      jnp.mean(losses.normalised_mse(record)), 1, rtol=1e-5
    )

  def test_normalised_mse_is_the_fraction_of_variance_unexplained(self):
    x, z, W, b = (toy.rows(*s) for s in ((50, 6), (50, 3), (3, 6), (6,)))
    r = np.asarray(x) - (np.asarray(z) @ W + b)
    centred = np.asarray(x) - np.asarray(x).mean(axis=0)
    np.testing.assert_allclose(
      jnp.mean(losses.normalised_mse(written(x, z, W, b))),
      (r**2).sum() / (centred**2).sum(),
      rtol=1e-5,
    )

  @parameterized.product(
    loss=[losses.normalised_mse, losses.batch_norm_mse], rows=[1, 4]
  )
  def test_normalised_losses_of_equal_rows_are_0_with_no_gradient(
    self, loss, rows
  ):
    x = jnp.broadcast_to(toy.rows(1, 6), (rows, 6))
    z, W = jnp.ones((rows, 2)), toy.rows(2, 6)

    def total(b):
      return jnp.sum(loss(written(x, z, W, b)))

    value, g = jax.value_and_grad(total)(jnp.ones(6))
    self.assertEqual(value, 0)
    np.testing.assert_array_equal(g, 0)
    spread = loss(written(x.at[0].add(1e-3), z, W, jnp.ones(6)))
    self.assertEqual(jnp.sum(spread) > 0, rows > 1)

  @parameterized.parameters(losses.mse, losses.normalised_mse)
  def test_takes_any_batch_shape(self, loss):
    x, z, W, b = (toy.rows(*s) for s in ((6, 4), (6, 3), (3, 4), (4,)))
    flat = loss(written(x, z, W, b))
    got = loss(written(x.reshape(2, 3, 4), z.reshape(2, 3, 3), W, b))
    np.testing.assert_allclose(got, flat.reshape(2, 3), rtol=1e-5)


class SparsityTest(parameterized.TestCase):
  def records(self):
    z = jnp.asarray([[1.0, 0.0, -2.0], [0.0, 0.0, 0.0]])
    values = jnp.asarray([[-2.0, 1.0], [0.0, 0.0]])
    sparse = SparseLatents(values, jnp.asarray([[2, 0], [1, 1]]), 3)
    W = jnp.asarray([[3.0, 4.0], [1.0, 0.0], [0.0, 2.0]])  # norms 5, 1, 2
    x, b = jnp.zeros((2, 2)), jnp.zeros(2)
    return written(x, z, W, b), written(x, sparse, W, b)

  def test_l1_sums_sizes(self):
    for record in self.records():
      np.testing.assert_array_equal(losses.l1(record), [3, 0])

  def test_l1_by_decoder_norm_weighs_sizes_by_norms(self):
    for record in self.records():
      np.testing.assert_array_equal(losses.l1_decoder_norm(record), [9, 0])

  def test_only_plain_l1_falls_when_the_decoder_grows(self):
    x, z, W, b = (toy.rows(*s) for s in ((5, 4), (5, 3), (3, 4), (4,)))
    before, after = written(x, z, W, b), written(x, z / 2, 2 * W, b)
    np.testing.assert_allclose(losses.mse(after), losses.mse(before), rtol=1e-4)
    np.testing.assert_allclose(
      losses.l1_decoder_norm(after), losses.l1_decoder_norm(before), rtol=1e-5
    )
    np.testing.assert_allclose(
      losses.l1(after), losses.l1(before) / 2, rtol=1e-5
    )

  @parameterized.parameters((1.0, 0.6), (0.5, 0.2), (0.1, 0.5))
  def test_the_best_code_is_shrunk_by_half_the_coefficient(self, size, weight):
    # One latent of size a in an orthonormal dictionary: max(a - weight / 2, 0).
    W = jnp.linalg.qr(toy.rows(5, 5))[0]
    x = size * W[None, 2]

    def loss(code):
      record = written(x, jax.nn.relu(code), W, jnp.zeros(5))
      return jnp.sum(losses.mse(record) + weight * losses.l1(record))

    code = jnp.full((1, 5), 0.3)
    code, _ = jax.lax.scan(
      lambda c, _: (c - 0.05 * jax.grad(loss)(c), None), code, length=300
    )
    want = np.zeros((1, 5))
    want[0, 2] = max(size - weight / 2, 0)
    np.testing.assert_allclose(jax.nn.relu(code), want, atol=1e-4)


if __name__ == "__main__":
  absltest.main()
