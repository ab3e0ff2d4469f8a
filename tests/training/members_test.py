"""Tests of saejax.training.members on one device."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax.errors import InputError
from saejax.recipes import batch_sparse, row_sparse
from saejax.training import fit, members, sharding
from tests import toy

D, N, B, STEPS = 8, 32, 48, 10
MEMBERS = (
  members.Member(arguments=(("k", 2),), seed=0, learning_rate=1e-3),
  members.Member(arguments=(("k", 5),), seed=1, learning_rate=3e-3),
  members.Member(arguments=(("k", 2),), seed=2, learning_rate=1e-3),
)


def topk(k):
  # Dead after two silent batches: AuxK is at work, of each member's own k.
  return row_sparse.topk(
    D,
    N,
    k,
    dead_after_tokens=2 * B,
    clip_norm=1.0,
    ema_decay=0.9,
  )


def relu():
  return row_sparse.relu_l1(D, N, coefficient=0.1, dead_after_tokens=2 * B)


def group(make=topk, chosen=MEMBERS, **kwargs):
  mesh = sharding.make_mesh((1, 1, 1))
  return members.Group(make, chosen, mesh=mesh, **kwargs)


def batches(count=STEPS):
  return [np.asarray(3 * toy.rows(B, D, seed=50 + i)) for i in range(count)]


def run(g, xs, states=None, at_once=1):
  """All batches; the last states, metrics [steps, members] by name."""
  states = g.init() if states is None else states
  found = []
  for i in range(0, len(xs), at_once):
    states, metrics, _ = g.run(
      states, [g.put({"x": x}) for x in xs[i : i + at_once]]
    )
    found.append(g.by_member(metrics))
  names = found[0].keys()
  return states, {n: np.concatenate([f[n] for f in found]) for n in names}


def finished(g, states):
  """The inference forms."""
  return g.finished(g.trained(states))


@functools.cache
def trained(stacked):
  """The group, its states after all batches on the host, its metrics."""
  g = group(stacked=stacked)
  states, metrics = run(g, batches())
  return g, g.member_states(states), finished(g, states), metrics


class GroupTest(parameterized.TestCase):
  def test_stacked_equals_in_turn(self):
    _, in_turn, saes, metrics = trained(False)
    _, stacked, stacked_saes, stacked_metrics = trained(True)
    self.assertEqual(metrics.keys(), stacked_metrics.keys())
    for name, values in metrics.items():
      self.assertEqual(values.shape, (STEPS, len(MEMBERS)))
      np.testing.assert_allclose(
        stacked_metrics[name], values, rtol=1e-3, atol=1e-5, err_msg=name
      )
    self.assertGreater(metrics["aux"].max(), 0.1)  # AuxK was at work
    for one, other in zip(in_turn, stacked, strict=True):
      np.testing.assert_array_equal(
        one.stats["tokens_since_fired"], other.stats["tokens_since_fired"]
      )
      toy.assert_trees_equal(one.key, other.key)
    for one, other, member in zip(saes, stacked_saes, MEMBERS, strict=True):
      self.assertEqual(one.activation.k, member.k)
      # The same tree, static k included.
      toy.assert_trees_close(other, one, rtol=1e-3, atol=2e-5)

  def test_members_without_k_are_stacked_too(self):
    chosen = [
      members.Member(seed=s, learning_rate=r) for s, r in ((0, 1e-3), (1, 3e-3))
    ]
    saes = []
    for stacked in (False, True):
      g = group(relu, chosen, stacked=stacked)
      saes.append(finished(g, run(g, batches(10))[0]))
    for one, other in zip(*saes, strict=True):
      toy.assert_trees_close(other, one, rtol=1e-5, atol=1e-6)

  def test_l0_is_bounded_by_each_members_k(self):
    for stacked in (False, True):
      l0 = trained(stacked)[3]["l0"]
      self.assertTrue((l0 <= [m.k for m in MEMBERS]).all())
      self.assertGreater(l0[:, 1].min(), 2)

  def test_several_k_share_no_program_that_has_one_of_its_own(self):
    fixed = lambda k: dataclasses.replace(topk(k), static_k=True)
    with self.assertRaisesRegex(InputError, "topk with several k .2, 5.*turn"):
      group(fixed, stacked=True)
    group(fixed, stacked=False)
    group(fixed, [m for m in MEMBERS if m.k == 2], stacked=True)

  @parameterized.parameters(False, True)
  def test_every_k_is_one_that_its_recipe_takes(self, stacked):
    make = lambda k: batch_sparse.feature_choice(
      D, N, k, batch_rows=B, dead_after_tokens=2 * B
    )
    few = [
      members.Member(arguments=(("k", k),), seed=0, learning_rate=1e-3)
      for k in (1, 5)
    ]
    group(make, few, stacked=stacked)  # 48 rows for 32 latents
    less = lambda k: batch_sparse.feature_choice(
      D, N, k, batch_rows=B // 2, dead_after_tokens=2 * B
    )
    with self.assertRaisesRegex(InputError, "batch_rows=24.*n=32"):
      group(less, few, stacked=stacked)

  def test_members_of_other_arguments_have_programs_of_their_own(self):
    make = lambda aux_weight: row_sparse.topk(
      D, N, 2, dead_after_tokens=2 * B, aux_weight=aux_weight
    )
    two = [fit.member(aux_weight=w) for w in (0.0, 0.5)]
    g = group(make, two, stacked=False)
    _, metrics = run(g, batches(2))
    self.assertTrue(np.isnan(metrics["aux"][:, 0]).all())
    self.assertFalse(np.isnan(metrics["aux"][:, 1]).any())
    with self.assertRaisesRegex(InputError, "several aux_weight .0.0, 0.5"):
      group(make, two, stacked=True)

  def test_a_built_recipe_takes_no_arguments_of_members(self):
    with self.assertRaisesRegex(InputError, "^k=4: the recipe topk is built"):
      fit.fit(topk(8), lambda i: None, steps=1, members=[fit.member(0, k=4)])

  def test_members_differ_in_seed_and_rate(self):
    _, (a, _, c), _, metrics = trained(False)
    self.assertGreater(float(jnp.abs(a.sae.W_enc - c.sae.W_enc).max()), 0.1)
    np.testing.assert_allclose(
      metrics["learning_rate"][-1], [m.learning_rate for m in MEMBERS]
    )

  @parameterized.parameters(False, True)
  def test_several_steps_a_dispatch_change_nothing(self, stacked):
    g, want, _, metrics = trained(stacked)
    states, found = run(g, batches(), at_once=STEPS)
    self.assertEqual(found["loss"].shape, (STEPS, len(MEMBERS)))
    np.testing.assert_allclose(found["loss"], metrics["loss"], rtol=1e-4)
    for got, one in zip(g.member_states(states), want, strict=True):
      toy.assert_trees_close(got.sae, one.sae, rtol=1e-3, atol=1e-5)

  def test_states_given_are_donated(self):
    g, *_ = trained(True)
    (state,) = g.init()
    (new,), _, _ = g.run((state,), [g.put({"x": batches(1)[0]})])
    self.assertTrue(state.sae.W_enc.is_deleted())
    self.assertFalse(new.sae.W_enc.is_deleted())

  @parameterized.parameters(False, True)
  def test_nothing_compiles_after_the_first_step(self, stacked):
    g, *_ = trained(stacked)
    xs = [g.put({"x": x}) for x in batches(2)]
    states, _, _ = g.run(g.init(), xs[:1])
    count = []
    listen = lambda name, seconds, **_: (
      count.append(name) if name.endswith("backend_compile_duration") else None
    )
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
      jax.block_until_ready(g.run(states, xs[1:])[0])
      self.assertEmpty(count)
      # And a compilation would have been heard.
      jax.block_until_ready(jax.jit(lambda x: x * (1.2345 + stacked))(xs[0].x))
      self.assertNotEmpty(count)
    finally:
      jax.monitoring.unregister_event_duration_listener(listen)

  @parameterized.parameters(False, True)
  def test_seconds_are_given_for_each_member(self, stacked):
    g, *_ = trained(stacked)
    *_, seconds = g.run(g.init(), [g.put({"x": batches(1)[0]})])
    self.assertEqual(seconds.shape, (len(MEMBERS),))
    self.assertGreater(seconds.min(), 0)

  def test_b_dec_starts_at_the_median_of_the_sample(self):
    sample = toy.rows(40, D) + 5
    for stacked in (False, True):
      g = group(chosen=MEMBERS[:2], stacked=stacked)
      for state in g.member_states(g.init(sample)):
        np.testing.assert_allclose(state.sae.b_dec, 5, atol=0.6)


class FrozenMemberTest(parameterized.TestCase):
  @parameterized.product(stacked=[False, True], rate=[float("inf"), 1e30])
  def test_a_member_that_blows_up_is_frozen_and_the_rest_go_on(
    self, stacked, rate
  ):
    wild = dataclasses.replace(MEMBERS[1], learning_rate=rate)
    g, want, _, metrics = trained(stacked)
    # Rates are arguments of the programs: nothing is compiled again.
    disturbed = group(chosen=(MEMBERS[0], wild, MEMBERS[2]), stacked=stacked)
    disturbed._compiled = g._compiled
    states, found = run(disturbed, batches())
    _, frozen, _ = disturbed.member_states(states)
    self.assertFalse(found["alive"][-1][1])
    self.assertTrue(found["alive"][:, [0, 2]].all())
    self.assertGreaterEqual(int(frozen.failed_step), 0)
    self.assertFalse(frozen.halted)
    for leaf in jax.tree.leaves(frozen.sae):
      self.assertTrue(jnp.isfinite(leaf).all())
    if rate == float("inf"):  # its first step would have ruined it
      self.assertEqual(int(frozen.failed_step), 0)
      start = disturbed.member_states(disturbed.init())[1]
      toy.assert_trees_equal(frozen.sae, start.sae)
    for i in (0, 2):
      got = disturbed.member_states(states)[i]
      self.assertEqual(int(got.failed_step), -1)
      toy.assert_trees_equal(got, want[i])
      np.testing.assert_array_equal(found["loss"][:, i], metrics["loss"][:, i])


class CoefficientTest(parameterized.TestCase):
  def members(self, values=(0.05, 0.2)):
    return [
      members.Member(
        arguments=(("coefficient", c),), seed=0, learning_rate=3e-3
      )
      for c in values
    ]

  def relu(self, coefficient):
    return row_sparse.relu_l1(
      D, N, coefficient=coefficient, steps=STEPS, dead_after_tokens=2 * B
    )

  def test_members_of_several_coefficients_share_a_program(self):
    chosen = self.members()
    g = group(self.relu, chosen, stacked=False)
    self.assertLen(g._recipes, 1)
    self.assertEqual(
      [m.name for m in g.members],
      ["coefficient=0.05-seed0", "coefficient=0.2-seed0"],
    )
    together = finished(g, run(g, batches())[0])
    for own, sae in zip(chosen, together, strict=True):
      alone = group(self.relu, [own], stacked=False)
      toy.assert_trees_equal(finished(alone, run(alone, batches())[0])[0], sae)
    stack = group(self.relu, chosen, stacked=True)
    for one, two in zip(
      finished(stack, run(stack, batches())[0]), together, strict=True
    ):
      toy.assert_trees_close(one, two, rtol=1e-4, atol=1e-5)

  def test_a_bad_coefficient_is_refused_all_the_same(self):
    with self.assertRaisesRegex(InputError, "coefficient=-1"):
      group(self.relu, self.members((0.1, -1.0)), stacked=False)


if __name__ == "__main__":
  absltest.main()
