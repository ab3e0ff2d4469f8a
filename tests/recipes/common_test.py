"""Tests of saejax.recipes.common: the settings that all recipes take."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from saejax.errors import InputError
from saejax.recipes import (
  batch_sparse,
  common,
  nested,
  row_sparse,
  thresholds,
)
from saejax.sae.context import Batch
from saejax.training import step
from saejax.training.parts import clipping
from saejax.training.recipe import Hyper, constant
from tests import toy

D, N, K = 8, 32, 3
DEAD = {"dead_after_tokens": 20}


class SettingsTest(parameterized.TestCase):
  @parameterized.parameters(
    (D, N, {"k": 3}, 3),
    (D, N, {"k": 2.6}, 3),  # of a mean over the batch
    (D, N, {"k": 0.2}, 1),
    (D, N, {}, 4),  # also where n is at most 8 d
    (384, 4096, {}, 256),
    (64, 16, {}, 16),
    (D, N, {"k_aux": 5, "k": 3}, 5),
  )
  def test_k_aux_is_k_or_half_of_d_at_most_n(self, d, n, given, want):
    k_aux, k = given.get("k_aux"), given.get("k")
    self.assertEqual(common._k_aux(d, n, k_aux, k), want)

  @parameterized.parameters(
    ("k_aux", N + 1),
    ("k_aux", 0),
    ("aux_weight", -0.1),
    ("clip_norm", 0.0),
    ("clip_norm", "one"),
    ("ema_decay", 1.0),
    ("dead_after_tokens", 0),
    ("k", 2.5),
    ("k", 0),
    ("k", N + 1),
  )
  def test_refuses(self, field, value):
    settings = {"k": K, **DEAD, field: value}
    with self.assertRaises(InputError) as caught:
      row_sparse.topk(D, N, **settings)
    self.assertEqual(caught.exception.field, field)
    self.assertEqual(caught.exception.value, value)


RECIPES = {
  "topk": lambda: row_sparse.topk(D, N, K, **DEAD),
  "relu_l1": lambda: row_sparse.relu_l1(D, N, coefficient=0.1, **DEAD),
  "batchtopk": lambda: batch_sparse.batchtopk(D, N, K, **DEAD),
  "feature_choice": lambda: batch_sparse.feature_choice(D, N, K, **DEAD),
  "jumprelu": lambda: thresholds.jumprelu(
    D, N, coefficient=0.1, steps=10, **DEAD
  ),
  "llama_scope": lambda: thresholds.llama_scope(D, N, K, steps=10, **DEAD),
  "msae": lambda: nested.msae(D, N, levels=(2, 5), **DEAD),
  "hierarchical_topk": lambda: nested.hierarchical_topk(D, N, K, **DEAD),
}


class WeightsTest(parameterized.TestCase):
  @parameterized.product(name=[*RECIPES], engine=["auto", "dense"])
  def test_rows_of_weight_0_are_as_if_they_were_not_there(self, name, engine):
    recipe = RECIPES[name]()
    x, others = 3 * toy.rows(24, D), 50 + toy.rows(11, D, seed=9)
    weight = jnp.concatenate([jnp.ones(24), jnp.zeros(11)])
    padded = Batch(x=jnp.concatenate([x, others]), weight=weight)
    state = jax.jit(lambda: step.init_state(recipe, jax.random.key(0)))()
    # Half of the latents are too weak for a TopK, and soon dead.
    small = jnp.where(jnp.arange(N) % 2, 1.0, 0.05)[:, None]
    encoder = state.sae.encoder.replace(W=state.sae.encoder.W * small)
    state = state.replace(sae=state.sae.replace(encoder=encoder))
    recipe = dataclasses.replace(
      recipe,
      optimizer=lambda rate: optax.sgd(rate),
      clip=clipping.Clip(),
      schedule=constant,
    )
    state = state.replace(opt_state=recipe.optimizer(0.0).init(state.sae))
    one = jax.jit(step.make_step(recipe, engine=engine))
    hyper = Hyper(learning_rate=jnp.float32(0.05))
    ends = []
    for batch in (Batch(x=x), padded):
      end, metrics = state, {}
      for _ in range(2):
        end, metrics = one(end, hyper, batch)
      ends.append((end.sae, end.stats, metrics))
    (want, _, metrics), (got, _, _) = ends
    if "aux" in recipe.terms and name != "feature_choice":
      self.assertGreater(metrics["aux"], 0)
    toy.assert_trees_close(*ends, rtol=1e-4, atol=1e-5)
    self.assertGreater(float(jnp.abs(want.W_dec - state.sae.W_dec).max()), 1e-4)
    np.testing.assert_array_equal(got.W_dec.shape, want.W_dec.shape)


if __name__ == "__main__":
  absltest.main()
