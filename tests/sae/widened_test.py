"""Tests of saejax.sae.widened."""

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax.sae import activations, widened
from tests import toy


class WidenedTest(parameterized.TestCase):
  @parameterized.product(engine=["dense", "sparse"], train=[False, True])
  def test_is_topk_of_factor_k_in_training_and_of_k_outside(
    self, engine, train
  ):
    sae = toy.sae(activation=widened.Widened(2, 3))
    x = toy.rows(10, 8)
    for own, k in ((None, 2), (jnp.int32(1), 1)):
      z = sae.forward(x, engine=engine, train=train, k=own).latents.dense()
      same = sae.replace(activation=activations.TopK(3 * k if train else k))
      np.testing.assert_allclose(z, toy.encode(same, x), rtol=1e-5, atol=1e-6)

  def test_sparse_latents_come_largest_first(self):
    sae = toy.sae(activation=widened.Widened(2, 3))
    values = sae.forward(toy.rows(10, 8), train=True).latents.values
    self.assertEqual(values.shape, (10, 6))
    self.assertTrue((np.diff(values, axis=1) <= 0).all())

  def test_with_k_keeps_the_factor(self):
    self.assertEqual(widened.Widened(4, 3).with_k(2), widened.Widened(2, 3))


if __name__ == "__main__":
  absltest.main()
