"""saejax/evals/control/supervised_codes.py, latent_edits.py and indirect_objects.py."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from saejax import errors
from saejax.evals.control import (
  indirect_objects,
  latent_edits,
  supervised_codes,
)
from saejax.sae import activations, initial
from tests import toy

VALUES = {"io": 4, "s": 4, "order": 2}
D = 12


def world(seed=0):
  """Every combination once, x = mean + sum u[value]; and the codes."""
  rng = np.random.default_rng(seed)
  u = {k: rng.standard_normal((count, D)) for k, count in VALUES.items()}
  grid = np.array(list(itertools.product(*map(range, VALUES.values())))).T
  labels = dict(zip(VALUES, grid, strict=True))
  mean = 3 * rng.standard_normal(D)
  return mean + sum(u[k][labels[k]] for k in u), labels, u


def trained_latents(x):
  """Latents of a TopK SAE of 8 latents that is trained on the rows."""
  optimizer = optax.adam(1e-2)
  sae = initial.init(
    jax.random.key(0), d=20, n=8, activation=activations.TopK(2), sample=x
  )
  loss = lambda sae: jnp.mean((sae.reconstruct(x) - x) ** 2)

  def step(carry: Any, _) -> Any:
    sae, state = carry
    with jax.numpy_dtype_promotion("standard"):
      updates, state = optimizer.update(jax.grad(loss)(sae), state)
    return (optax.apply_updates(sae, updates), state), None

  start = (sae, optimizer.init(sae))
  (sae, _), _ = jax.lax.scan(step, start, length=200)
  return sae.encode(x)


class CodesTest(parameterized.TestCase):
  def test_codes_of_least_error_reproduce_a_balanced_design(self):
    # principled-evals, check 1.
    x, labels, u = world()
    mse = supervised_codes.mse_codes(x, labels, VALUES)
    np.testing.assert_allclose(mse.reconstruct(labels), x, atol=1e-6)
    mean = supervised_codes.mean_codes(x, labels, VALUES)
    for name in VALUES:
      np.testing.assert_allclose(mse.codes[name], mean.codes[name], atol=1e-6)
    for codes in (mse, mean):
      old, new = labels["io"], (labels["io"] + 1) % 4
      want = x - u["io"][old] + u["io"][new]
      np.testing.assert_allclose(codes.edit(x, "io", old, new), want, atol=1e-6)

  def test_codes_differ_where_attributes_are_correlated(self):
    # principled-evals, check 1: the converse.
    x, labels, _ = world()
    kept = (labels["io"] < 2) == (labels["order"] == 0)
    kept |= np.arange(len(x)) % 3 == 0
    x, labels = x[kept], {k: v[kept] for k, v in labels.items()}
    mse = supervised_codes.mse_codes(x, labels, VALUES)
    np.testing.assert_allclose(mse.reconstruct(labels), x, atol=1e-6)
    mean = supervised_codes.mean_codes(x, labels, VALUES)
    apart = np.abs(mse.codes["order"] - mean.codes["order"]).max()
    self.assertGreater(apart, 0.1)

  def test_an_ablated_attribute_is_not_in_the_span_of_its_codes(self):
    x, labels, _ = world()
    codes = supervised_codes.mean_codes(x, labels, VALUES)
    left = codes.ablate(x, "order")
    np.testing.assert_allclose(
      (left - codes.mean) @ codes.codes["order"].T, 0, atol=1e-9
    )
    left = codes.ablate(x, "order", to="zero")
    np.testing.assert_allclose(left @ codes.codes["order"].T, 0, atol=1e-9)

  def test_labels_outside_the_values_are_refused(self):
    x, labels, _ = world()
    with self.assertRaisesRegex(errors.InputError, r"labels.s=.*\[0, 3\)"):
      supervised_codes.mean_codes(x, labels, VALUES | {"s": 3})


class ApproximationTest(absltest.TestCase):
  def test_a_perfect_reconstruction_is_sufficient_and_the_mean_is_not(self):
    # principled-evals, check 3.
    x, _, _ = world()
    mean, w = x.mean(axis=0), np.random.default_rng(1).standard_normal(D)
    effect = lambda x: np.tanh(x @ w) + (x @ w) ** 2
    measure = lambda x_hat: supervised_codes.approximation(
      effect, x, x_hat, mean
    )
    found = measure(x)
    self.assertEqual((found.sufficiency, found.necessity), (1, 1))
    self.assertAlmostEqual(found.remaining, 0)
    found = measure(np.broadcast_to(mean, x.shape))
    self.assertEqual(found.sufficiency, 0)
    self.assertAlmostEqual(found.necessity, 0)
    self.assertAlmostEqual(found.remaining, 1)
    half = supervised_codes.approximation(
      lambda x: x @ w + 1, x + 2, mean + (x + 2 - mean) / 4, mean
    )
    self.assertAlmostEqual(half.sufficiency, 0.25)
    self.assertAlmostEqual(half.necessity, 0.25)
    self.assertAlmostEqual(half.remaining, 0.75)
    flat = supervised_codes.approximation(lambda x: 0 * x[:, 0], x, x, mean)
    self.assertTrue(np.isnan(flat.sufficiency))


class PatternsTest(absltest.TestCase):
  def test_counts_give_precision_recall_and_f1(self):
    z = np.array([[1, 0, 0], [2, 1, 0], [0, 1, 0], [0, 0, 0]], float)
    label = np.array([0, 0, 1, 2])
    found = supervised_codes.patterns(z, label, 3)
    np.testing.assert_allclose(found.precision[1], [0.5, 0.5, 0])
    np.testing.assert_allclose(found.recall[1], [0.5, 1, 0])
    np.testing.assert_allclose(found.f1[1], [0.5, 2 / 3, 0])
    self.assertTrue((found.f1[2] == -np.inf).all())  # silent: last
    np.testing.assert_allclose(found.best_latent, [1, 2 / 3, 0])
    parts = supervised_codes.patterns(
      z[:2], label[:2], 3
    ) + supervised_codes.patterns(z[2:], label[2:], 3)
    np.testing.assert_array_equal(parts.both, found.both)
    np.testing.assert_array_equal(parts.f1, found.f1)

  def test_unions_are_those_of_the_values_of_largest_f1(self):
    rng = np.random.default_rng(0)
    label = rng.integers(12, size=400)
    on = (label < 3) ^ (rng.random(400) < 0.05)
    z = np.stack([on, rng.random(400) < 0.3], axis=1).astype(float)
    found = supervised_codes.patterns(z, label, 12)
    self.assertEqual(found.unions().shape, (2, 10))
    for i in range(2):
      order = np.argsort(-found.f1[i], kind="stable")
      for size in (1, 3, 10):
        rule = np.isin(label, order[:size])
        both = (rule & (z[:, i] > 0)).sum()
        want = 2 * both / (rule.sum() + (z[:, i] > 0).sum())
        self.assertAlmostEqual(found.unions()[i, size - 1], want)
    self.assertEqual(found.unions()[0].argmax(), 2)

  def test_a_weaker_concept_is_occluded(self):
    # principled-evals, check 4: 8 latents for 8 values of A and 8 of B.
    rng = np.random.default_rng(0)
    q = np.linalg.qr(rng.standard_normal((20, 20)))[0]
    a, b = rng.integers(8, size=(2, 512))

    scales = np.array([1.0, 0.2])[:, None, None]
    x = jnp.asarray(q[a] + scales * q[8 + b], jnp.float32)
    z = jax.jit(jax.vmap(trained_latents))(x)
    found = [
      {
        "a": supervised_codes.patterns(own, a, 8),
        "b": supervised_codes.patterns(own, b, 8),
      }
      for own in np.asarray(z)
    ]
    means = [float(one["b"].best_latent.mean()) for one in found]
    self.assertGreater(means[0] - means[1], 0.15, means)
    weak = supervised_codes.occluded(found[1])
    self.assertTrue(weak["b"].all())
    self.assertLess(weak["a"].mean(), 0.5)


class EditsTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(0)
    self.W = np.linalg.qr(rng.standard_normal((20, 20)))[0][:10]
    self.old, self.new, self.other = rng.integers(4, size=(3, 30))
    self.new = (self.old + 1 + self.new % 3) % 4
    self.z, self.z_new = (self.code(v) for v in (self.old, self.new))
    error = 0.1 * rng.standard_normal((30, 20))
    self.x, self.x_new = (z @ self.W + error for z in (self.z, self.z_new))

  def code(self, value):
    z = np.zeros((30, 10))
    z[np.arange(30), value] = 1.5
    z[np.arange(30), 4 + self.other] = 1
    return z

  def test_weights_of_latents_sum_to_1(self):
    # principled-evals, check 2.
    rng = np.random.default_rng(1)
    W = rng.standard_normal((40, 8))
    z = rng.standard_normal((50, 40)) * (rng.random((50, 40)) < 0.2)
    z[:, 0] += 0.1
    found = latent_edits.latent_weights(z, W)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-9)
    np.testing.assert_array_equal(found[z == 0], 0)
    sae = toy.sae(n=24, d=8)
    x = toy.rows(30, 8)
    found = latent_edits.latent_weights(toy.encode(sae, x), sae.W_dec)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(latent_edits.latent_weights(0 * z, W), 0)

  def test_latents_of_the_values_make_the_counterfactual(self):
    f1 = supervised_codes.patterns(
      np.concatenate([self.z, self.z_new]),
      np.concatenate([self.old, self.new]),
      4,
    ).f1
    found = latent_edits.by_f1(
      self.x, self.z, self.z_new, self.W, f1=f1, old=self.old, new=self.new, k=1
    )
    np.testing.assert_allclose(found.x, self.x_new, atol=1e-12)
    share = 1.5**2 / (1.5**2 + 1)
    np.testing.assert_allclose(found.magnitude, share)
    self.assertEqual(found.removed.sum(axis=1).max(), 1)
    silent = np.full_like(f1, -np.inf)
    none = latent_edits.by_f1(
      self.x, self.z, self.z_new, self.W,
      f1=silent, old=self.old, new=self.new, k=3,
    )  # fmt: skip
    np.testing.assert_array_equal(none.x, self.x)

  def test_greedy_edits_come_nearer_and_use_k_latents_at_most(self):
    edit = lambda k: latent_edits.greedy(
      self.x, self.x_new, self.z, self.z_new, self.W, k=k
    )
    away = [np.linalg.norm(edit(k).x - self.x_new, axis=1) for k in range(4)]
    np.testing.assert_allclose(away[0], 1.5 * 2**0.5)
    np.testing.assert_allclose(away[1], 1.5)
    np.testing.assert_allclose(away[2], 0, atol=1e-12)
    np.testing.assert_allclose(away[3], 0, atol=1e-12)
    self.assertEqual(edit(3).added.sum(axis=1).max(), 2)  # no other is nearer

  def test_each_greedy_choice_is_the_best_one(self):
    rng = np.random.default_rng(2)
    W = rng.standard_normal((12, 5))
    z, z_new = np.abs(rng.standard_normal((2, 20, 12)))
    x, x_new = rng.standard_normal((2, 20, 5))
    found = latent_edits.greedy(x, x_new, z, z_new, W, k=1)
    moved = x[:, None] + (z_new - z)[..., None] * W
    away = np.linalg.norm(moved - x_new[:, None], axis=-1)
    whole = np.linalg.norm(x_new - x, axis=1)
    np.testing.assert_allclose(
      np.linalg.norm(found.x - x_new, axis=1),
      np.minimum(away.min(axis=1), whole),
    )
    with self.assertRaisesRegex(errors.InputError, "k=-1"):
      latent_edits.greedy(x, x_new, z, z_new, W, k=-1)


class PromptsTest(absltest.TestCase):
  NAMES = ("Ann", "Bea", "Cem", "Dov", "Eva")

  def test_texts_name_both_and_end_before_the_answer(self):
    prompts = indirect_objects.prompts(self.NAMES, 60, seed=0)
    for text, answer, wrong, order in zip(
      prompts.texts, prompts.answers, prompts.wrong, prompts.order, strict=True
    ):
      self.assertTrue(text.endswith(" to"), text)
      self.assertEqual(text.count(answer), 1, text)
      self.assertEqual(text.count(wrong), 2, text)
      first = text.index(answer) < text.index(wrong)
      self.assertEqual(first, order == 0, text)
    self.assertEqual(prompts.values(), {"io": 5, "s": 5, "order": 2})
    coupled = prompts.labels(coupled=True)
    np.testing.assert_array_equal(coupled["io"] % 2, prompts.order)
    self.assertLess(coupled["s"].max(), prompts.values(coupled=True)["s"])

  def test_counterfactuals_differ_in_one_attribute(self):
    base = indirect_objects.prompts(self.NAMES, 200, seed=0)
    for name in indirect_objects.ATTRIBUTES:
      other = indirect_objects.counterfactual(base, name, seed=1)
      for key in ("io", "s", "order", "frame"):
        same = (getattr(base, key) == getattr(other, key)).all()
        self.assertEqual(same, key != name)
      if name != "order":
        new = getattr(other, name)
        self.assertFalse(((new == base.io) | (new == base.s)).any())
        self.assertLen(set(new.tolist()), 5)
    own = indirect_objects.counterfactual(base, "io", seed=0)
    for old in range(5):  # its draws are not those of the prompts
      self.assertLen(set(own.io[base.io == old].tolist()), 4)
    with self.assertRaisesRegex(errors.InputError, "attribute"):
      indirect_objects.counterfactual(base, "verb", seed=0)
    with self.assertRaisesRegex(errors.InputError, "names"):
      indirect_objects.prompts(("Ann", "Ann", "Bea"), 2, seed=0)


if __name__ == "__main__":
  absltest.main()
