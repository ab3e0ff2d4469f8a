"""Training on eight devices gives what one gives, whatever the mesh."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax.recipes import row_sparse
from saejax.sae import files
from saejax.training import members, sharding
from saejax.training.parts import nested_losses
from tests import docs_test, toy

D, N, B, STEPS = 8, 64, 32, 6
STACKED = [(8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2)]
IN_TURN = [(1, 8, 1), (1, 1, 8), (1, 2, 4)]
# With k = 1 the tied start leaves residuals orthogonal to the one row used: the
# encoder's first gradients are rounding errors, of which Adam takes the sign.
MEMBERS = tuple(
  members.Member(arguments=(("k", k),), seed=seed, learning_rate=rate)
  for seed, rate in ((0, 1e-3), (1, 3e-3))
  for k in (2, 3, 6, 12)
)


def topk(k):
  # Dead after two silent batches, so that AuxK works on every mesh.
  return row_sparse.topk(
    D,
    N,
    k,
    dead_after_tokens=2 * B,
    k_aux=4,
    clip_norm=1.0,
    ema_decay=0.9,
    prep=toy.affine(D),
  )


def batches():
  return [np.asarray(7 * toy.rows(B, D, seed=70 + i) + 1) for i in range(STEPS)]


@functools.cache
def trained(shape, stacked):
  """States on the host, metrics and latents after some steps on a mesh."""
  mesh = sharding.make_mesh(shape)
  chosen = MEMBERS if stacked else MEMBERS[2:3]
  sharding.check(mesh, n=N, batch_rows=B, members=len(chosen))
  g = members.Group(topk, chosen, mesh=mesh, stacked=stacked)
  states = jax.block_until_ready(g.init(toy.rows(20, D)))
  found = []
  for x in batches():
    states, metrics, _ = g.run(states, [g.put({"x": x})])
    states = jax.block_until_ready(states)
    found.append(g.by_member(metrics))
  metrics = {n: np.concatenate([f[n] for f in found]) for n in found[0]}
  # What the trained weights select, on the same mesh.
  x = g.put({"x": batches()[0]})
  encode = lambda sae: sae.encode_sparse(x)
  with jax.set_mesh(mesh):
    select = jax.jit(jax.vmap(encode) if stacked else encode)
    latents = jax.device_get(jax.block_until_ready(select(states[0].sae)))
  where = [leaf.sharding for leaf in jax.tree.leaves(states)]
  wanted = jax.tree.leaves(g.shardings(states))
  return jax.device_get(states), metrics, latents, where, wanted


class MeshTest(parameterized.TestCase):
  def check(self, shape, stacked):
    states, metrics, latents, where, wanted = trained(shape, stacked)
    one, one_metrics, one_latents, _, _ = trained((1, 1, 1), stacked)
    for name, want in one_metrics.items():
      np.testing.assert_allclose(
        metrics[name], want, rtol=1e-4, atol=1e-6, err_msg=name
      )
    toy.assert_trees_close(
      [s.sae for s in states], [s.sae for s in one], rtol=1e-3, atol=2e-5
    )
    toy.assert_trees_equal([s.stats for s in states], [s.stats for s in one])
    np.testing.assert_array_equal(latents.indices, one_latents.indices)
    np.testing.assert_allclose(
      latents.values, one_latents.values, rtol=1e-3, atol=1e-4
    )
    # States stay where the table puts them.
    for got, want, leaf in zip(
      where, wanted, jax.tree.leaves(states), strict=True
    ):
      self.assertTrue(got.is_equivalent_to(want, np.ndim(leaf)), (got, want))

  @parameterized.parameters(*STACKED)
  def test_stacked_members_equal_those_of_one_device(self, *shape):
    self.check(shape, True)

  @parameterized.parameters(*IN_TURN)
  def test_a_member_in_turn_equals_that_of_one_device(self, *shape):
    self.check(shape, False)

  def test_these_steps_train_and_use_aux(self):
    _, metrics, _, _, _ = trained((1, 1, 1), True)
    self.assertTrue((metrics["aux"][-1, :4] > 0).any())
    self.assertTrue((metrics["grad_norm"] > 0.01).all())
    self.assertEqual(metrics["loss"].shape, (STEPS, len(MEMBERS)))

  def test_weights_are_split_by_latent_and_member(self):
    mesh = sharding.make_mesh((2, 2, 2))
    g = members.Group(topk, MEMBERS, mesh=mesh, stacked=True)
    (state,) = jax.block_until_ready(g.init())
    held = state.sae.W_enc.addressable_shards[0].data.shape
    self.assertEqual(held, (4, N // 2, D))
    held = state.opt_state[0].mu.decoder.W.addressable_shards[0].data.shape
    self.assertEqual(held, (4, N // 2, D))
    held = g.put({"x": batches()[0]}).x.addressable_shards[0].data.shape
    self.assertEqual(held, (B // 2, D))


class OwnPartTest(parameterized.TestCase):
  """The part of docs/own-method.md: `s: Float[Array, "n"]`, not of saejax."""

  def trained(self, shape):
    """Two steps that move no weight and sort latents; s_i starts at W_i0."""
    space = docs_test.defined()

    def init(key, *, sample):
      sae = recipe.init(key, sample=sample)
      s = sae.W_enc[:, 0]
      return sae.replace(activation=sae.activation.replace(s=jnp.array(s)))

    recipe = space["soft_log"](D, N, coefficient=0.05, dead_after_tokens=2 * B)
    sorts = (*recipe.rules, nested_losses.SortByEnergy())
    g = members.Group(
      lambda: dataclasses.replace(recipe, init=init, rules=sorts),
      [members.Member(seed=0, learning_rate=0.0)],
      mesh=sharding.make_mesh(shape),
      stacked=False,
    )
    states = start = jax.block_until_ready(g.init(toy.rows(20, D)))
    start = jax.device_get(start[0])
    for x in batches()[:2]:
      states, _, _ = g.run(states, [g.put({"x": x})])
      states = jax.block_until_ready(states)
    return start, states[0], space["SoftThreshold"]

  def test_is_sharded_permuted_and_saved_with_its_latents(self):
    start, state, part = self.trained((1, 1, 8))
    moments = state.opt_state[0].mu.activation.s
    for s in (state.sae.activation.s, moments):
      self.assertEqual(s.addressable_shards[0].data.shape, (N // 8,))
    sae, mu = jax.device_get((state.sae, state.opt_state[0].mu))
    self.assertFalse((sae.W_enc == start.sae.W_enc).all(), "nothing was sorted")
    np.testing.assert_array_equal(sae.activation.s, sae.W_enc[:, 0])
    _, one, _ = self.trained((1, 1, 1))
    one = jax.device_get(one)
    np.testing.assert_array_equal(sae.W_enc, one.sae.W_enc)
    np.testing.assert_allclose(
      mu.activation.s, one.opt_state[0].mu.activation.s, rtol=1e-4, atol=1e-7
    )
    folder = self.create_tempdir().full_path + "/sae"
    files.save(state.sae, folder)
    loaded = files.load(folder, parts={"soft.SoftThreshold": part})
    toy.assert_trees_equal(jax.tree.leaves(loaded), jax.tree.leaves(sae))


class TiesTest(parameterized.TestCase):
  @parameterized.product(
    shape=[(1, 8, 1), (1, 1, 8), (2, 2, 2)], winners=["tied", "one shard"]
  )
  def test_ties_and_winners_on_one_shard_are_selected_alike(
    self, shape, winners
  ):
    sae = toy.sae(n=N, d=D)
    if winners == "tied":  # rows repeat on other shards
      W, b = (
        jnp.tile(w[:16], (4, *[1] * (w.ndim - 1)))
        for w in (jnp.round(sae.W_enc), jnp.round(sae.b_enc))
      )
    else:
      W, b = sae.W_enc, sae.b_enc.at[-8:].add(100)
    sae = sae.replace(encoder=sae.encoder.replace(W=W, b=b))
    sae = sae.replace(decoder=sae.decoder.replace(b=jnp.zeros(D)))
    x = jnp.round(3 * toy.rows(B, D))
    a = np.asarray(x) @ np.asarray(W).T + np.asarray(b)
    want = np.argsort(-a, axis=1, kind="stable")[:, : sae.activation.k]
    mesh = sharding.make_mesh(shape)
    with jax.set_mesh(mesh):
      got = jax.jit(lambda s, x: s.encode_sparse(x))(sae, x)
      got = jax.device_get(jax.block_until_ready(got))
    if winners == "tied":  # whole numbers: sums are exact
      np.testing.assert_array_equal(got.indices, want)
    self.assertEqual(
      [set(row) for row in got.indices.tolist()],
      [set(row) for row in want.tolist()],
    )


if __name__ == "__main__":
  absltest.main()
