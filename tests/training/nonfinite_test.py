"""Tests of saejax.training.step: rows, losses and gradients not finite."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax.recipes import row_sparse
from saejax.training import step
from saejax.training.recipe import Hyper
from tests import toy

HYPER = Hyper(learning_rate=jnp.asarray(3e-3))


def topk():
  """TopK without AuxK, which compiles in half the time."""
  recipe = row_sparse.topk(8, 40, 4, dead_after_tokens=10**6, ema_decay=0.9)
  return dataclasses.replace(recipe, terms={"nmse": recipe.terms["nmse"]})


def start(recipe):
  return jax.jit(lambda: step.init_state(recipe, jax.random.key(3)))()


class NonFiniteTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.recipe = topk()
    cls.xs = [3 * toy.rows(32, 8, seed=100 + i) + 1 for i in range(4)]
    cls.bad = cls.xs[1].at[5, 2].set(jnp.nan)
    # Programs are shared by the tests.
    cls.stop, cls.skip = (
      staticmethod(jax.jit(step.make_step(cls.recipe, skip_nonfinite=skip)))
      for skip in (False, True)
    )

  def through(self, one, xs, hyper=HYPER, state=None):
    state = start(self.recipe) if state is None else state
    metrics = None
    for x in xs:
      state, metrics = one(state, hyper, x)
    return state, metrics

  @parameterized.parameters(np.nan, np.inf, -np.inf)
  def test_bad_rows_halt_and_nothing_changes_from_then_on(self, number):
    bad = self.xs[1].at[5, 2].set(number)
    before, _ = self.through(self.stop, self.xs[:1])
    state, metrics = self.through(self.stop, [bad], state=before)
    self.assertFalse(metrics["rows_ok"])
    self.assertTrue(state.halted)
    self.assertTrue(state.alive)
    self.assertEqual(int(state.step), 1)  # the step of the bad batch
    toy.assert_trees_equal(state.replace(halted=before.halted), before)
    later, metrics = self.through(self.stop, self.xs[2:], state=state)
    self.assertTrue(metrics["rows_ok"])
    toy.assert_trees_equal(later, state)

  def test_bad_rows_are_left_out_where_the_policy_is_to_skip(self):
    state, _ = self.through(self.skip, [self.xs[0], self.bad, *self.xs[2:]])
    want, _ = self.through(self.skip, [self.xs[0], *self.xs[2:]])
    self.assertEqual(int(state.step), 4)
    self.assertFalse(state.halted)
    self.assertTrue(state.alive)
    toy.assert_trees_equal(state.replace(step=want.step), want)

  def poison(self, state):
    W = state.sae.encoder.W.at[0, 0].set(jnp.nan)
    return state.replace(
      sae=state.sae.replace(encoder=state.sae.encoder.replace(W=W))
    )

  def test_a_member_whose_loss_is_not_finite_is_frozen(self):
    state, _ = self.through(self.stop, self.xs[:2])
    given = self.poison(state)
    frozen, metrics = self.through(self.stop, self.xs[2:3], state=given)
    self.assertFalse(frozen.alive)
    self.assertFalse(metrics["alive"])
    self.assertFalse(frozen.halted)
    self.assertEqual(int(frozen.failed_step), 2)
    for part in ("sae", "opt_state", "ema", "stats"):
      toy.assert_trees_equal(getattr(frozen, part), getattr(given, part))
    # It stays so, even where the weights are good again.
    healed = frozen.replace(sae=state.sae)
    later, _ = self.through(self.stop, self.xs[3:], state=healed)
    self.assertEqual((int(later.step), int(later.failed_step)), (4, 2))
    toy.assert_trees_equal(later.sae, state.sae)

  @parameterized.parameters(1e30, np.inf, np.nan)
  def test_a_rate_that_blows_up_leaves_the_last_finite_weights(self, rate):
    state, _ = self.through(self.stop, self.xs[:1])
    hyper = Hyper(learning_rate=jnp.asarray(rate, jnp.float32))
    frozen, _ = self.through(self.stop, self.xs[1:], hyper, state)
    self.assertFalse(frozen.alive)
    for leaf in jax.tree.leaves(frozen.sae):
      self.assertTrue(jnp.isfinite(leaf).all())
    if not np.isfinite(rate):
      toy.assert_trees_equal(frozen.sae, state.sae)
      self.assertEqual(int(frozen.failed_step), 1)

  def test_skipping_freezes_after_ten_updates_in_a_row(self):
    given = self.poison(start(self.recipe))
    state, _ = self.through(self.skip, self.xs[:1] * 9, state=given)
    self.assertTrue(state.alive)
    self.assertEqual((int(state.step), int(state.failed_step)), (9, -1))
    frozen, metrics = self.through(self.skip, self.xs[:1], state=state)
    self.assertFalse(frozen.alive)
    self.assertFalse(metrics["alive"])
    self.assertEqual(int(frozen.failed_step), 9)
    toy.assert_trees_equal(frozen.sae, given.sae)
    # One good update in between, and counting starts again.
    healed = state.replace(sae=start(self.recipe).sae)
    healed, _ = self.through(self.skip, self.xs[:1], state=healed)
    self.assertEqual(int(healed.skipped), 0)
    bad = [self.xs[0] * np.nan]  # rows, not the member, are at fault
    state, _ = self.through(self.skip, bad, state=state)
    self.assertEqual((bool(state.alive), int(state.skipped)), (True, 9))


if __name__ == "__main__":
  absltest.main()
