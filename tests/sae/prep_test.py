"""Tests of saejax.sae.prep."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax.sae import prep
from tests import toy

PREPS = {
  "none": prep.Identity(),
  "centre_scale": toy.affine(6),
  "row_layer_norm": prep.RowLayerNorm(),
}


class PrepTest(parameterized.TestCase):
  @parameterized.product(kind=[*PREPS], batch=[(), (4,), (2, 3)])
  def test_undo_inverts_apply(self, kind, batch):
    x = 7 * toy.rows(*batch, 6) + 2
    frame, statistics = PREPS[kind].apply(x)
    self.assertEqual(frame.shape, x.shape)
    np.testing.assert_allclose(
      PREPS[kind].undo(frame, statistics), x, rtol=1e-5, atol=1e-5
    )

  @parameterized.parameters(*PREPS)
  def test_prepared_rows_are_float32(self, kind):
    frame, _ = PREPS[kind].apply(toy.rows(3, 6).astype(jnp.bfloat16))
    self.assertEqual(frame.dtype, jnp.float32)

  def test_centre_and_scale_from_statistics_standardise_the_rows(self):
    x = np.random.default_rng(0).normal(5.0, [[1, 2, 3, 4]], (1000, 4))
    stats = {"mean": x.mean(axis=0), "mean_square": (x**2).sum(1).mean()}
    made = prep.from_stats("centre_scale", stats)
    frame, _ = made.apply(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(frame.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose((frame**2).sum(1).mean(), 1, rtol=1e-4)

  @parameterized.parameters(("scale", 1.0), ("scale_sqrt_d", 4.0))
  def test_scaling_alone_keeps_directions(self, kind, want):
    x = np.random.default_rng(0).normal(5.0, [[1, 2, 3, 4]], (1000, 4))
    stats = {"mean": x.mean(axis=0), "mean_square": (x**2).sum(1).mean()}
    frame, _ = prep.from_stats(kind, stats).apply(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose((frame**2).sum(1).mean(), want, rtol=1e-4)
    ratio = np.asarray(frame) / x
    np.testing.assert_allclose(ratio, ratio[0, 0], rtol=1e-4)

  def test_other_kinds_need_no_statistics(self):
    self.assertEqual(prep.from_stats("none", {}), prep.Identity())
    self.assertEqual(prep.from_stats("row_layer_norm", {}), prep.RowLayerNorm())

  def test_refuses_unknown_kinds_and_rows_that_do_not_vary(self):
    with self.assertRaisesRegex(ValueError, "one of none, .* got 'zscore'"):
      prep.from_stats("zscore", {})
    stats = {"mean": np.full(4, 3.0), "mean_square": 36.0}
    with self.assertRaisesRegex(ValueError, "do not vary"):
      prep.from_stats("centre_scale", stats)

  def test_row_layer_norm_by_the_unbiased_deviation(self):
    x = np.asarray(toy.rows(3, 6))
    frame, _ = prep.RowLayerNorm().apply(jnp.asarray(x))
    centred = x - x.mean(axis=1, keepdims=True)
    deviation = np.sqrt((centred**2).sum(axis=1, keepdims=True) / 5)
    np.testing.assert_allclose(frame, centred / (deviation + 1e-5), atol=1e-5)

  def test_row_layer_norm_of_equal_numbers_is_finite(self):
    frame, statistics = prep.RowLayerNorm().apply(jnp.full((1, 6), 3.0))
    np.testing.assert_array_equal(frame, 0)
    np.testing.assert_allclose(prep.RowLayerNorm().undo(frame, statistics), 3.0)

  def test_row_layer_norm_cannot_be_undone_without_the_rows(self):
    with self.assertRaisesRegex(ValueError, "mean and std"):
      prep.RowLayerNorm().undo(jnp.zeros((1, 6)))

  def test_no_gradient_reaches_the_numbers_of_a_prep(self):
    def loss(p):
      frame, statistics = p.apply(toy.rows(3, 6))
      return jnp.sum(frame**3) + jnp.sum(p.undo(frame, statistics) ** 3)

    for leaf in jax.tree.leaves(jax.grad(loss)(toy.affine(6))):
      np.testing.assert_array_equal(leaf, 0)


if __name__ == "__main__":
  absltest.main()
