"""Tests of saejax.sae.activations."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax.sae import activations
from saejax.sae.context import Pre
from tests import toy


class TopKTest(parameterized.TestCase):
  @parameterized.parameters(1, 5, 30)
  def test_keeps_exactly_k_where_k_are_positive(self, k):
    a = jnp.abs(toy.rows(7, 30)) + 0.1
    z = np.asarray(toy.activate(activations.TopK(k), a))
    np.testing.assert_array_equal((z != 0).sum(axis=1), k)
    smallest_kept = np.where(z > 0, z, np.inf).min(axis=1)
    largest_left = np.where(z > 0, -np.inf, a).max(axis=1)
    self.assertTrue((smallest_kept > largest_left).all())
    np.testing.assert_array_equal(z[z > 0], np.asarray(a)[z > 0])

  def test_keeps_fewer_where_fewer_are_positive(self):
    a = jnp.asarray([[3.0, -1.0, 2.0, -5.0], [-1.0, -2.0, -3.0, -4.0]])
    np.testing.assert_array_equal(
      toy.activate(activations.TopK(3), a), [[3, 0, 2, 0], [0, 0, 0, 0]]
    )

  def test_of_equal_numbers_keeps_the_lowest_indices(self):
    a = jnp.asarray([[1.0, 2.0, 2.0, 2.0, 0.5], [1.0] * 5])
    np.testing.assert_array_equal(
      toy.activate(activations.TopK(2), a), [[0, 2, 2, 0, 0], [1, 1, 0, 0, 0]]
    )

  def test_k_equal_to_n_is_relu(self):
    a = toy.rows(7, 12)
    np.testing.assert_array_equal(
      toy.activate(activations.TopK(12), a),
      toy.activate(activations.ReLU(), a),
    )

  def test_a_traced_k_equals_a_static_one(self):
    a = toy.rows(7, 30)
    run = jax.jit(partial(toy.activate, activations.TopK(9)))
    for k in (1, 4, 9):
      np.testing.assert_array_equal(
        run(a, jnp.asarray(k)), toy.activate(activations.TopK(k), a)
      )

  def test_gradient_reaches_kept_positive_entries_alone(self):
    a = toy.rows(7, 30)
    g = jax.grad(lambda a: jnp.sum(toy.activate(activations.TopK(4), a)))(a)
    np.testing.assert_array_equal(g, toy.activate(activations.TopK(4), a) != 0)

  def test_says_how_many_a_row_keeps(self):
    self.assertEqual(activations.TopK(9).row_k, 9)
    self.assertIsNone(activations.ReLU().row_k)

  def test_has_no_leaves(self):
    self.assertEmpty(jax.tree.leaves([activations.TopK(9), activations.ReLU()]))


class NamesTest(parameterized.TestCase):
  """What the field calls an activation makes it, and it is used in an SAE."""

  def test_batchtopk_keeps_k_per_row_on_average(self):
    sae = toy.sae(activation=activations.BatchTopK(2.5))
    z = np.asarray(toy.encode(sae, 5 * toy.rows(40, 8)))
    self.assertEqual(np.count_nonzero(z), 100)
    self.assertEqual(sae.activation.mean_k, 2.5)

  def test_feature_choice_keeps_equally_many_rows_per_latent(self):
    choose = activations.FeatureChoice(2)
    kept = choose.chosen(Pre(a=toy.rows(24, 12)), toy.context())
    np.testing.assert_array_equal(np.sum(kept, axis=0), 4)

  def test_what_an_activation_cannot_answer_names_it(self):
    activation = activations.Activation()
    for ask in (
      lambda: activation.unit_norms(jnp.ones(3)),
      lambda: activation.flattened([activation], [1.0], 3),
      lambda: activation.keep_largest(jnp.ones(3), toy.context()),
    ):
      with self.assertRaisesRegex(NotImplementedError, "^Activation "):
        ask()


if __name__ == "__main__":
  absltest.main()
