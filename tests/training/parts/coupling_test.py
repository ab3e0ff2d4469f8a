"""Tests of saejax.training.parts.coupling."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax.errors import InputError
from saejax.sae import activations, decoders, encoders, prep
from saejax.sae.latents import DenseLatents, SparseLatents
from saejax.sae.sae import SAE
from saejax.training import sharding
from saejax.training.parts import coupling
from saejax.training.state import TrainState
from tests import toy

N, D = 10, 6
LATE = jnp.asarray(1000)


def stack(*dictionaries):
  """Members with those decoder rows."""

  def sae(W):
    return SAE(
      prep=prep.Identity(),
      encoder=encoders.Tied(b=jnp.zeros(len(W)), raw=True),
      activation=activations.TopK(2),
      decoder=decoders.Normalised(W=W, b=jnp.zeros(W.shape[-1])),
    )

  saes = [sae(W) for W in dictionaries]
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *saes)


class MutualFeaturesTest(parameterized.TestCase):
  @parameterized.product(match=coupling.MATCHES, detach_peers=[False, True])
  def test_permuted_rescaled_copies_cost_nothing(self, match, detach_peers):
    W = toy.rows(N, D)
    order = np.random.default_rng(0).permutation(N)
    term = coupling.MutualFeatures(2.0, match=match, detach_peers=detach_peers)
    np.testing.assert_allclose(
      jax.jit(term)(stack(W, 3 * W[order]), LATE), 0, atol=1e-6
    )

  @parameterized.parameters(*coupling.MATCHES)
  def test_identical_dictionaries_have_no_gradient(self, match):
    W = toy.unit(toy.rows(N, D))
    term = coupling.MutualFeatures(1.0, match=match)
    gradients = jax.jit(jax.grad(term))(stack(W, W, W), LATE)
    np.testing.assert_allclose(gradients.decoder.W, 0, atol=1e-6)

  def test_pairs_are_averaged_and_each_uses_the_best_assignment(self):
    Ws = [toy.rows(4, D, seed=i) for i in range(3)]
    want = []
    for a, b in itertools.combinations(Ws, 2):
      c = np.asarray(toy.unit(a) @ toy.unit(b).T)
      orders = itertools.permutations(range(4))
      best = max(c[np.arange(4), list(order)].mean() for order in orders)
      want.append(1 - best)
    term = coupling.MutualFeatures(0.5, match="hungarian")
    np.testing.assert_allclose(
      jax.jit(term)(stack(*Ws), LATE), 0.5 * np.mean(want), rtol=1e-5
    )

  def test_nearest_rows_are_averaged_over_both_sides(self):
    a, b = toy.unit(toy.rows(N, D, seed=1)), toy.unit(toy.rows(N, D, seed=2))
    c = np.asarray(a @ b.T)
    want = (c.max(axis=0).mean() + c.max(axis=1).mean()) / 2
    np.testing.assert_allclose(coupling.similarity(a, b), want, rtol=1e-5)
    assigned = coupling.similarity(a, b, "hungarian")
    self.assertLessEqual(float(assigned), want + 1e-6)

  def test_both_members_are_drawn_to_each_other_unless_detached(self):
    # One latent each at right angles: nothing else can be matched.
    a, b = jnp.eye(2)[:1], jnp.eye(2)[1:]
    gradient = jax.grad(coupling.similarity, argnums=(0, 1))
    for detached, size in ((False, 1.0), (True, 0.5)):
      of_a, of_b = gradient(a, b, "max", detached)
      np.testing.assert_allclose(of_a, size * b)
      np.testing.assert_allclose(of_b, size * a)

  def test_the_weight_rises_along_half_a_cosine(self):
    saes = stack(toy.rows(N, D, seed=1), toy.rows(N, D, seed=2))
    term = jax.jit(coupling.MutualFeatures(1.0, warmup_steps=100))
    at = [float(term(saes, jnp.asarray(t))) for t in (0, 50, 100, 500)]
    np.testing.assert_allclose(
      np.asarray(at) / at[3], [0, 0.5, 1, 1], atol=1e-6
    )

  def test_an_assignment_on_the_host_is_refused_on_a_mesh(self):
    mesh = jax.sharding.AbstractMesh((1, 2, 4), sharding.AXES)
    said = "match=hungarian: .* mesh of 8 devices .*--sae.match=max"
    with (
      jax.sharding.use_abstract_mesh(mesh),
      self.assertRaisesRegex(InputError, said),
    ):
      jax.eval_shape(coupling.assignment, jnp.eye(4))


class RestartMemberTest(parameterized.TestCase):
  def rule(self, **settings):
    fresh = jax.tree.map(lambda a: a[0], stack(toy.rows(N, D, seed=9)))
    return coupling.RestartMember(lambda key: fresh, **settings), fresh

  def test_even_use_scores_0_and_use_of_k_latents_what_the_paper_gives(self):
    n, k = 512, 32
    even = jnp.full((n,), k / n)
    np.testing.assert_allclose(coupling.imbalance(even, k / n), 0, atol=1e-6)
    few = (jnp.arange(n) < k).astype(jnp.float32)
    want = ((n / k - 1) ** 3 * k + (n - k)) / n
    np.testing.assert_allclose(coupling.imbalance(few, k / n), want, rtol=1e-5)

  def test_at_one_in_sixteen_it_fires_below_37_percent_of_the_latents(self):
    n, target = 1024, 1 / 16
    for share, fires in ((0.33, True), (0.42, False)):
      used = np.arange(n) < share * n
      rates = jnp.where(used, target / share, 0.0)
      self.assertEqual(bool(coupling.imbalance(rates, target) > 2.5), fires)

  @parameterized.parameters("dense", "sparse")
  def test_rates_leave_out_rows_without_weight(self, kind):
    # Three of four rows count; both latents of each are 0 and 1.
    values = jnp.ones((4, 2))
    indices = jnp.asarray([[0, 1]] * 3 + [[2, 3]])
    latents = SparseLatents(values, indices, 4)
    if kind == "dense":
      latents = DenseLatents(latents.dense())
    batch = toy.Batch(x=jnp.zeros((4, 1)), weight=jnp.asarray([1.0, 1, 1, 0]))
    record = toy.record(latents, batch=batch)
    np.testing.assert_allclose(coupling._rates(record), [1, 1, 0, 0])
    # (1 + 1 + 1 + 1) / 4 = 1: half of the latents with all of the load.
    for limit, restarts in ((0.9, 1), (1.1, 0)):
      rule, _ = self.rule(target=0.5, limit=limit)
      stats = rule.update(rule.init(None), record)
      self.assertEqual(int(stats["restarts"]), restarts)
      self.assertEqual(bool(stats["needs_restart"]), bool(restarts))

  def test_only_the_member_that_needs_it_starts_again(self):
    rule, fresh = self.rule(target=0.5)
    saes = stack(toy.rows(N, D, seed=1), toy.rows(N, D, seed=2))
    state = TrainState(
      step=jnp.full((2,), 7),
      sae=saes,
      opt_state=jax.tree.map(jnp.ones_like, saes),
      ema=(),
      stats={
        "needs_restart": jnp.asarray([True, False]),
        "restarts": jnp.zeros((2,), jnp.int32),
      },
      key=jax.random.split(jax.random.key(0), 2),
      alive=jnp.ones((2,), bool),
      failed_step=jnp.full((2,), -1),
      skipped=jnp.zeros((2,), jnp.int32),
      halted=jnp.zeros((2,), bool),
    )
    new = jax.jit(jax.vmap(rule.write))(state)
    member = lambda tree, i: jax.tree.map(lambda a: a[i], tree)
    toy.assert_trees_equal(member(new.sae, 0), fresh)
    toy.assert_trees_equal(member(new.sae, 1), member(saes, 1))
    for leaf in jax.tree.leaves(new.opt_state):
      np.testing.assert_array_equal(leaf[0], 0)
      np.testing.assert_array_equal(leaf[1], 1)


if __name__ == "__main__":
  absltest.main()
