"""saejax/evals/attribute_{mask,pairs,rotation}.py: attributes in blocks of latents."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax import errors
from saejax.evals.control import (
  attribute_mask,
  attribute_pairs,
  attribute_rotation,
)
from saejax.models import model as model_lib
from saejax.models import taps
from saejax.sae import activations
from tests import toy
from tests.models import golden

ATTRIBUTES, VALUES, ENTITIES, D = 3, 4, 60, 16


class Linear:
  """An SAE whose latents are orthonormal directions."""

  def __init__(self, W):
    self.W = jnp.asarray(W, jnp.float32)

  def encode(self, x):
    return x @ self.W.T

  def decode(self, z):
    return z @ self.W


def world(*, shared: bool = False, seed: int = 0):
  """Prompts of entities; attribute A is in latents 4 A to 4 A + 3.

  A shared latent holds a part of the first two attributes at once.
  """
  rng = np.random.default_rng(seed)
  W = np.linalg.qr(rng.standard_normal((D, D)))[0]
  own = rng.integers(VALUES, size=(ENTITIES, ATTRIBUTES))
  z = np.zeros((ENTITIES, D))
  for a in range(ATTRIBUTES):
    z[np.arange(ENTITIES), VALUES * a + own[:, a]] = 1
  z[:, 12:] = rng.standard_normal((ENTITIES, 4))  # of no attribute
  entity = np.repeat(np.arange(ENTITIES), ATTRIBUTES)
  asked = np.tile(np.arange(ATTRIBUTES), ENTITIES)
  x = (z @ W)[entity]
  U = W.copy()
  if shared:  # directions of the SAE: 0 of both blocks are mixed
    U[0], U[4] = (W[0] + W[4]) / 2**0.5, (W[0] - W[4]) / 2**0.5
  probes = jnp.asarray(W[:12].reshape(ATTRIBUTES, VALUES, D), jnp.float32)

  def answer(x, asked):
    return 8 * jnp.einsum("bd,bvd->bv", x, probes[asked])

  label = own[entity, asked]
  return Linear(U), answer, x.astype(np.float32), (entity, asked, label)


class MaskTest(parameterized.TestCase):
  def scores(self, target=1, *, shared=False, **options):
    sae, answer, x, table = world(shared=shared)
    entity, asked, label = table
    train, test = attribute_pairs.draw_pairs(
      entity, asked, label, target=target, count=1500
    )
    learnt = attribute_mask.learn(
      sae, answer, x, train, context=asked, rate=1e-2, **options
    )
    matches = attribute_mask.largest_logit(answer)
    found = attribute_mask.evaluate(
      sae, matches, x, test, learnt.mask, context=asked
    )
    return learnt, found

  @parameterized.parameters(0, 2)
  def test_the_mask_is_the_block_of_the_attribute(self, target):
    # saebench, check 4.
    learnt, found = self.scores(target)
    want = np.arange(D) // VALUES == target
    np.testing.assert_array_equal(learnt.mask[:12], want[:12])
    self.assertEqual((found.cause, found.isolation), (1, 1))
    self.assertEqual(found.disentanglement, 1)
    self.assertEqual(found.record()["disentanglement_score"], 1)
    self.assertLess(learnt.loss[-5:].mean(), 0.5 * learnt.loss[0])

  def test_a_shared_latent_cannot_be_disentangled(self):
    # saebench, check 4: the converse.
    _, found = self.scores(1, shared=True)
    self.assertLess(found.disentanglement, 1)
    mean = attribute_mask.mean_score([found, found])
    self.assertEqual(mean["cause_score"], found.cause)

  def test_a_learnt_rotation_is_above_a_shared_latent(self):
    _, answer, x, (entity, asked, label) = world()
    train, test = attribute_pairs.draw_pairs(
      entity, asked, label, target=1, count=1500
    )
    rotation, learnt = attribute_rotation.learn(
      answer, x, train, context=asked, rate=1e-2
    )
    R = np.asarray(rotation.R)
    np.testing.assert_allclose(R.T @ R, np.eye(D), atol=1e-5)
    matches = attribute_mask.largest_logit(answer)
    found = attribute_mask.evaluate(
      rotation, matches, x, test, learnt.mask, context=asked
    )
    _, shared = self.scores(1, shared=True)
    self.assertGreater(found.disentanglement, 0.97)
    self.assertGreater(found.disentanglement, shared.disentanglement)

  def test_a_cost_keeps_latents_of_no_use_out(self):
    learnt, found = self.scores(1, sparsity=0.5)
    np.testing.assert_array_equal(learnt.mask, np.arange(D) // VALUES == 1)
    self.assertEqual(found.latents, 4)

  def test_an_exchange_of_nothing_and_of_everything(self):
    sae, answer, x, (entity, asked, label) = world()
    _, test = attribute_pairs.draw_pairs(
      entity, asked, label, target=0, count=300
    )
    matches = attribute_mask.largest_logit(answer)
    for value, want in ((False, (0, 1)), (True, (1, 0))):
      mask = np.full(D, value)
      found = attribute_mask.evaluate(
        sae, matches, x, test, mask, context=asked
      )
      self.assertEqual((found.cause, found.isolation), want)
    sae = toy.sae(n=24, d=8)
    x = toy.rows(5, 8)
    exchanged = jax.jit(attribute_mask.exchanged, static_argnames="keep_error")
    kept = exchanged(sae, x, x[::-1], jnp.zeros(24), keep_error=True)
    np.testing.assert_allclose(kept, x, atol=1e-5)
    lost = exchanged(sae, x, x[::-1], jnp.ones(24))
    want = toy.reconstruct(sae, x[::-1])
    np.testing.assert_allclose(lost, want, atol=1e-5)


class PairsTest(absltest.TestCase):
  def test_pairs_are_of_one_attribute_and_differ_and_entities_are_divided(self):
    *_, (entity, asked, label) = world()
    train, test = attribute_pairs.draw_pairs(
      entity, asked, label, target=1, count=400
    )
    self.assertEqual((len(train), len(test)), (2 * 280, 2 * 120))
    for pairs in (train, test):
      base, source = pairs.base, pairs.source
      np.testing.assert_array_equal(asked[base], asked[source])
      self.assertTrue((label[base] != label[source]).all())
      np.testing.assert_array_equal(pairs.cause, asked[base] == 1)
      want = np.where(pairs.cause, label[source], label[base])
      np.testing.assert_array_equal(pairs.wanted, want)
      self.assertEqual(pairs.cause.mean(), 0.5)
    used = [set(entity[np.r_[p.base, p.source]]) for p in (train, test)]
    self.assertEmpty(used[0] & used[1])
    self.assertLen(used[1], 18)

  def test_label_functions_say_what_is_wanted(self):
    *_, (entity, asked, label) = world()
    tokens = label + 10 * asked
    train, _ = attribute_pairs.draw_pairs(
      entity,
      asked,
      label,
      target=0,
      count=50,
      cause=lambda base, source: tokens[source],
      isolation=lambda base, source: tokens[base] + 100,
    )
    np.testing.assert_array_equal(
      train.wanted[~train.cause], tokens[train.base[~train.cause]] + 100
    )
    self.assertLess(train.wanted[train.cause].max(), 10)

  def test_attributes_without_other_answers_are_refused(self):
    *_, (entity, asked, label) = world()
    with self.assertRaisesRegex(errors.InputError, "must differ"):
      attribute_pairs.draw_pairs(entity, asked, 0 * label, target=0, count=9)
    sae, answer, x, _ = world()
    train, _ = attribute_pairs.draw_pairs(
      entity, asked, label, target=0, count=20
    )
    with self.assertRaisesRegex(errors.InputError, "batch=99"):
      attribute_mask.learn(sae, answer, x, train, context=asked, batch=99)


class ModelTest(absltest.TestCase):
  def test_a_language_model_answers_with_the_exchanged_row(self):
    # The activation of the last token, written in the base prompt.
    model = model_lib.load(golden.folder(self.create_tempdir(), "gpt2"))
    rng, site, at = np.random.default_rng(0), "layers.1.resid_post", -1
    ids = rng.integers(3, model.vocabulary, (24, 5)).astype(np.int32)
    mask = np.ones(ids.shape, bool)
    h = taps.read(model, ids, mask, [site])[site]
    sae = toy.sae(d=model.d, n=20, activation=activations.ReLU())

    @jax.jit
    def answer(x, ids):
      edit = lambda h: h.at[:, at].set(x)
      ones = jnp.ones(ids.shape, bool)
      return taps.write(model, ids, ones, {site: edit})[:, -1]

    asked = np.arange(24) % 2
    label = rng.integers(3, model.vocabulary, 24)
    train, test = attribute_pairs.draw_pairs(
      np.arange(24) // 2, asked, label, target=0, count=40, test=0.5
    )
    learnt = attribute_mask.learn(
      sae, answer, h[:, at], train, context=ids, batch=8, rate=1e-2
    )
    self.assertTrue(np.isfinite(learnt.loss).all())
    self.assertGreater(np.abs(learnt.a).max(), 0)
    found = attribute_mask.evaluate(
      sae,
      attribute_mask.largest_logit(answer),
      h[:, at],
      test,
      learnt.mask,
      context=ids,
    )
    self.assertBetween(found.disentanglement, 0, 1)
    clean = answer(h[:, at], jnp.asarray(ids))
    want = taps.read(model, ids, mask, ["final_norm"])["final_norm"][:, -1]
    np.testing.assert_allclose(clean, want @ model.head.T, atol=1e-4)


if __name__ == "__main__":
  absltest.main()
