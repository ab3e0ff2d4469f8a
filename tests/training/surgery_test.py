"""Tests of saejax.training.surgery."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from saejax.errors import InputError
from saejax.recipes import factored, row_sparse
from saejax.sae import activations, ensembles
from saejax.training import step, surgery
from saejax.training.recipe import Hyper
from tests import toy

D, N, DECAY = 6, 12, 0.9
HYPER = Hyper(learning_rate=jnp.float32(1e-2))


@functools.cache
def trained():
  """A step, and a state with moments, average and statistics that are not 0."""
  recipe = row_sparse.topk(
    D, N, 2, dead_after_tokens=50, ema_decay=DECAY, aux_weight=0.0
  )
  one = jax.jit(step.make_step(recipe))
  state = jax.jit(lambda: step.init_state(recipe, jax.random.key(0)))()
  for i in range(3):
    state, _ = one(state, HYPER, toy.rows(8, D, seed=i))
  return recipe, one, state


def theta(state, value):
  """With a threshold for each latent, and one for all in the statistics."""
  activation = activations.Threshold(theta=jnp.asarray(value, jnp.float32))
  return state.replace(
    sae=state.sae.replace(activation=activation),
    stats={**state.stats, "threshold": jnp.float32(0.5)},
    stats_axes=(*state.stats_axes, ("threshold", "")),
  )


class PermuteTest(parameterized.TestCase):
  def test_every_array_about_latents_moves_and_no_other(self):
    _, _, state = trained()
    state = theta(state, np.arange(N))
    order = np.random.default_rng(0).permutation(N)
    moved = jax.jit(surgery.permute_latents)(state, jnp.asarray(order))
    adam, new_adam = state.opt_state[0], moved.opt_state[0]
    for old, new in (
      (state.sae, moved.sae),
      (adam.mu, new_adam.mu),
      (adam.nu, new_adam.nu),
      (state.ema.ema, moved.ema.ema),
    ):
      for name in ("encoder.W", "encoder.b", "decoder.W"):
        a, b = (_get(tree, name) for tree in (old, new))
        np.testing.assert_array_equal(b, a[order], err_msg=name)
      np.testing.assert_array_equal(old.decoder.b, new.decoder.b)
    np.testing.assert_array_equal(moved.sae.activation.theta, order)
    np.testing.assert_array_equal(
      moved.stats["tokens_since_fired"],
      state.stats["tokens_since_fired"][order],
    )
    self.assertEqual(float(moved.stats["threshold"]), 0.5)
    self.assertEqual(int(new_adam.count), int(adam.count))

  def test_there_and_back_is_the_same_state(self):
    _, _, state = trained()
    order = jnp.asarray(np.random.default_rng(1).permutation(N))
    back = surgery.permute_latents(
      surgery.permute_latents(state, order), jnp.argsort(order)
    )
    toy.assert_trees_equal(back, state)

  def test_training_goes_on_as_if_nothing_had_moved(self):
    _, one, state = trained()
    order = jnp.asarray(np.random.default_rng(2).permutation(N))
    x = toy.rows(8, D, seed=9)
    plain, _ = one(state, HYPER, x)
    moved, _ = one(surgery.permute_latents(state, order), HYPER, x)
    toy.assert_trees_close(
      moved, surgery.permute_latents(plain, order), rtol=1e-5, atol=1e-6
    )

  def test_refuses_a_leaf_whose_rows_are_not_latents(self):
    _, _, state = trained()
    state = state.replace(stats={"tokens_since_fired": jnp.zeros((N // 2,))})
    with self.assertRaisesRegex(ValueError, "tokens_since_fired"):
      surgery.permute_latents(state, jnp.arange(N))

  def test_refuses_a_statistic_whose_axes_no_rule_names(self):
    _, _, state = trained()
    state = state.replace(stats={**state.stats, "count": jnp.zeros((N,))})
    with self.assertRaisesRegex(TypeError, "no rule names the axes of count"):
      surgery.permute_latents(state, jnp.arange(N))

  def test_leaves_the_stages_of_a_boosted_one_alone(self):
    _, _, state = trained()
    prep = ensembles.Residual((toy.sae(n=N, d=D),))
    state = theta(state, np.arange(N))
    state = state.replace(
      sae=state.sae.replace(prep=prep), opt_state=(), ema=()
    )
    moved = surgery.permute_latents(state, jnp.arange(N)[::-1])
    toy.assert_trees_equal(moved.sae.prep, prep)
    np.testing.assert_array_equal(
      moved.sae.activation.theta, np.arange(N)[::-1]
    )

  def test_refuses_heads(self):
    recipe = factored.kronsae(D, N, 2, m=1, q=1, dead_after_tokens=10)
    state = step.init_state(recipe, jax.random.key(0))
    with self.assertRaisesRegex(ValueError, "encoder.P has one row per head"):
      surgery.permute_latents(state, jnp.arange(N))

  def test_refuses_an_optimizer_not_shaped_like_its_weights(self):
    recipe = dataclasses.replace(
      row_sparse.topk(D, N, 2, dead_after_tokens=50),
      optimizer=lambda rate: optax.adafactor(
        rate, min_dim_size_to_factor=1, multiply_by_parameter_scale=False
      ),
    )
    state = jax.eval_shape(lambda: step.init_state(recipe, jax.random.key(0)))
    with self.assertRaisesRegex(InputError, "optimizer=.*like its weight"):
      jax.eval_shape(surgery.permute_latents, state, jnp.arange(N))


class ReplaceTest(parameterized.TestCase):
  def test_masked_latents_start_anew_and_no_other(self):
    recipe, _, state = trained()
    mask = np.arange(N) % 3 == 0
    fresh = toy.sae(n=N, d=D, activation=state.sae.activation, seed=5)
    new = jax.jit(
      lambda s: surgery.replace_latents(s, mask, fresh, ema_decay=DECAY)
    )(state)
    average, before = (step.averaged(recipe, s) for s in (new, state))
    for name in ("encoder.W", "encoder.b", "decoder.W"):
      where = mask if name.endswith("b") else mask[:, None]
      given, old = _get(fresh, name), _get(state.sae, name)
      want = np.where(where, given, old)
      np.testing.assert_array_equal(_get(new.sae, name), want, err_msg=name)
      want = np.where(where, given, _get(before, name))
      np.testing.assert_allclose(_get(average, name), want, atol=1e-6)
      for moments in ("mu", "nu"):
        old, got = (
          _get(getattr(s.opt_state[0], moments), name) for s in (state, new)
        )
        np.testing.assert_array_equal(got, np.where(where, 0, old))
    np.testing.assert_array_equal(new.sae.decoder.b, state.sae.decoder.b)
    np.testing.assert_array_equal(
      new.stats["tokens_since_fired"],
      np.where(mask, 0, state.stats["tokens_since_fired"]),
    )

  def test_statistics_start_at_what_is_given(self):
    _, _, state = trained()
    mask = jnp.arange(N) < 2
    new = surgery.replace_latents(
      state,
      mask,
      state.sae,
      ema_decay=DECAY,
      stats={"tokens_since_fired": jnp.full((N,), 7, jnp.int32)},
    )
    want = np.where(mask, 7, state.stats["tokens_since_fired"])
    np.testing.assert_array_equal(new.stats["tokens_since_fired"], want)

  def test_an_empty_mask_changes_nothing(self):
    _, _, state = trained()
    fresh = toy.sae(n=N, d=D, activation=state.sae.activation)
    new = surgery.replace_latents(
      state, jnp.zeros((N,), bool), fresh, ema_decay=DECAY
    )
    toy.assert_trees_equal(new, state)

  def test_refuses_an_average_of_unknown_decay(self):
    _, _, state = trained()
    with self.assertRaisesRegex(ValueError, "ema_decay"):
      surgery.replace_latents(state, jnp.ones((N,), bool), state.sae)


def _get(tree, name):
  part, leaf = name.split(".")
  return np.asarray(getattr(getattr(tree, part), leaf))


if __name__ == "__main__":
  absltest.main()
