"""Tests of saejax.training.sharding; several devices: mesh_devices_test."""

import jax
import numpy as np
from absl.testing import absltest, parameterized
from jax.sharding import PartitionSpec as P

from saejax import errors
from saejax.recipes import factored, row_sparse
from saejax.training import sharding, step


class MeshTest(parameterized.TestCase):
  def test_names_the_axes(self):
    mesh = sharding.make_mesh((1, 1, 1))
    self.assertEqual(mesh.axis_names, ("ensemble", "data", "latent"))
    self.assertEqual(mesh.size, 1)

  @parameterized.parameters((0, 1, 1), (1, -1, 1), (1, 1), (1, 1, 1, 1))
  def test_refuses_what_is_not_three_sizes(self, *shape):
    with self.assertRaisesRegex(errors.InputError, "train.mesh=.*three sizes"):
      sharding.make_mesh(shape)

  def test_refuses_more_devices_than_there_are(self):
    said = r"needs 2 devices, but 1 .*--train.mesh=1,1,1; XLA_FLAGS=--xla_force"
    with self.assertRaisesRegex(errors.InputError, said):
      sharding.make_mesh((1, 2, 1), devices=jax.devices()[:1])

  @parameterized.parameters(
    ("sae.n=30", 30, 64, 4, "latent"),
    ("train.batch_rows=63", 32, 63, 4, "data"),
    ("train.mesh=2,4,8", 32, 64, 3, "ensemble"),
  )
  def test_refuses_sizes_that_do_not_divide(self, said, n, rows, members, axis):
    mesh = jax.sharding.AbstractMesh((2, 4, 8), sharding.AXES)
    sharding.check(mesh, n=32, batch_rows=64, members=4)
    with self.assertRaises(errors.InputError) as caught:
      sharding.check(mesh, n=n, batch_rows=rows, members=members)
    size = mesh.shape[axis]
    message = str(caught.exception)
    self.assertRegex(message, rf"{said}: .*divide by the {size} devices of the")
    self.assertRegex(message, rf"{axis} axis; .* multiple of {size}.*, or ")

  def test_refuses_batches_that_do_not_divide(self):
    mesh = jax.sharding.AbstractMesh((1, 8, 1), sharding.AXES)
    pairs = {"x": np.zeros((4, 2, 6), np.float32)}
    said = r"batch=4: .* pairs of rows\) must divide by the 8 .* multiple of 8"
    with self.assertRaisesRegex(errors.InputError, said):
      sharding.put(mesh, pairs)


class StateTest(parameterized.TestCase):
  @parameterized.parameters(False, True)
  def test_every_array_about_latents_is_split_by_latent(self, stacked):
    recipe = row_sparse.topk(
      6, 16, 2, dead_after_tokens=10, ema_decay=0.9, clip_norm=1.0
    )
    state = jax.eval_shape(lambda: step.init_state(recipe, jax.random.key(0)))
    if stacked:
      state = jax.tree.map(
        lambda s: jax.ShapeDtypeStruct((3, *s.shape), s.dtype), state
      )
    mesh = sharding.make_mesh((1, 1, 1))
    found = sharding.state_shardings(mesh, state, stacked=stacked)
    axes = ("ensemble",) if stacked else ()
    latents = 0
    for leaf, where in zip(
      jax.tree.leaves(state), jax.tree.leaves(found), strict=True
    ):
      shape = leaf.shape[len(axes) :]
      split = shape[:1] == (16,)
      latents += split
      want = ("latent",) if split else ()
      spec = tuple(where.spec)
      while spec and spec[-1] is None:
        spec = spec[:-1]
      self.assertEqual(spec, axes + want)
    # W_enc, b_enc, W_dec in weights, two moments and EMA; one statistic.
    self.assertEqual(latents, 4 * 3 + 1)

  def test_refuses_leaves_that_do_not_divide_by_name(self):
    recipe = factored.kronsae(6, 32, 2, m=2, q=4, dead_after_tokens=10)
    state = jax.eval_shape(lambda: step.init_state(recipe, jax.random.key(0)))
    mesh = jax.sharding.AbstractMesh((1, 1, 4), sharding.AXES)
    found = sharding.state_shardings(mesh, state, stacked=False)
    self.assertEqual(found.sae.encoder.P.spec, P("latent", None, None))
    mesh = jax.sharding.AbstractMesh((1, 1, 8), sharding.AXES)
    said = (
      r"train.mesh=1,1,8: .*encoder.P .* by the 8 devices.*; .* use 4 devices"
    )
    with self.assertRaisesRegex(errors.InputError, said):
      sharding.state_shardings(mesh, state, stacked=False)

  def test_rows_of_a_batch_lie_on_data(self):
    mesh = sharding.make_mesh((1, 1, 1))
    self.assertEqual(sharding.rows_sharding(mesh).spec, P("data"))


if __name__ == "__main__":
  absltest.main()
