"""Tests of saejax.training.parts.rounding."""

import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax.recipes import row_sparse
from saejax.training import step
from saejax.training.parts import rounding
from saejax.training.recipe import Hyper
from tests import contract, toy

KEY = jax.random.key(3)
STEP = 2.0**-7  # between neighbours in bfloat16, from 1 to 2


class StochasticTest(parameterized.TestCase):
  @parameterized.parameters(0.125, 0.5, 0.9)
  def test_the_mean_is_the_value(self, part):
    x = jnp.full((500, 400), 1 + part * STEP)
    found = np.asarray(rounding.stochastic(x, KEY), np.float64)
    self.assertEqual(set(np.unique(found)), {1, 1 + STEP})
    up = (found - 1) / STEP
    spread = np.sqrt(part * (1 - part))
    self.assertLess(abs(up.mean() - part), 4 * spread / np.sqrt(up.size))
    # Neither rows nor columns share their draws: their means spread as such.
    for axis, count in ((0, 500), (1, 400)):
      ratio = up.mean(axis).std() / (spread / np.sqrt(count))
      self.assertBetween(ratio, 0.85, 1.15)

  def test_negative_values_are_rounded_without_bias(self):
    x = jnp.full((500, 400), -1 - 0.25 * STEP)
    down = -1 - np.asarray(rounding.stochastic(x, KEY), np.float64)
    self.assertAlmostEqual(down.mean() / STEP, 0.25, delta=0.004)

  def test_what_bfloat16_holds_stays(self):
    x = jnp.asarray([0.0, -0.0, 1.0, -3.5, 1e-38, jnp.inf, -jnp.inf, jnp.nan])
    x = x.astype(jnp.bfloat16).astype(jnp.float32)[None]
    found = rounding.stochastic(x, KEY).astype(jnp.float32)
    np.testing.assert_array_equal(found, x)

  def test_updates_too_small_for_nearest_add_up(self):
    w = nearest = jnp.ones((64, 64), jnp.bfloat16)
    for i in range(50):
      moved = w.astype(jnp.float32) + 1e-4
      w = rounding.stochastic(moved, jax.random.fold_in(KEY, i))
      nearest = (nearest.astype(jnp.float32) + 1e-4).astype(jnp.bfloat16)
    self.assertAlmostEqual(float(jnp.mean(w.astype(jnp.float32))), 1.005, 3)
    np.testing.assert_array_equal(nearest, jnp.ones_like(nearest))


class StepTest(absltest.TestCase):
  def test_matrices_are_kept_in_bfloat16_and_resume_exactly(self):
    recipe = row_sparse.topk(
      8,
      32,
      3,
      dead_after_tokens=100,
      param_dtype="bfloat16",
      second_moments="row",
    )
    state = step.init_state(recipe, jax.random.key(0))
    one = jax.jit(step.make_step(recipe, accumulate=2))
    hyper = Hyper(learning_rate=jnp.asarray(1e-5))
    states = [state]
    for i in range(2):
      states.append(one(states[-1], hyper, toy.rows(16, 8, seed=i))[0])
    sae = states[-1].sae
    for name in ("W_enc", "W_dec"):
      self.assertEqual(getattr(sae, name).dtype, jnp.bfloat16)
      # A rate far below the spacing of bfloat16 still moves some entries.
      moved = getattr(sae, name) != getattr(states[1].sae, name)
      self.assertBetween(float(jnp.mean(moved)), 1e-4, 0.2)
    self.assertEqual(sae.b_enc.dtype, jnp.float32)
    self.assertEqual(states[-1].opt_state[0].nu.decoder.W.shape, (32, 1))
    self.assertEqual(step.averaged(recipe, states[-1]).W_dec.dtype, jnp.float32)
    with tempfile.TemporaryDirectory() as folder:
      (again,) = contract.restored(folder, (states[1],))
    again, _ = one(again, hyper, toy.rows(16, 8, seed=1))
    toy.assert_trees_equal(again, states[-1])


if __name__ == "__main__":
  absltest.main()
