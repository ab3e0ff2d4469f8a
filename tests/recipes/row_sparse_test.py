"""Tests of saejax.recipes.row_sparse: limits, and recovery of known truths."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax import errors
from saejax.recipes import row_sparse
from saejax.sae import activations, decoders, encoders
from saejax.training import fit, step
from saejax.training.members import Member
from saejax.training.parts import clipping, losses
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
  "k_sparse": contract.Case(
    make=lambda: row_sparse.k_sparse(
      contract.D, contract.N, 3, steps=600, dead_after_tokens=10_000
    ),
    floor=0.75,
  ),
  "abstopk": contract.Case(
    make=lambda: row_sparse.abstopk(
      contract.D, contract.N, 3, dead_after_tokens=10_000
    ),
    floor=0.7,
  ),
  "group_max": contract.Case(
    make=lambda: row_sparse.group_max(
      contract.D, contract.N, 8, dead_after_tokens=10_000
    ),
    floor=0.64,
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
      toy.reconstruct(sae, x), toy.reconstruct(relu, x), atol=1e-5
    )

  def test_tied_codes_are_those_of_an_untied_sae_with_its_unit_rows(self):
    # And the tied gradient is that of both, through the norms of the rows.
    recipe = row_sparse.relu_l1(
      8, 20, coefficient=0.3, tied=True, dead_after_tokens=100
    )
    W, b, x = 3 * toy.rows(20, 8), 0.1 * toy.rows(20, seed=5), toy.rows(9, 8)
    tied = recipe.init(jax.random.key(0), sample=x)
    tied = tied.replace(
      encoder=tied.encoder.replace(b=b), decoder=tied.decoder.replace(W=W)
    )
    untied = lambda M: tied.replace(
      encoder=encoders.Affine(W=M[0], b=b),
      decoder=decoders.Free(W=M[1], b=jnp.zeros(8)),
    )
    both = (toy.unit(W), toy.unit(W))
    np.testing.assert_array_equal(tied.decoder.b, 0)
    self.assertFalse(tied.pre_bias)

    def loss(sae):
      record = contract.record(recipe, sae, x)
      return sum(
        jnp.sum(t.fn(record)) * t.weight for t in recipe.terms.values()
      )

    run = jax.jit(
      lambda sae: (
        toy.encode(sae, x),
        toy.reconstruct(sae, x),
        jax.grad(loss)(sae),
      )
    )
    z, x_hat, gradient = run(tied)
    want_z, want, free = run(untied(both))
    np.testing.assert_allclose(z, want_z, atol=1e-6)
    np.testing.assert_allclose(x_hat, want, atol=1e-6)
    self.assertGreater(float(jnp.mean(z > 0)), 0.2)
    _, pull = jax.vjp(toy.unit, W)
    (through,) = pull(free.encoder.W + free.decoder.W)
    np.testing.assert_allclose(gradient.decoder.W, through, atol=1e-5)
    held = recipe.gradient(tied, gradient)
    np.testing.assert_array_equal(held.decoder.b, 0)

  def test_a_stacked_sweep_ends_as_the_runs_of_its_coefficients(self):
    make = lambda coefficient: row_sparse.relu_l1(
      D, N, coefficient=coefficient, dead_after_tokens=10_000
    )
    draw = lambda i: toy.planted(toy.key(4, i), 48, TRUTH)
    run = functools.partial(fit.fit, draw=draw, steps=10)
    swept = [
      Member(seed=0, learning_rate=3e-3, coefficient=c) for c in (0.5, 2.0)
    ]
    together, _, _ = run(make(0.1), members=swept, stacked=True)
    for sae, coefficient in zip(together, (0.05, 0.2), strict=True):
      (alone,), _, _ = run(make(coefficient), members=[fit.member(0)])
      toy.assert_trees_close(sae, alone, rtol=0, atol=1e-6)


class CompositionTest(parameterized.TestCase):
  def test_topk_is_the_composition_of_the_paper_but_for_auxk(self):
    recipe = row_sparse.topk(384, 1024, 8, dead_after_tokens=10**7)
    self.assertEqual(list(recipe.terms), ["nmse", "aux"])
    self.assertIs(recipe.terms["nmse"].fn, losses.normalised_mse)
    self.assertEqual(recipe.terms["aux"].weight, 1 / 8)
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
      factor * jnp.sum(toy.encode(sae, x), axis=-1),
      rtol=1e-5,
    )
    self.assertEqual(recipe.terms["l1"].weight, 0.5)

  def test_the_penalty_of_relu_l1_can_rise(self):
    make = functools.partial(row_sparse.relu_l1, 8, 20, dead_after_tokens=100)
    weight = (
      make(coefficient=0.5, coefficient_warmup=0.5, steps=20).terms["l1"].weight
    )
    got = [float(weight(jnp.int32(i))) for i in (0, 5, 10, 99)]
    self.assertEqual(got, [0, 0.25, 0.5, 0.5])
    for field, value in (("coefficient", -1.0), ("coefficient_warmup", -1)):
      with self.assertRaisesRegex(errors.InputError, f"^{field}="):
        make(**{"coefficient": 0.5, field: value})

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
    self.assertEqual(
      (recipe.clip, recipe.ema_decay), (clipping.Limit(0.5), 0.9)
    )
    sae = recipe.init(jax.random.key(0), sample=None)
    self.assertEqual(sae.dtype, "bfloat16")
    toy.assert_trees_equal(sae.prep, toy.affine(8))
    self.assertTrue(dataclasses.is_dataclass(recipe))


if __name__ == "__main__":
  absltest.main()
