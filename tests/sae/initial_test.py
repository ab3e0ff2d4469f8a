"""Tests of saejax.sae.initial."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from absl.testing import absltest, parameterized

from saejax.sae import activations, initial, prep
from saejax.sae.context import Batch
from tests import toy


def distances(x, g):
  return np.linalg.norm(np.asarray(x, np.float64) - g, axis=1).sum()


def best(x):
  """The least sum of distances, from every row and by descent from the mean."""
  x = np.asarray(x, np.float64)
  smooth = lambda g: np.sqrt(((x - g) ** 2).sum(axis=1) + 1e-12).sum()
  found = scipy.optimize.minimize(smooth, x.mean(axis=0), tol=1e-12)
  return min(distances(x, g) for g in [found.x, *x])


class GeometricMedianTest(parameterized.TestCase):
  @parameterized.parameters(*range(4))
  def test_has_the_least_sum_of_distances(self, seed):
    x = np.random.default_rng(seed).standard_t(2, (60, 3)).astype(np.float32)
    g = np.asarray(initial.geometric_median(jnp.asarray(x)))
    self.assertLess(distances(x, g), best(x) * (1 + 1e-5))

  def test_a_row_may_be_the_median(self):
    ring = np.asarray(toy.unit(toy.rows(40, 3)))
    x = np.concatenate([ring, -ring, [[0, 0, 0]]]) + 5
    g = initial.geometric_median(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(g, 5, atol=1e-4)

  def test_a_row_at_the_mean_does_not_hold_it_there(self):
    # The mean is a row, the median is elsewhere.
    x = np.asarray([[0, 0], [1, 0], [1, 0.1], [1, -0.1], [-3, 0]], np.float32)
    np.testing.assert_allclose(x.mean(axis=0), 0, atol=1e-7)
    g = np.asarray(initial.geometric_median(jnp.asarray(x)))
    self.assertLess(distances(x, g), best(x) * (1 + 1e-4))

  def test_many_rows_at_one_point_are_the_median(self):
    x = np.concatenate([np.full((30, 3), 2.0), np.asarray(toy.rows(20, 3))])
    g = initial.geometric_median(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(g, 2, atol=1e-3)

  def test_of_equal_rows_is_that_row(self):
    np.testing.assert_allclose(initial.geometric_median(jnp.ones((5, 3))), 1)

  def test_outliers_do_not_move_it_far(self):
    x = toy.rows(200, 3).at[:20].add(1e4)
    g = initial.geometric_median(x)
    self.assertLess(float(jnp.linalg.norm(g)), 1.0)
    self.assertGreater(float(jnp.linalg.norm(jnp.mean(x, axis=0))), 1e3)


class TiedTest(absltest.TestCase):
  def draw(self, **kwargs):
    return partial(
      initial.init, n=30, d=7, activation=activations.TopK(3), **kwargs
    )

  def test_encoder_equals_decoder_with_rows_of_the_norm_asked_for(self):
    sae = self.draw(row_norm=0.1)(jax.random.key(0))
    np.testing.assert_array_equal(sae.W_enc, sae.W_dec)
    np.testing.assert_allclose(
      jnp.linalg.norm(sae.W_dec, axis=1), 0.1, rtol=1e-5
    )
    np.testing.assert_array_equal(sae.b_enc, 0)
    np.testing.assert_array_equal(sae.b_dec, 0)

  def test_no_buffer_is_held_twice(self):
    sae = self.draw()(jax.random.key(0))
    pointers = [a.unsafe_buffer_pointer() for a in jax.tree.leaves(sae)]
    self.assertLen(set(pointers), len(pointers))

  def test_seeds_differ_and_repeat(self):
    a, b, c = (self.draw()(jax.random.key(seed)) for seed in (0, 0, 1))
    toy.assert_trees_equal(a, b)
    self.assertGreater(float(jnp.abs(a.W_enc - c.W_enc).max()), 0.1)

  def test_b_dec_is_the_median_of_the_prepared_sample(self):
    sample = toy.rows(50, 7) + 4
    sae = self.draw(prep=toy.affine(7), sample=sample)(jax.random.key(0))
    frame, _ = toy.affine(7).apply(sample)
    np.testing.assert_allclose(
      sae.b_dec, initial.geometric_median(frame), atol=1e-6
    )

  def test_shapes_without_numbers(self):
    sae = jax.eval_shape(self.draw(), jax.random.key(0))
    self.assertEqual((sae.W_enc.shape, sae.W_dec.shape), ((30, 7), (30, 7)))
    self.assertIsInstance(sae.W_enc, jax.ShapeDtypeStruct)


class TranscoderTest(absltest.TestCase):
  def test_has_directions_of_its_own_and_the_targets_median(self):
    target = 3 + toy.rows(50, 5, seed=2)
    framed = prep.Affine(centre=jnp.ones(5), scale=jnp.float32(2.0))
    sae = initial.init(
      jax.random.key(0),
      n=12,
      d=8,
      activation=activations.TopK(2),
      sample=Batch(x=toy.rows(50, 8), target=target),
      row_norm=0.5,
      d_target=5,
      target_prep=framed,
    )
    self.assertEqual((sae.W_enc.shape, sae.W_dec.shape), ((12, 8), (12, 5)))
    self.assertFalse(sae.pre_bias)
    for W in (sae.W_enc, sae.W_dec):
      np.testing.assert_allclose(jnp.linalg.norm(W, axis=-1), 0.5, rtol=1e-6)
    want = initial.geometric_median((target - 1) / 2)
    np.testing.assert_allclose(sae.b_dec, want, rtol=1e-5)


if __name__ == "__main__":
  absltest.main()
