"""Tests of saejax.data.regulation: cells whose variables are known."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from saejax.data import regulation
from saejax.errors import InputError


class SmallTest(absltest.TestCase):
  def test_moments_are_those_of_the_model(self):
    found = jax.jit(regulation.small, static_argnums=1)(
      jax.random.key(0), 12000
    )
    found = {k: np.asarray(v) for k, v in found.items()}
    np.testing.assert_allclose(found["activity"].mean(axis=0), 2, atol=0.06)
    np.testing.assert_allclose(found["activity"].var(axis=0), 2, atol=0.12)
    np.testing.assert_allclose(
      found["accessible"].mean(axis=0), regulation.ACCESSIBLE, atol=0.02
    )
    r = np.corrcoef(found["activity"].T)
    np.testing.assert_allclose(r, np.eye(3), atol=0.04)
    np.testing.assert_array_equal(
      found["factor"], found["activity"] * found["accessible"]
    )
    np.testing.assert_allclose(
      found["x"], found["factor"] @ np.array(regulation.REGULATION, np.float32)
    )

  def test_one_activity_may_be_that_of_all(self):
    found = regulation.small(jax.random.key(0), 50, shared=True)["activity"]
    np.testing.assert_array_equal(found, found[:, :1] + jnp.zeros((1, 3)))


class LargeTest(absltest.TestCase):
  def test_expression_follows_the_variables(self):
    sizes = {"regulators": 30, "genes": 200, "types": 6}
    world = regulation.cells(jax.random.key(0), **sizes)
    draw = jax.jit(regulation.large, static_argnums=1)
    found = draw(jax.random.key(1), 4000, world)
    found = {k: np.asarray(v) for k, v in found.items()}
    again = draw(jax.random.key(2), 4000, world)["x0"]
    self.assertLess(float((found["x0"] == again).mean()), 0.5)
    self.assertAlmostEqual(float(world.genes.mean()), 0.1, delta=0.02)
    self.assertAlmostEqual(float(world.types.mean()), 0.3, delta=0.15)
    np.testing.assert_allclose(
      found["x0"].mean(axis=0), 1 + 0.1 * np.arange(30), atol=0.15
    )
    added = found["x1"] - found["x0"]
    np.testing.assert_allclose(
      added, added[:, :1] + np.zeros((1, 30)), atol=1e-5
    )
    for c in range(3):
      own = added[found["covariate"] == c, 0]
      self.assertAlmostEqual(float(own.mean()), c, delta=0.01)
      self.assertAlmostEqual(float(own.std()), 0.1, delta=0.01)
    mask = np.asarray(world.types)[found["type"]]
    np.testing.assert_allclose(found["x2"], found["x1"] * mask, rtol=1e-6)
    np.testing.assert_allclose(
      found["x"], found["x2"] @ np.asarray(world.genes), rtol=1e-4, atol=1e-4
    )

  def test_refuses_a_world_without_genes(self):
    with self.assertRaisesRegex(InputError, "^genes=0: "):
      regulation.cells(jax.random.key(0), genes=0)


if __name__ == "__main__":
  absltest.main()
