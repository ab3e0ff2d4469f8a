"""Tests of saejax.training.parts.optimizers."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest

from saejax.errors import InputError
from saejax.sae import jumprelu
from saejax.training.parts import optimizers
from tests import toy

ADAM = partial(optax.adam, b1=0.0, b2=0.999)


class MultipliedTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.sae = toy.sae(activation=jumprelu.JumpReLU(jnp.ones(24)))
    self.gradients = jax.tree.map(lambda a: a + 1, self.sae)

  def updates(self, make):
    optimizer = make(0.1)
    state = optimizer.init(self.sae)
    with jax.numpy_dtype_promotion("standard"):
      return optimizer.update(self.gradients, state, self.sae)

  def test_scales_the_rate_of_the_named_leaves_alone(self):
    make = optimizers.multiplied(ADAM, {"activation.theta": 10.0})
    got, _ = self.updates(make)
    want, _ = self.updates(ADAM)
    np.testing.assert_allclose(
      got.activation.theta, 10 * want.activation.theta, rtol=1e-6
    )
    self.assertGreater(float(jnp.max(jnp.abs(want.activation.theta))), 0)
    rest = lambda sae: sae.replace(activation=None)
    toy.assert_trees_equal(rest(got), rest(want))

  def test_is_the_partition_of_optax(self):
    make = optimizers.multiplied(ADAM, {"activation.theta": 10.0})
    label = lambda path, _: jax.tree_util.keystr(path).endswith("theta")
    labels = jax.tree_util.tree_map_with_path(label, self.sae)
    # An SAE is callable, and optax would call labels that are.
    groups = {True: ADAM(1.0), False: ADAM(0.1)}
    theirs = optax.partition(groups, lambda _: labels)
    toy.assert_trees_close(
      self.updates(make)[0],
      self.updates(lambda rate: theirs)[0],
      rtol=1e-6,
      atol=1e-7,
    )

  def test_keeps_the_optimizers_state(self):
    make = optimizers.multiplied(ADAM, {"activation.theta": 10.0})
    toy.assert_trees_equal(self.updates(make)[1], self.updates(ADAM)[1])


class ByRowsTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.weights = {"W": jnp.ones((5, 4)), "b": jnp.ones(5)}
    sizes = jnp.arange(1.0, 6)
    # Entries of a row are equal in size, so that their mean square is theirs.
    signs = jnp.where(toy.rows(5, 4) > 0, 1.0, -1.0)
    self.gradients = {"W": sizes[:, None] * signs, "b": sizes}

  def updates(self, make, gradients):
    optimizer = make(0.1)
    state = optimizer.init(self.weights)
    for scale in (1.0, 0.5):
      scaled = jax.tree.map(lambda g, s=scale: s * g, gradients)
      with jax.numpy_dtype_promotion("standard"):
        updates, state = optimizer.update(scaled, state, self.weights)
    return updates, state[0]

  def test_is_adam_where_entries_of_a_row_are_equal_in_size(self):
    got, state = self.updates(optimizers.by_rows(ADAM, "m"), self.gradients)
    want, _ = self.updates(ADAM, self.gradients)
    toy.assert_trees_close(got, want, rtol=1e-5, atol=0)
    self.assertEqual(state.nu["W"].shape, (5, 1))
    self.assertEqual(state.nu["b"].shape, (5,))

  def test_a_row_has_the_mean_square_of_its_entries(self):
    gradients = {**self.gradients, "W": toy.rows(5, 4)}
    _, state = self.updates(optimizers.by_rows(ADAM, "m"), gradients)
    _, own = self.updates(ADAM, gradients)
    want = jnp.mean(own.nu["W"], axis=1, keepdims=True)
    np.testing.assert_allclose(state.nu["W"], want, rtol=1e-5)

  def test_multiplied_rates_stay_and_other_optimizers_are_refused(self):
    make = optimizers.multiplied(ADAM, {"b": 10.0})
    got, _ = self.updates(optimizers.by_rows(make, "m"), self.gradients)
    want, _ = self.updates(make, self.gradients)
    toy.assert_trees_close(got, want, rtol=1e-5, atol=0)
    with self.assertRaisesRegex(InputError, "second_moments=row.*k_sparse"):
      optimizers.by_rows(partial(optax.sgd, momentum=0.9), "k_sparse")


if __name__ == "__main__":
  absltest.main()
