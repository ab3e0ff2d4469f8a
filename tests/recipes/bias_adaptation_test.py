"""Tests of saejax.recipes.bias_adaptation: the contract, recovery, rates."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax.errors import InputError
from saejax.recipes import bias_adaptation
from saejax.sae import activations, prep
from saejax.training import fit, step
from saejax.training.recipe import Hyper
from tests import contract, toy

DEAD = {"dead_after_tokens": 10_000}
CASES = {
  "gba": contract.Case(
    make=lambda: bias_adaptation.gba(
      contract.D, contract.N, groups=4, htf=0.1, ltf=0.03, every=5, **DEAD
    ),
    floor=0.87,
  ),
}


class ContractTest(parameterized.TestCase):
  @parameterized.parameters(*zip(CASES))
  def test_passes_the_contract(self, name):
    contract.check(self, CASES[name])


TRUTH = toy.dictionary(64, 32)
FREQUENCY = 3 / 64  # of each direction


def planted(seed, rows):
  """Unit rows, each of 3 directions with coefficients in [0.5, 1]."""
  rng = np.random.default_rng(seed)
  on = np.argsort(np.argsort(rng.random((rows, 64), np.float32))) < 3
  c = jnp.asarray(on * rng.uniform(0.5, 1, (rows, 64)), jnp.float32)
  return toy.unit(c @ TRUTH)


@functools.cache
def rows_of_training():
  return planted(0, 256 * 128)


@functools.cache
def trained(groups, htf, ltf, form="jump", train_b_pre=None):
  """Fraction of directions found to 0.9, rates on fresh rows, the biases."""
  recipe = bias_adaptation.gba(
    32,
    128,
    groups=groups,
    htf=htf,
    ltf=ltf,
    every=5,
    up=0.02,
    down=0.02,
    form=form,
    train_b_pre=train_b_pre,
    **DEAD,
  )
  draw = jax.tree_util.Partial(
    lambda pool, i: jax.lax.dynamic_slice_in_dim(pool, i % 128 * 256, 256),
    rows_of_training(),
  )
  members = [fit.member(learning_rate=5e-3)]
  (sae,), (state,), _ = fit.fit(recipe, draw, steps=600, members=members)
  found = (toy.best_cosines(TRUTH, sae.W_dec) > 0.9).mean()
  fresh = planted(1, 4096)
  rates = jax.jit(lambda s: jnp.mean(s.encode(fresh) > 0, axis=0))(sae)
  return found, np.asarray(rates), np.asarray(state.sae.activation.b)


class RecoveryTest(parameterized.TestCase):
  def test_one_group_finds_directions_at_their_frequency_only(self):
    found, _, _ = trained(1, FREQUENCY, FREQUENCY)
    self.assertGreater(found, trained(1, 0.4, 0.4)[0] + 0.5)

  def test_groups_find_directions_unless_the_highest_target_is_too_high(self):
    found, _, _ = trained(4, 0.1, 0.01)
    self.assertGreater(found, trained(4, 0.5, 0.01)[0] + 0.4)

  def test_rates_on_fresh_rows_are_at_or_below_the_targets(self):
    _, rates, b = trained(4, 0.1, 0.01)  # 4096 rows are 40 / 0.01
    ratio = rates.reshape(4, 32) / np.geomspace(0.1, 0.01, 4)[:, None]
    self.assertLess(np.median(ratio, axis=1).max(), 1.0)
    self.assertGreater(np.median(ratio, axis=1).min(), 0.3)
    self.assertBetween(b.min(), -1.0, -0.3)
    self.assertLessEqual(b.max(), 0.0)

  def test_relu_needs_b_pre_to_stay(self):
    # Trained, b_pre undoes the biases: a finding against the paper's form.
    target = (1, FREQUENCY, FREQUENCY, "relu")
    found, rates, b = trained(*target)
    self.assertGreater(found, 0.9)
    self.assertLess(np.median(rates), FREQUENCY)
    self.assertGreater(b.min(), -0.8)
    found, rates, b = trained(*target, True)
    self.assertLess(found, 0.2)
    self.assertGreater(rates.mean(), 2 * FREQUENCY)
    self.assertLess(b.min(), -0.99)


class CompositionTest(parameterized.TestCase):
  def test_one_group_is_bias_adaptation(self):
    x = toy.rows(30, 8)
    ends = []
    for recipe in (
      bias_adaptation.ba(8, 16, frequency=0.2, every=2, **DEAD),
      bias_adaptation.gba(8, 16, groups=1, htf=0.2, ltf=0.2, every=2, **DEAD),
    ):
      one = jax.jit(step.make_step(recipe))
      state = jax.jit(lambda r=recipe: step.init_state(r, jax.random.key(0)))()
      for _ in range(2):
        state, _ = one(state, Hyper(learning_rate=jnp.float32(0.01)), x)
      ends.append(state.sae)
    toy.assert_trees_equal(*ends)
    self.assertTrue((ends[0].activation.b < 0).any())

  def test_starts_as_the_paper_says_with_rows_of_norm_1(self):
    recipe = bias_adaptation.gba(8, 20, **DEAD)
    self.assertEqual(list(recipe.terms), ["mse"])
    self.assertEqual(recipe.terms["mse"].weight, 0.5)
    x = 30 * toy.rows(100, 8)
    init = jax.jit(lambda x: recipe.init(jax.random.key(0), sample=x))
    sae = init(x)
    for leaf, want in (
      (sae.activation.b, 0),
      (sae.decoder.a, 1),
      (sae.decoder.b, 0),
      (jnp.linalg.norm(sae.decoder.W, axis=-1), 1),
      (jnp.mean(jnp.sum(sae.prep.apply(x)[0] ** 2, axis=-1)), 1),
    ):
      np.testing.assert_allclose(leaf, want, rtol=1e-5)
    own = bias_adaptation.gba(8, 20, prep=prep.RowLayerNorm(), **DEAD)
    sae = own.init(jax.random.key(0), sample=None)
    self.assertIsInstance(sae.prep, prep.RowLayerNorm)
    held = recipe.finish(sae, {}, None)
    self.assertIsInstance(held.activation, activations.Threshold)


class RefusalsTest(parameterized.TestCase):
  @parameterized.parameters(
    ("groups", {"groups": 3}),
    ("groups", {"groups": 0}),
    ("htf", {"htf": 1.0}),
    ("htf", {"htf": 0.0}),
    ("ltf", {"ltf": 0.0}),
    ("ltf", {"ltf": 0.2}),
    ("every", {"every": 0}),
    ("up", {"up": -0.1}),
    ("down", {"down": -0.1}),
    ("form", {"form": "step"}),
  )
  def test_says_which_setting_is_impossible(self, field, change):
    with self.assertRaisesRegex(InputError, f"^{field}="):
      bias_adaptation.gba(8, 20, **{**DEAD, **change})

  @parameterized.parameters(0.0, 1.0, -0.5)
  def test_targets_are_frequencies(self, target):
    with self.assertRaisesRegex(InputError, "^frequency="):
      bias_adaptation.ba(8, 20, frequency=target, **DEAD)


if __name__ == "__main__":
  absltest.main()
