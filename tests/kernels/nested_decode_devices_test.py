"""Tests of kernels/nested_decode where its arrays are split over devices."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax.kernels import mesh
from saejax.kernels.nested_decode import groups
from saejax.kernels.nested_decode import op as nested_decode
from saejax.plans import programs
from tests import toy

B, K, D, N = 16, 5, 24, 64


def arguments():
  values = toy.rows(B, K).at[:, 1].set(0)
  indices = jnp.asarray(np.random.default_rng(0).integers(0, N, (B, K)))
  return values, indices, toy.rows(N, D, seed=2), toy.rows(B, D, seed=3)


def everything(values, indices, W, residual):
  def loss(values, W, residual):
    weights = jnp.arange(1.0, K + 1)
    each = nested_decode.squares(values, indices, W, residual, weights)
    return jnp.sum(each * jnp.arange(1.0, B + 1)), each

  f = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)
  return f(values, W, residual)


def devices(shape):
  return jax.make_mesh(
    shape,
    (mesh.DATA, mesh.LATENT),
    axis_types=(jax.sharding.AxisType.Auto,) * 2,
  )


class SquaresTest(parameterized.TestCase):
  @parameterized.parameters((8, 1), (1, 8), (2, 4), (4, 2))
  def test_values_and_gradients_are_those_of_one_device(self, *shape):
    want = jax.jit(everything)(*arguments())
    with jax.set_mesh(devices(shape)):
      got = jax.block_until_ready(jax.jit(everything)(*arguments()))
    toy.assert_trees_close(got, want, rtol=1e-5, atol=2e-4)

  def test_no_rank_is_summed_over_the_devices(self):
    with jax.set_mesh(devices((2, 4))):
      text = jax.jit(everything).lower(*arguments()).compile().as_text()
    found = programs.collectives(text)
    self.assertLen([c for c in found if c.kind == "all-to-all"], 2)
    for c in found:
      self.assertEqual(c.times, 1, c)  # none in the loop over ranks


class GroupsTest(parameterized.TestCase):
  # Runs inside a shard, over several, and empty ones.
  ENDS = (0, 3, 3, 20, 21, 50)

  def everything(self, z, W):
    weights = [toy.rows(B, D, seed=10 + i) for i in range(len(self.ENDS))]

    def loss(z, W):
      parts = groups.decode(z, W, self.ENDS)
      return sum(jnp.sum(p * w) for p, w in zip(parts, weights, strict=True))

    return groups.decode(z, W, self.ENDS), jax.grad(loss, (0, 1))(z, W)

  @parameterized.parameters((8, 1), (1, 8), (2, 4), (4, 2))
  def test_products_and_gradients_are_those_of_one_device(self, *shape):
    args = toy.rows(B, N), toy.rows(N, D, seed=2)
    want = jax.jit(self.everything)(*args)
    with jax.set_mesh(devices(shape)):
      got = jax.block_until_ready(jax.jit(self.everything)(*args))
    toy.assert_trees_close(got, want, rtol=1e-5, atol=2e-5)

  def test_latents_are_not_moved(self):
    on = devices((2, 4))
    place = lambda rows, columns, *spec: jax.ShapeDtypeStruct(
      (rows, columns), jnp.float32, sharding=jax.NamedSharding(on, jax.P(*spec))
    )
    args = place(B, N, mesh.DATA, mesh.LATENT), place(N, D, mesh.LATENT)
    with jax.set_mesh(on):
      text = jax.jit(self.everything).lower(*args).compile().as_text()
    for c in programs.collectives(text):
      self.assertEqual(c.kind, "all-reduce", c)
      for _, shape in c.arrays:
        self.assertIn(shape, [(B // 2, D), (N // 4, D)])


class GroupsArgumentsTest(absltest.TestCase):
  def test_refuses_ends_that_fall_or_are_beyond_n(self):
    for ends in ((3, 2), (N + 1,)):
      with self.assertRaisesRegex(ValueError, "ends must rise"):
        groups.decode(toy.rows(B, N), toy.rows(N, D), ends)


if __name__ == "__main__":
  absltest.main()
