"""Tests of kernels/mesh where no mesh is in force."""

import jax
import jax.numpy as jnp
from absl.testing import absltest

from saejax.kernels import mesh


class NoMeshTest(absltest.TestCase):
  def test_every_axis_has_one_shard(self):
    self.assertEqual(mesh.size(mesh.DATA), 1)
    self.assertIsNone(mesh.axis_or_none(mesh.LATENT, 8))

  def test_a_sum_over_no_axis_is_the_number_itself(self):
    x = jnp.arange(3.0)
    self.assertIs(mesh.psum(x, None), x)

  def test_an_axis_of_one_device_is_none(self):
    one = jax.make_mesh(
      (1,),
      (mesh.DATA,),
      devices=jax.devices()[:1],
      axis_types=(jax.sharding.AxisType.Auto,),
    )
    with jax.set_mesh(one):
      self.assertEqual(mesh.size(mesh.DATA), 1)
      self.assertEqual(mesh.size(mesh.LATENT), 1)
      self.assertIsNone(mesh.axis_or_none(mesh.DATA, 8))


if __name__ == "__main__":
  absltest.main()
