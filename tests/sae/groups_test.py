"""Tests of saejax.sae.groups."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax.sae import groups
from tests import toy


class GroupMaxTest(parameterized.TestCase):
  def test_keeps_the_largest_of_each_group_if_positive(self):
    a = jnp.asarray([[1.0, 3, 2, -1, -2, -3, 5, 5, 4]])
    want = [[0.0, 3, 0, 0, 0, 0, 5, 0, 0]]  # of equal ones the first
    got = toy.activate(groups.GroupMax(3), a)
    np.testing.assert_array_equal(got, want)

  @parameterized.parameters(1, 2, 4, 12)
  def test_a_traced_number_of_groups_gives_the_static_one(self, k):
    a = jnp.round(2 * toy.rows(3, 5, 12)) / 2  # with ties
    want = toy.activate(groups.GroupMax(k), a)
    traced = jax.jit(lambda a, k: toy.activate(groups.GroupMax(12), a, k=k))(
      a, jnp.int32(k)
    )
    np.testing.assert_array_equal(traced, want)
    self.assertLessEqual(int(jnp.max(jnp.sum(want != 0, axis=-1))), k)

  def test_as_many_groups_as_latents_are_relu(self):
    a = toy.rows(5, 12)
    got = toy.activate(groups.GroupMax(12), a)
    np.testing.assert_array_equal(got, jax.nn.relu(a))

  def test_groups_must_divide(self):
    with self.assertRaisesRegex(ValueError, "k=5 groups must divide n=12"):
      toy.activate(groups.GroupMax(5), toy.rows(2, 12))
    self.assertEqual(groups.GroupMax(3).with_k(4).row_k, 4)

  def test_gradients_reach_what_is_kept(self):
    a = toy.rows(4, 12)
    f = lambda a: jnp.sum(toy.activate(groups.GroupMax(3), a) ** 2)
    z = toy.activate(groups.GroupMax(3), a)
    np.testing.assert_allclose(jax.grad(f)(a), 2 * z, rtol=1e-6)


if __name__ == "__main__":
  absltest.main()
