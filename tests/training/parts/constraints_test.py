"""Tests of saejax.training.parts.constraints."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from saejax.training.parts import constraints
from tests import toy


class UnitNormTest(absltest.TestCase):
  def test_rows_of_the_decoder_get_unit_norm_and_keep_their_direction(self):
    sae = toy.sae()
    grown = sae.replace(decoder=sae.decoder.replace(W=3 * toy.rows(24, 8)))
    held = constraints.unit_norm_decoder(grown)
    norms = jnp.linalg.norm(held.W_dec, axis=1)
    np.testing.assert_allclose(norms, 1, rtol=1e-6)
    np.testing.assert_allclose(held.W_dec, toy.unit(toy.rows(24, 8)), atol=1e-6)
    toy.assert_trees_equal(held.replace(decoder=sae.decoder), sae)

  def test_a_row_of_zeros_stays_finite(self):
    sae = toy.sae()
    zero = sae.replace(
      decoder=sae.decoder.replace(W=sae.decoder.W.at[3].set(0))
    )
    held = constraints.unit_norm_decoder(zero)
    np.testing.assert_array_equal(held.W_dec[3], 0)


class ParallelGradientTest(absltest.TestCase):
  def test_what_is_left_is_orthogonal_to_each_row(self):
    sae = toy.sae()
    g = jax.tree.map(lambda w: toy.rows(*w.shape, seed=9), sae)
    left = constraints.without_parallel_gradient(sae, g)
    along = jnp.sum(left.decoder.W * sae.W_dec, axis=1)
    np.testing.assert_allclose(along, 0, atol=1e-6)
    # And what was taken away is along it.
    taken = g.decoder.W - left.decoder.W
    np.testing.assert_allclose(
      taken,
      jnp.sum(g.decoder.W * sae.W_dec, axis=1, keepdims=True) * sae.W_dec,
      atol=1e-6,
    )

  def test_other_gradients_are_left_alone(self):
    sae = toy.sae()
    g = jax.tree.map(lambda w: toy.rows(*w.shape, seed=9), sae)
    left = constraints.without_parallel_gradient(sae, g)
    toy.assert_trees_equal(
      left.replace(decoder=left.decoder.replace(W=g.decoder.W)), g
    )


if __name__ == "__main__":
  absltest.main()
