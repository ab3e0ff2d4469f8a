"""AuxK on eight devices: equal to one device, and split over latents."""

import contextlib
import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from saejax.kernels.topk import shards
from saejax.sae import activations
from saejax.training import sharding
from saejax.training.parts import revival, rules
from saejax.training.recipe import Record
from tests import compiled, toy

N, D, B = 64, 10, 48
SHAPES = [(1, 8, 1), (1, 1, 8), (1, 2, 4)]
TRACKER = rules.DeadTracker(100)


def program(shape, k_aux, signed):
  """The term and its gradients, compiled for a mesh, and their arguments."""
  kept = {"score": "magnitude", "keep": "signed"} if signed else {}
  term = revival.aux_k(k_aux, among=TRACKER, **kept)

  def value(sae, since, x):
    record = Record(
      forward=sae.forward(x, engine="sparse"),
      sae=sae,
      stats={rules.SINCE_FIRED: since},
      engine="sparse",
    )
    return term.fn(record)

  sae = toy.sae(n=N, d=D, activation=activations.TopK(2), pre_bias=True)
  # All of the last shard is dead, and a few of the others.
  since = np.where(np.arange(N) % 9 == 4, 150, 0)
  since[-8:] = 150
  args = sae, jnp.asarray(since, jnp.int32), toy.rows(B, D)
  run = jax.jit(jax.value_and_grad(value))
  if shape is None:
    return run.lower(*args).compile(), args
  mesh = sharding.make_mesh(shape)
  place = lambda a, *axes: jax.device_put(a, NamedSharding(mesh, P(*axes)))
  split = lambda a: place(a, "latent") if a.shape[0] == N else place(a)
  args = jax.tree.map(split, args[0]), split(args[1]), place(args[2], "data")
  with jax.set_mesh(mesh):
    return run.lower(*args).compile(), args


def run(shape, *case):
  step, args = program(shape, *case)
  where = contextlib.nullcontext()
  if shape is not None:
    where = jax.set_mesh(sharding.make_mesh(shape))
  with where:
    return jax.device_get(jax.block_until_ready(step(*args)))


@functools.cache
def one_device(*case):
  return run(None, *case)


class AuxKDevicesTest(parameterized.TestCase):
  @parameterized.product(
    shape=SHAPES,
    # More dead latents than k_aux; than a shard holds; and fewer, signed.
    case=[(3, False), (12, False), (40, True)],
    gather_bytes=[0, 1 << 26],
  )
  def test_value_and_gradients_are_those_of_one_device(
    self, shape, case, gather_bytes
  ):
    want = one_device(*case)
    self.assertGreater(want[0], 0.01)
    with mock.patch.object(shards, "GATHER_BYTES", gather_bytes):
      got = run(shape, *case)
    toy.assert_trees_close(got, want, rtol=1e-4, atol=1e-5)

  def test_no_device_holds_the_latents_of_others(self):
    with mock.patch.object(shards, "GATHER_BYTES", 0):
      text = program((1, 1, 8), 8, False)[0].as_text()
    held = compiled.arrays(text)
    self.assertIn((N // 8, D), held)
    for whole in ((N, D), (B, N), (D, N)):
      self.assertNotIn(whole, held)


if __name__ == "__main__":
  absltest.main()
