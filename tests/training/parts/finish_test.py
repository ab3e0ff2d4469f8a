"""Tests of saejax.training.parts.finish."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax.recipes import batch_sparse
from saejax.sae import activations, budgets
from saejax.training import fit, sources, step
from saejax.training.parts import finish
from tests import toy

D, N, K, B = 16, 64, 4, 1024
METHODS = {
  "batchtopk": batch_sparse.batchtopk,
  "signed": functools.partial(batch_sparse.batchtopk, signed=True),
  "feature_choice": batch_sparse.feature_choice,
  "zipf": functools.partial(batch_sparse.feature_choice, budget="zipf"),
}


def draw(i):
  """Batch i of training rows; batches no run has read are fresh ones."""
  return toy.planted(toy.key(3, i), B, toy.dictionary(40, D))


def l0(sae) -> float:
  """Latents per row on 65,536 fresh rows."""
  count = jax.jit(lambda i: jnp.sum(sae.encode(draw(i)) != 0))
  return sum(int(count(i)) for i in range(10**6, 10**6 + 64)) / (64 * B)


class ThresholdsTest(parameterized.TestCase):
  @parameterized.product(
    case=[
      ("batchtopk", 32, None),
      ("batchtopk", 200, None),
      ("signed", 32, 0.9),
      ("feature_choice", 32, None),
      ("zipf", 32, 0.9),
    ]
  )
  def test_fresh_rows_keep_k_latents_whatever_the_length_of_the_run(self, case):
    name, steps, decay = case
    recipe = METHODS[name](
      D, N, K, dead_after_tokens=10**6, ema_decay=decay, aux_weight=0.0
    )
    members = [fit.member(learning_rate=0.01)]
    (sae,), (state,), _ = fit.fit(recipe, draw, steps=steps, members=members)
    self.assertIsInstance(sae.activation, activations.Threshold)
    want = K
    if name in ("feature_choice", "zipf"):  # some columns may fall short of m
      form = step.averaged(recipe, state)
      forward = jax.jit(lambda x: form.forward(x, stats=state.stats))
      kept = [forward(draw(10**5 + i)).latents.count() for i in range(16)]
      want = float(jnp.mean(jnp.stack(kept)))
    self.assertAlmostEqual(l0(sae), want, delta=0.015 * K)
    weights = step.averaged(recipe, state)
    toy.assert_trees_equal(sae.decoder, weights.decoder)

  def test_the_weights_handed_out_set_the_threshold(self):
    # An average that lags far behind: its own threshold is another.
    recipe = batch_sparse.batchtopk(
      D, N, K, dead_after_tokens=10**6, ema_decay=0.99, aux_weight=0.0
    )
    (sae,), (state,), _ = fit.fit(
      recipe, draw, steps=40, members=[fit.member(learning_rate=0.03)]
    )
    self.assertAlmostEqual(l0(sae), K, delta=0.015 * K)
    own = finish.to_jumprelu(state.sae, {}, sources.Drawn(draw, 40))
    moved = sae.replace(activation=own.activation)
    self.assertGreater(abs(l0(moved) - K), 0.02 * K)


class RowsTest(parameterized.TestCase):
  def test_drawn_rows_are_whole_batches_spread_over_the_run(self):
    numbered = lambda i: jnp.full((5, 2), i, jnp.float32)
    rows = sources.Drawn(numbered, 9)
    for count, want in ((5, [0]), (12, [0, 4, 8]), (999, range(9))):
      got = np.asarray(rows.sample(count).x)
      np.testing.assert_array_equal(got[:, 0], np.repeat(want, 5))


class ToTopKTest(parameterized.TestCase):
  @parameterized.parameters((1.0, 3), (1.5, 4), (2.0, 6), (99.0, 24))
  def test_keeps_alpha_k(self, alpha, k):
    moving = activations.Ranked(budgets.Annealed(3, 20, 9), keep="signed")
    sae = finish.ToTopK(alpha, keep="signed")(
      toy.sae(activation=moving), {}, None
    )
    self.assertEqual(sae.activation, activations.TopK(k, keep="signed"))


if __name__ == "__main__":
  absltest.main()
