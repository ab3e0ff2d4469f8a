"""Tests of saejax.training.parts.optimizers."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest

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


if __name__ == "__main__":
  absltest.main()
