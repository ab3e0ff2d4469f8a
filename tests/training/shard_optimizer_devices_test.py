"""The optimizer's state divided over rows' devices trains the same weights."""

import functools
import tempfile

import jax
import numpy as np
from absl.testing import absltest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from saejax.training import members, sharding
from saejax.training.parts import rounding
from tests import contract, toy
from tests.training import mesh_devices_test as usual

B, N, MESH = usual.B, usual.N, (2, 2, 2)


@functools.cache
def group(shard: bool) -> members.Group:
  """The members on eight devices; if divided, also with batches in parts."""
  return members.Group(
    usual.topk,
    usual.MEMBERS[:4],
    mesh=sharding.make_mesh(MESH),
    stacked=True,
    accumulate=4 if shard else 1,
    shard_optimizer=shard,
  )


def trained(g, states, batches):
  for x in batches:
    states, metrics, _ = g.run(states, [g.put({"x": x})])
    states = jax.block_until_ready(states)
  return states, metrics[0]


class ShardOptimizerTest(absltest.TestCase):
  def test_weights_equal_those_of_undivided_states_also_after_a_checkpoint(
    self,
  ):
    rows = toy.rows(20, usual.D)
    plain, divided = group(False), group(True)
    batches = usual.batches()[:4]
    want, metrics = trained(plain, plain.init(rows), batches[:3])
    got, found = trained(divided, divided.init(rows), batches[:3])
    self.compare(got, want)
    self.assertTrue((metrics["aux"] > 0).any())
    for name in metrics:
      np.testing.assert_allclose(
        found[name], metrics[name], rtol=1e-3, atol=1e-5, err_msg=name
      )
    # Each form goes on from the checkpoint of the other.
    with tempfile.TemporaryDirectory() as folder:
      other = contract.restored(folder, want, like=got)
    toy.assert_trees_equal(other, want)
    got, _ = trained(divided, other, batches[3:])
    with tempfile.TemporaryDirectory() as folder:
      back = contract.restored(folder, got, like=want)
    self.assertEqual(*(self.held(s) for s in (want, back)))
    want, _ = trained(plain, want, batches[3:])
    self.compare(got, want)

  def test_moments_are_divided_and_weights_are_not(self):
    (state,) = group(True).init()
    half, quarter = (2, N // 2), (2, N // 4)
    self.assertEqual(self.held([state]), quarter)
    rows = lambda a: a.addressable_shards[0].data.shape[:2]
    self.assertEqual(rows(state.ema.ema.encoder.b), quarter)
    self.assertEqual(rows(state.sae.W_enc), half)
    bias = state.opt_state[0].mu.decoder.b
    self.assertEqual(rows(bias), (2, usual.D))

  def test_stochastic_rounding_does_not_depend_on_the_mesh(self):
    x, key = toy.rows(N, usual.D), jax.random.key(5)
    where = NamedSharding(sharding.make_mesh(MESH), P(("latent", "data")))
    rounded = jax.jit(rounding.stochastic)
    got = rounded(jax.device_put(x, where), key)
    np.testing.assert_array_equal(got, rounded(x, key))
    other = rounded(x, jax.random.key(6))
    self.assertTrue((np.asarray(got) != np.asarray(other)).any())

  def held(self, states):
    moment = states[0].opt_state[0].nu.decoder.W
    return moment.addressable_shards[0].data.shape[:2]

  def compare(self, got, want):
    toy.assert_trees_close(got[0].sae, want[0].sae, rtol=1e-3, atol=2e-5)
    toy.assert_trees_equal(got[0].stats, want[0].stats)
    for a, b in zip(
      jax.tree.leaves(got[0].opt_state),
      jax.tree.leaves(want[0].opt_state),
      strict=True,
    ):
      np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-6)


if __name__ == "__main__":
  absltest.main()
