"""Tests of saejax.sae.masking."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax.sae import masking
from tests import toy

P = jnp.asarray([0.0, 0.1, 0.5, 0.63, 1.0])


class MaskTest(parameterized.TestCase):
  @parameterized.parameters(False, True)
  def test_latents_are_masked_as_often_as_they_should(self, per_row):
    activation = masking.RandomMask(per_row)
    draws = 10_000
    batches, rows = (1, draws) if per_row else (draws, 1)
    a = jnp.ones((rows, 5))

    def one(key):
      return toy.activate(
        activation, a, key=key, train=True, stats={masking.PROBABILITY: P}
      )

    z = jax.vmap(one)(jax.random.split(jax.random.key(0), batches))
    often = np.asarray(jnp.mean(z == 0, axis=(0, 1)))
    sigma = np.sqrt(P * (1 - P) / draws)
    np.testing.assert_array_less(np.abs(often - P), 3 * sigma + 1e-9)

  def test_one_mask_a_batch_unless_each_row_has_its_own(self):
    a, stats = jnp.ones((50, 5)), {masking.PROBABILITY: P}
    for per_row in (False, True):
      z = toy.activate(
        masking.RandomMask(per_row),
        a,
        key=jax.random.key(0),
        train=True,
        stats=stats,
      )
      self.assertEqual(bool(jnp.all(z == z[0])), not per_row)

  def test_nothing_is_masked_outside_training(self):
    a = toy.rows(4, 5)
    got = toy.activate(masking.RandomMask(), a)
    np.testing.assert_array_equal(got, jax.nn.relu(a))

  def test_training_needs_a_key_and_probabilities(self):
    model, x = toy.sae(activation=masking.RandomMask()), toy.rows(4, 8)
    with self.assertRaisesRegex(ValueError, "pass key="):
      model.forward(x, train=True)
    with self.assertRaisesRegex(ValueError, "stats with mask_probability"):
      model.forward(x, train=True, key=jax.random.key(0))


if __name__ == "__main__":
  absltest.main()
