"""Tests of saejax.sae.encoders."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax.sae import decoders, encoders
from tests import toy


class AffineTest(parameterized.TestCase):
  def test_largest_are_those_of_the_full_pre_activations(self):
    encoder, x = toy.sae(n=100).encoder, toy.rows(9, 8)
    c = toy.rows(8, seed=3)
    ctx = toy.context(x, b_pre=c)
    a = np.asarray(encoder(x, ctx).a)
    np.testing.assert_allclose(
      a, np.asarray(x - c) @ np.asarray(encoder.W).T + encoder.b, atol=2e-5
    )
    values, indices = jax.jit(lambda e, x: e.largest(x, ctx, 6))(encoder, x)
    want = np.argsort(-a, axis=1)[:, :6]
    np.testing.assert_array_equal(indices, want)
    np.testing.assert_allclose(
      values, np.take_along_axis(a, want, axis=1), atol=1e-5
    )

  @parameterized.product(magnitude=[False, True], ordered=[False, True])
  def test_latents_not_among_those_given_come_last(self, magnitude, ordered):
    encoder, x = toy.sae().encoder, toy.rows(9, 8)
    ctx = toy.context(x, b_pre=toy.rows(8, seed=3))
    among = jnp.zeros(24, bool).at[jnp.asarray([3, 0, 17, 22])].set(True)
    a = np.asarray(encoder(x, ctx).a)
    size = np.where(among, np.abs(a) if magnitude else a, -np.inf)
    for k in (3, 6):  # fewer than four, and more
      values, indices = encoder.largest(
        x, ctx, k, among=among, magnitude=magnitude, ordered=ordered
      )
      want = np.argsort(-size, axis=1, kind="stable")[:, : min(k, 4)]
      kept = np.asarray(values) > -np.inf
      self.assertEqual(kept.sum(), 9 * min(k, 4))
      got = np.asarray(indices)[kept].reshape(9, -1)
      np.testing.assert_array_equal(np.sort(got), np.sort(want))
      np.testing.assert_allclose(
        np.asarray(values)[kept].reshape(9, -1),
        np.take_along_axis(a, got, axis=1),
        atol=1e-5,
      )


class CentredMatmulTest(parameterized.TestCase):
  @parameterized.parameters("float32", "bfloat16")
  def test_derivatives_in_both_modes_are_those_of_the_plain_product(
    self, dtype
  ):
    args = toy.rows(5, 3, 6), toy.rows(6, seed=2), toy.rows(8, 6, seed=3)
    weights = toy.rows(5, 3, 8, seed=4)
    ours = lambda *a: encoders.centred_matmul(*a, dtype)
    plain = lambda x, b, W: encoders.matmul(x - b, W, dtype)
    loss = lambda f: lambda *a: jnp.sum(jnp.tanh(f(*a)) * weights)
    close = (
      {"rtol": 1e-5, "atol": 1e-5}
      if dtype == "float32"
      else {"rtol": 0.1, "atol": 0.1}
    )
    for argnums in (0, 1, 2, (1, 2), (0, 1, 2)):
      toy.assert_trees_close(
        jax.grad(loss(ours), argnums)(*args),
        jax.grad(loss(plain), argnums)(*args),
        **close,
      )
    tangents = tuple(toy.rows(*a.shape, seed=9) for a in args)
    toy.assert_trees_close(
      jax.jvp(ours, args, tangents), jax.jvp(plain, args, tangents), **close
    )

  def test_the_gradient_of_the_bias_multiplies_one_row(self):
    x, b, W = toy.rows(512, 8), toy.rows(8), toy.rows(64, 8)
    loss = lambda b: jnp.sum(encoders.centred_matmul(x, b, W, "float32") ** 2)
    text = str(jax.make_jaxpr(jax.grad(loss))(b))
    # Forward, and no second product of [512, 64] and W.
    products = [line for line in text.splitlines() if "dot_general" in line]
    self.assertLen([line for line in products if "512" in line], 1)


class TiedTest(absltest.TestCase):
  def test_reads_the_decoder_as_used_or_as_stored(self):
    W, b, x = 3 * toy.rows(5, 4), toy.rows(5, seed=7), toy.rows(9, 4)
    decoder = decoders.Normalised(W=W, b=jnp.zeros(4))
    ctx = toy.context(x).replace(decoder=decoder)
    for raw, rows in ((False, decoder.rows()), (True, W)):
      got = encoders.Tied(b=b, raw=raw)(x, ctx).a
      np.testing.assert_allclose(got, x @ rows.T + b, atol=1e-5)


if __name__ == "__main__":
  absltest.main()
