"""Tests of saejax.sae.encoders."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from saejax.sae import decoders, encoders
from tests import toy


class AffineTest(absltest.TestCase):
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

  def test_among_are_the_pre_activations_of_those_latents(self):
    encoder, x = toy.sae().encoder, toy.rows(9, 8)
    chosen = jnp.asarray([3, 0, 17])
    ctx = toy.context(x, b_pre=toy.rows(8, seed=3))
    np.testing.assert_allclose(
      encoder.among(x, ctx, chosen), encoder(x, ctx).a[:, chosen], atol=1e-5
    )


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
