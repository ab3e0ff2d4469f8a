"""Tests of saejax.recipes.thresholds: the contract, limits, known truths."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax import errors
from saejax.recipes import common, row_sparse, thresholds
from saejax.sae import convert, encoders, folding
from saejax.sae.activations import Ranked, ReLU, TopK
from saejax.sae.context import Batch, Pre
from saejax.sae.prep import Affine
from saejax.training import fit, step
from saejax.training.parts import constraints, losses
from saejax.training.recipe import Hyper
from tests import contract, toy

D, N, D_TARGET = contract.D, contract.N, 12
DEAD = {"dead_after_tokens": 10_000}
TARGETS = toy.dictionary(N, D_TARGET, seed=4)
FRAME = {
  "prep": Affine(centre=jnp.zeros(D), scale=jnp.float32(1.5)),
  "target": common.Target(
    d=D_TARGET,
    prep=Affine(centre=jnp.ones(D_TARGET), scale=jnp.float32(2.0)),
  ),
}

jumprelu = partial(
  thresholds.jumprelu,
  D,
  N,
  theta=0.1,
  bandwidth=0.1,
  coefficient_warmup=1 / 6,
  steps=600,
  **DEAD,
)
transcoder = partial(
  thresholds.gemma_scope,
  D,
  N,
  coefficient=0.03,
  coefficient_warmup=1 / 6,
  rate_warmup=1 / 12,
  theta=0.1,
  bandwidth=0.1,
  steps=600,
  **FRAME,
  **DEAD,
)
llama_scope = partial(
  thresholds.llama_scope, D, N, 3, steps=600, rate_warmup=1 / 30, **DEAD
)


def pairs(i):
  """Planted rows, and the same codes in another dictionary."""
  both = jnp.concatenate([contract.TRUTH, TARGETS], axis=-1)
  key = toy.key(7, i)
  rows = toy.planted(key, contract.ROWS, both)
  return Batch(x=rows[:, :D], target=1 + rows[:, D:])


CASES = {
  "jumprelu": contract.Case(make=lambda: jumprelu(coefficient=0.3), floor=0.85),
  "gated": contract.Case(
    make=lambda: thresholds.gated(D, N, coefficient=1.2, **DEAD), floor=0.85
  ),
  "gemma_scope": contract.Case(
    make=transcoder, draw=pairs, truth=TARGETS, rate=1e-2, floor=0.82
  ),
  "llama_scope": contract.Case(
    make=llama_scope,
    floor=0.9,
    # Free norms: one threshold for all is better than k a row, by 0.04.
    tolerance=0.06,
  ),
}


class ContractTest(parameterized.TestCase):
  @parameterized.parameters(*zip(CASES))
  def test_passes_the_contract(self, name):
    contract.check(self, CASES[name])


class JumpReLUTest(parameterized.TestCase):
  def test_one_program_reaches_several_targets(self):
    targets = (2, 5)
    saes, states, _ = fit.fit(
      lambda k: jumprelu(
        coefficient=10.0, penalty="l0_target", target_l0=k, bandwidth=0.2
      ),
      contract.rows,
      steps=800,
      members=[fit.member(0, learning_rate=5e-3, k=k) for k in targets],
      stacked=True,
    )
    x = jax.vmap(contract.rows)(jnp.arange(10**6, 10**6 + 16))
    for sae, state, target in zip(saes, states, targets, strict=True):
      count = float(jnp.mean(jnp.sum(sae.encode(x) != 0, axis=-1)))
      self.assertLess(abs(count / target - 1), 0.1)
      norms = jnp.linalg.norm(state.sae.W_dec, axis=-1)
      np.testing.assert_allclose(norms, 1, atol=1e-6)
      self.assertGreaterEqual(float(jnp.min(state.sae.activation.theta)), 0)

  def test_a_members_coefficient_multiplies_the_penalty(self):
    both = []
    for swept, own in ((2.0, 0.3), (1.0, 0.6)):
      recipe = jumprelu(coefficient=own, coefficient_warmup=0.0)
      state = step.init_state(recipe, jax.random.key(0))
      hyper = Hyper(jnp.float32(1e-3), coefficient=jnp.float32(swept))
      batch = contract.rows(jnp.asarray(0))
      both.append(jax.jit(step.make_step(recipe))(state, hyper, batch))
    (one, seen), (two, want) = both
    toy.assert_trees_close(one.sae, two.sae, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(seen["loss"], want["loss"], rtol=1e-6)
    np.testing.assert_allclose(seen["sparsity"], want["sparsity"])

  def test_threshold_0_without_penalty_is_the_relu_sae(self):
    sae = jumprelu(coefficient=0.0, theta=0.0).init(
      jax.random.key(0), sample=None
    )
    relu = sae.replace(activation=ReLU())
    x = contract.rows(jnp.asarray(0))
    loss = lambda s: jnp.mean(losses.mse(contract.record(None, s, x)))
    for one, two in zip(
      jax.tree.leaves(jax.grad(loss)(sae).replace(activation=None)),
      jax.tree.leaves(jax.grad(loss)(relu).replace(activation=None)),
      strict=True,
    ):
      np.testing.assert_array_equal(one, two)

  def test_thresholds_are_projected_after_the_update(self):
    for post_jump, least in ((False, 0.0), (True, 0.05)):
      recipe = jumprelu(coefficient=1.0, post_jump=post_jump)
      sae = recipe.init(jax.random.key(0), sample=None)
      theta = jnp.linspace(-1, 1, N)
      sae = sae.replace(activation=sae.activation.replace(theta=theta))
      np.testing.assert_array_equal(
        recipe.project(sae).activation.theta, jnp.maximum(theta, least)
      )

  @parameterized.parameters(
    ({"kernel": "box"}, "kernel=box: must be one of rectangle"),
    ({"bandwidth": 0.0}, "bandwidth=0.0"),
    ({"theta": -0.1}, "theta=-0.1"),
    ({"theta": 0.04, "post_jump": True}, "theta=0.04: must be at least 0.05"),
  )
  def test_estimators_that_do_not_work_are_refused(self, settings, said):
    with self.assertRaisesRegex(errors.InputError, said):
      jumprelu(coefficient=1.0, **settings)


class GatedTest(parameterized.TestCase):
  def test_a_penalty_shrinks_a_relu_and_not_a_gate(self):
    # One feature of size 2 on half of the rows, b_dec held at 0.
    size, penalty = 2.0, 0.4
    draw = lambda i: jnp.asarray([[0.0], [size]])
    methods = {
      "relu": row_sparse.relu_l1(1, 1, coefficient=penalty, **DEAD),
      "gated": thresholds.gated(1, 1, coefficient=penalty, **DEAD),
    }
    codes = {}
    for name, method in methods.items():
      start = lambda key, *, sample, init=method.init: _upright(
        init(key, sample=None)
      )
      method = dataclasses.replace(
        method, init=start, gradient=constraints.without_decoder_bias
      )
      saes, _, _ = fit.fit(method, draw, steps=2000, members=[fit.member()])
      codes[name] = float(saes[0].encode(jnp.asarray([[size]]))[0, 0])
    self.assertAlmostEqual(codes["relu"], size - penalty / 2, delta=0.01)
    self.assertAlmostEqual(codes["gated"], size, delta=0.01 * size)


def _upright(sae):
  """Every weight positive."""
  positive = lambda part: part.replace(W=jnp.abs(part.W))
  return sae.replace(
    encoder=positive(sae.encoder), decoder=positive(sae.decoder)
  )


class GemmaScopeTest(parameterized.TestCase):
  def test_schedules_are_the_published_ones(self):
    recipe = thresholds.gemma_scope(
      D,
      N,
      coefficient=2.0,
      coefficient_warmup=0.1,
      rate_warmup=0.01,
      steps=100_000,
      **DEAD,
    )
    steps = jnp.asarray([0, 500, 1000, 5000, 10_000, 20_000])
    np.testing.assert_allclose(
      recipe.schedule(steps), [0.1, 0.55, 1, 1, 1, 1], rtol=1e-5
    )
    np.testing.assert_allclose(
      recipe.terms["sparsity"].weight(steps),
      [0, 0.1, 0.2, 1, 2, 2],
      rtol=1e-5,
    )

  def test_starts_as_published(self):
    recipe = thresholds.gemma_scope(D, N, coefficient=2.0, steps=100, **DEAD)
    sae = recipe.init(jax.random.key(0), sample=Batch(x=1 + toy.rows(9, D)))
    self.assertFalse(sae.pre_bias)
    np.testing.assert_array_equal(sae.W_enc, sae.W_dec)
    np.testing.assert_allclose(jnp.linalg.norm(sae.W_dec, axis=-1), 1, 1e-6)
    for zero in (sae.b_enc, sae.b_dec):
      np.testing.assert_array_equal(zero, jnp.zeros_like(zero))
    np.testing.assert_allclose(sae.activation.theta, 0.001)
    self.assertEqual(sae.activation.eps, 0.001)

  def test_a_transcoder_has_two_widths_and_folds(self):
    sae = transcoder().init(jax.random.key(0), sample=None)
    self.assertEqual(sae.W_enc.shape, (N, D))
    self.assertEqual(sae.W_dec.shape, (N, D_TARGET))
    self.assertFalse(sae.pre_bias)
    folded = folding.fold_prep(convert.inference_form(sae))
    batch = pairs(jnp.asarray(0))
    np.testing.assert_allclose(
      folded.reconstruct(batch), sae.reconstruct(batch), rtol=1e-4, atol=1e-5
    )

  def test_decoder_rows_have_unit_norm_after_every_step(self):
    recipe = transcoder()
    one = jax.jit(step.make_step(recipe))
    start = lambda: step.init_state(recipe, jax.random.key(0), sample=None)
    state = jax.jit(start)()
    for i in range(10):
      hyper = Hyper(learning_rate=jnp.float32(1e-2))
      state, _ = one(state, hyper, pairs(jnp.int32(i)))
      norms = np.linalg.norm(np.asarray(state.sae.W_dec, np.float64), axis=1)
      np.testing.assert_allclose(norms, 1, atol=1e-6)

  def test_a_transcoder_needs_a_target(self):
    with self.assertRaisesRegex(errors.InputError, "needs target of every row"):
      transcoder().check(("x",), 1)
    with self.assertRaisesRegex(errors.InputError, "target.d=0"):
      common.Target(d=0)


class LlamaScopeTest(parameterized.TestCase):
  @parameterized.parameters((16, 3, 60), (15, 4, 40), (4, 3, 60))
  def test_k_falls_from_half_of_d(self, d, k, anneal):
    recipe = thresholds.llama_scope(d, 32, k, steps=10 * anneal, **DEAD)
    sae = recipe.init(jax.random.key(0), sample=None)
    pre = Pre(a=jnp.zeros((1, 32)))
    found = [
      float(sae.activation.budget(pre, toy.context(step=jnp.asarray(t))))
      for t in (0, anneal // 2, anneal, 9 * anneal)
    ]
    first = max(k, d / 2)
    middle = np.ceil((first + k) / 2)
    self.assertEqual(found, [np.ceil(first), middle, k, k])

  def test_the_loss_does_not_see_a_shift_and_is_linear_in_scale(self):
    sae = toy.sae(activation=TopK(4, score="norm"))
    x = toy.rows(20, 8)
    loss = lambda s, x: losses.batch_norm_mse(contract.record(None, s, x))
    want = loss(sae, x)
    shifted = sae.replace(decoder=sae.decoder.replace(b=sae.b_dec + 3))
    np.testing.assert_allclose(loss(shifted, x + 3), want, rtol=1e-4)
    scaled = sae.replace(
      encoder=encoders.Affine(W=sae.W_enc, b=5 * sae.b_enc),
      decoder=sae.decoder.replace(b=5 * sae.b_dec),
    )
    np.testing.assert_allclose(loss(scaled, 5 * x), 5 * want, rtol=1e-4)

  def test_conversion_keeps_l0_and_explained_variance(self):
    held_out = jax.vmap(contract.rows)(jnp.arange(10**6, 10**6 + 64))
    sample, fresh = held_out[:32].reshape(-1, D), held_out[32:].reshape(-1, D)
    saes, states, _ = fit.fit(
      llama_scope(),
      contract.rows,
      steps=600,
      members=[fit.member()],
      sample=sample,
    )
    before = states[0].sae
    count = float(jnp.mean(jnp.sum(saes[0].encode(fresh) != 0, axis=-1)))
    self.assertLess(abs(count / 3 - 1), 0.05)
    lost = contract.nmse(saes[0], Batch(x=fresh)) - contract.nmse(
      before, Batch(x=fresh)
    )
    self.assertLess(lost, 0.02)
    norms = jnp.linalg.norm(saes[0].W_dec, axis=-1)
    np.testing.assert_allclose(norms, 1, rtol=1e-5)

  def test_a_shared_program_ends_with_each_members_k(self):
    activation = llama_scope().init(jax.random.key(0), sample=None).activation
    self.assertIsInstance(activation, Ranked)
    self.assertEqual(activation.with_k(2).budget.k, 2)

  def test_impossible_settings_are_refused(self):
    with self.assertRaisesRegex(errors.InputError, "k=33"):
      thresholds.llama_scope(D, N, 33, steps=10, **DEAD)
    with self.assertRaisesRegex(errors.InputError, "steps=0"):
      thresholds.llama_scope(D, N, 3, steps=0, **DEAD)


if __name__ == "__main__":
  absltest.main()
