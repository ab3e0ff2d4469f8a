"""Tests of saejax.recipes.row_sparse: limits, and recovery of known truths."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax.recipes import row_sparse
from saejax.sae import activations, decoders
from saejax.training import losses, step
from saejax.training.recipe import Hyper, Record
from tests import contract, toy

D, N = 32, 64
TRUTH = toy.dictionary(N, D)


def train(recipe, steps, rows, *, state=None, rate=3e-3, engine="dense"):
  """Steps on fresh planted rows, in one program; state and metrics."""
  one = step.make_step(recipe, engine=engine)
  hyper = Hyper(learning_rate=jnp.float32(rate))

  @jax.jit
  def run(state, keys):
    draw = lambda key: toy.planted(key, rows, TRUTH)
    return jax.lax.scan(lambda s, key: one(s, hyper, draw(key)), state, keys)

  if state is None:
    state = step.init_state(recipe, jax.random.key(1))
  return run(state, jax.random.split(jax.random.key(2), steps))


CASES = {
  "topk": contract.Case(
    make=lambda: row_sparse.topk(
      contract.D, contract.N, 3, dead_after_tokens=10_000
    ),
    floor=0.9,
  ),
  "relu_l1": contract.Case(
    make=lambda: row_sparse.relu_l1(
      contract.D, contract.N, coefficient=0.3, dead_after_tokens=10_000
    ),
    floor=0.8,
  ),
}


class ContractTest(parameterized.TestCase):
  @parameterized.parameters(*zip(CASES))
  def test_passes_the_contract(self, name):
    contract.check(self, CASES[name])


class RecoveryTest(parameterized.TestCase):
  def test_topk_finds_the_planted_dictionary(self):
    # Floors for this length: 0.95 and 80 % at 3000 steps of 512 rows.
    recipe = row_sparse.topk(D, N, 3, dead_after_tokens=50_000)
    state, metrics = train(recipe, 1500, 256, engine="sparse")
    cosines = toy.best_cosines(TRUTH, state.sae.W_dec)
    self.assertGreater(cosines.mean(), 0.95)
    self.assertGreater((cosines > 0.9).mean(), 0.8)
    self.assertLess(metrics["loss"][-1], 0.3)
    self.assertGreater(metrics["loss"][0], 0.6)

  def test_relu_l1_finds_the_planted_dictionary_and_pca_does_not(self):
    recipe = row_sparse.relu_l1(D, N, coefficient=0.3, dead_after_tokens=50_000)
    state, _ = train(recipe, 1000, 256)
    cosines = toy.best_cosines(TRUTH, state.sae.W_dec)
    self.assertGreater(cosines.mean(), 0.9)
    x = np.asarray(toy.planted(jax.random.key(3), 4096, TRUTH))
    axes = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)[2]
    pca = toy.best_cosines(TRUTH, jnp.asarray(np.concatenate([axes, -axes])))
    self.assertLess(pca.mean(), 0.6)


class RevivalTest(absltest.TestCase):
  @functools.cache  # noqa: B019
  def silent(self, aux_weight):
    """Which latents, half of them started small, are dead at the end."""
    recipe = row_sparse.topk(
      D,
      N,
      3,
      dead_after_tokens=5000,
      aux_weight=aux_weight,
      aux_capacity=N,
    )
    state = step.init_state(recipe, jax.random.key(1))
    W = state.sae.W_enc.at[: N // 2].multiply(0.05)
    encoder = state.sae.encoder.replace(W=W)
    state = state.replace(sae=state.sae.replace(encoder=encoder))
    state, _ = train(recipe, 600, 256, state=state)
    return np.asarray(state.stats["tokens_since_fired"]) >= 5000

  def test_shrunk_latents_stay_dead_without_aux_and_revive_with_it(self):
    np.testing.assert_array_equal(self.silent(0.0)[: N // 2], True)
    self.assertLess(self.silent(1 / 32)[: N // 2].mean(), 0.1)


class LimitsTest(parameterized.TestCase):
  def orthonormal(self, k, d=6):
    """Tied orthonormal weights, b_dec the mean of some rows."""
    recipe = row_sparse.topk(d, d, k, dead_after_tokens=10**6)
    sae = jax.jit(lambda: recipe.init(jax.random.key(0), sample=None))()
    W = jnp.linalg.qr(toy.rows(d, d))[0]
    x = toy.rows(200, d) + 2
    mean = jnp.mean(x, axis=0)
    return (
      recipe,
      x,
      sae.replace(
        encoder=sae.encoder.replace(W=W, b=jnp.zeros(d)),
        decoder=sae.decoder.replace(W=W, b=mean),
      ),
    )

  @parameterized.parameters(1, 3, 6)
  def test_orthonormal_topk_leaves_the_coordinates_not_chosen(self, k):
    recipe, x, sae = self.orthonormal(k)
    coordinates = np.asarray((x - sae.b_dec) @ sae.W_enc.T)
    left = np.sort(coordinates, axis=1)[:, ::-1].copy()
    left[:, :k] = np.minimum(left[:, :k], 0)  # chosen and positive: explained
    want = (left**2).sum() / (coordinates**2).sum()
    forward = sae.forward(x)
    record = Record(forward=forward, sae=sae, stats={}, engine="sparse")
    got = jnp.mean(recipe.terms["nmse"].fn(record))
    np.testing.assert_allclose(got, want, rtol=1e-4)
    self.assertGreater(want, 0.1)

  def test_topk_with_k_equal_to_n_is_relu(self):
    _, x, sae = self.orthonormal(6)
    relu = sae.replace(activation=activations.ReLU())
    np.testing.assert_allclose(
      sae.reconstruct(x), relu.reconstruct(x), atol=1e-5
    )

  def test_a_normalised_decoder_is_the_free_one_of_its_unit_rows(self):
    # Tied at the start: encoder and decoder both M = W / |row|.
    W, b = 3 * toy.rows(20, 8), toy.rows(8)
    sae = toy.sae(n=20, activation=activations.ReLU())
    unit = sae.replace(
      encoder=sae.encoder.replace(W=toy.unit(W)),
      decoder=decoders.Free(W=toy.unit(W), b=b),
    )
    scaled = unit.replace(decoder=decoders.Normalised(W=W, b=b))
    x = toy.rows(9, 8)
    np.testing.assert_array_equal(scaled.encode(x), unit.encode(x))
    np.testing.assert_allclose(
      scaled.reconstruct(x), unit.reconstruct(x), atol=1e-5
    )


class CompositionTest(parameterized.TestCase):
  def test_topk_is_the_composition_of_the_paper(self):
    recipe = row_sparse.topk(384, 1024, 8, dead_after_tokens=10**7)
    self.assertEqual(list(recipe.terms), ["nmse", "aux"])
    self.assertIs(recipe.terms["nmse"].fn, losses.normalised_mse)
    self.assertEqual(recipe.terms["aux"].weight, 1 / 32)
    sae = jax.eval_shape(lambda: recipe.init(jax.random.key(0), sample=None))
    self.assertEqual(sae.activation, activations.TopK(8))
    self.assertTrue(sae.pre_bias)

  @parameterized.parameters(False, True)
  def test_relu_l1_weighs_free_decoders_by_their_norms(self, decoder_norm):
    recipe = row_sparse.relu_l1(
      8, 20, coefficient=0.5, dead_after_tokens=100, decoder_norm=decoder_norm
    )
    sae = jax.jit(lambda: recipe.init(jax.random.key(0), sample=None))()
    sae = sae.replace(decoder=sae.decoder.replace(W=3 * sae.decoder.W))
    kind = decoders.Free if decoder_norm else decoders.Normalised
    self.assertIsInstance(sae.decoder, kind)
    x = toy.rows(10, 8)
    record = Record(forward=sae.forward(x), sae=sae, stats={}, engine="dense")
    factor = 3 if decoder_norm else 1
    np.testing.assert_allclose(
      recipe.terms["l1"].fn(record),
      factor * jnp.sum(sae.encode(x), axis=-1),
      rtol=1e-5,
    )
    self.assertEqual(recipe.terms["l1"].weight, 0.5)

  def test_relu_l1_loss_falls_with_a_free_decoder(self):
    recipe = row_sparse.relu_l1(
      D, N, coefficient=0.1, dead_after_tokens=100, decoder_norm=True
    )
    _, metrics = train(recipe, 100, 64)
    self.assertLess(
      metrics["loss"][-10:].mean(), 0.8 * metrics["loss"][:10].mean()
    )

  def test_parts_given_reach_the_recipe(self):
    recipe = row_sparse.topk(
      8,
      20,
      2,
      dead_after_tokens=100,
      clip_norm=0.5,
      ema_decay=0.9,
      prep=toy.affine(8),
      dtype="bfloat16",
    )
    self.assertEqual((recipe.clip_norm, recipe.ema_decay), (0.5, 0.9))
    sae = recipe.init(jax.random.key(0), sample=None)
    self.assertEqual(sae.dtype, "bfloat16")
    toy.assert_trees_equal(sae.prep, toy.affine(8))
    self.assertTrue(dataclasses.is_dataclass(recipe))


if __name__ == "__main__":
  absltest.main()
