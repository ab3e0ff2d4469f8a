"""saejax/evals/spelling/absorbed_projection.py: closed forms, and a toy that absorbs."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from saejax.errors import InputError
from saejax.evals.spelling import absorbed_projection, letter_probes
from tests.evals import spelling_world

P, CHILD = np.eye(4)[0], np.eye(4)[1]
FEATURES, PARENT, CHILDREN = 8, 0.25, 0.2  # a child is on at 0.05 of all rows


def one(x, z, directions, main=(0,)):
  found = absorbed_projection.projected(
    np.asarray(x)[None],
    np.asarray(z, float)[None],
    np.asarray(directions),
    3 * P,  # of any norm
    np.asarray(main),
  )
  return bool(found.full[0]), float(found.fraction[0])


class ProjectedTest(parameterized.TestCase):
  def test_a_child_that_holds_its_parent_absorbs_it(self):
    joint = (P + CHILD) / np.sqrt(2)
    self.assertEqual(one(P + CHILD, [0, np.sqrt(2)], [P, joint]), (True, 1.0))
    self.assertEqual(one(P + CHILD, [1, 1], [P, CHILD]), (False, 0.0))

  @parameterized.parameters((0, 1.0), (0.25, 0.75), (0.5, 0.5), (0.7, 0.0))
  def test_the_fraction_is_1_minus_lambda_and_jumps(self, lam, want):
    # x has 1 along the probe; the main latent carries lambda of it.
    z = [lam, (1 - lam) * np.sqrt(2)]
    directions = [P, (P + CHILD) / np.sqrt(2)]
    full, fraction = one(P + (1 - lam) * CHILD, z, directions)
    self.assertAlmostEqual(fraction, want)
    self.assertEqual(full, lam == 0)

  def test_norms_of_rows_do_not_matter(self):
    joint = (P + CHILD) / np.sqrt(2)
    scaled = one(P + CHILD, [0.1, np.sqrt(2) / 5], [3 * P, 5 * joint])
    plain = one(P + CHILD, [0.3, np.sqrt(2)], [P, joint])
    self.assertEqual(scaled[0], plain[0])
    self.assertAlmostEqual(scaled[1], plain[1])

  def test_thresholds_of_full_absorption(self):
    slant = lambda c: c * P + np.sqrt(1 - c**2) * CHILD
    x = P + 5 * CHILD
    self.assertTrue(one(x, [0, 100], [P, slant(0.026)])[0])
    self.assertFalse(one(x, [0, 100], [P, slant(0.024)])[0])
    self.assertTrue(one(P, [0, 0.41], [P, P])[0])
    self.assertFalse(one(P, [0, 0.39], [P, P])[0])
    self.assertFalse(one(P, [1e-7, 1], [P, P])[0])
    self.assertEqual(one(-P, [0, 1], [P, P]), (False, 0.0))

  def test_absorbers_are_the_three_largest_with_a_cosine_of_a_tenth(self):
    slant = lambda c: c * P + np.sqrt(1 - c**2) * CHILD
    x = P + CHILD
    _, fraction = one(x, [0.5, 5], [P, slant(0.11)])
    self.assertAlmostEqual(fraction, 0.5)  # a = p - main
    self.assertEqual(one(x, [0.5, 6], [P, slant(0.09)])[1], 0)
    four = [P, P, P, P, P]
    _, fraction = one(x, [0.5, 0.15, 0.15, 0.15, 0.15], four)
    self.assertAlmostEqual(fraction, 0.45 / 0.95)
    self.assertEqual(one(x, [0.5, 0.13, 0.13, 0.13, 0.13], four)[1], 0)
    self.assertEqual(one(x, [1.0, 1], [P, P])[1], 0)  # main carries all of p


class AbsorptionTest(absltest.TestCase):
  def found(self, absorbs, **settings):
    w = spelling_world.world(absorbs, noise=0.02)
    fitted = letter_probes.fit(w.x, w.z, w.letter, w.train)
    return w, absorbed_projection.absorption(
      fitted, w.x, w.z, w.directions, **{"least_letters": 4} | settings
    )

  def test_a_planted_absorbed_group_is_the_rate(self):
    w, found = self.found(True)
    for letter in found.letters:
      own = (w.letter == letter.letter) & ~w.train
      share = w.absorbed[own].mean()
      self.assertEqual(letter.words, own.sum())
      self.assertAlmostEqual(letter.full, share)
      self.assertAlmostEqual(letter.fraction, share)
      self.assertGreater(letter.full, 0.1)
      self.assertEqual(letter.main, (letter.letter,))
    record = found.record()
    self.assertAlmostEqual(
      record["mean_full_absorption_score"],
      np.mean([letter.full for letter in found.letters]),
    )

  def test_latents_that_are_the_features_absorb_nothing(self):
    _, found = self.found(False)
    record = found.record()
    self.assertEqual(record["mean_full_absorption_score"], 0)
    self.assertLess(record["mean_absorption_fraction_score"], 0.02)
    self.assertEqual(record["mean_num_split_features"], 1)
    self.assertEqual(record["mean_sparse_f1"], 1)

  def test_letters_without_a_probe_are_left_out_of_the_means(self):
    _, found = self.found(True)
    bad = dataclasses.replace(found.letters[0], f1=0.6, full=1.0)
    mixed = dataclasses.replace(found, letters=(bad, *found.letters[1:]))
    self.assertLen(mixed.usable, 3)
    self.assertAlmostEqual(
      mixed.record()["mean_full_absorption_score"],
      np.mean([letter.full for letter in found.letters[1:]]),
    )
    self.assertLen(mixed.record()["details"], 4)

  def test_too_few_letters_are_no_result(self):
    with self.assertRaisesRegex(InputError, "^letters=4: must be at least 20"):
      self.found(True, least_letters=20)
    w = spelling_world.world(True)
    fitted = letter_probes.fit(w.x, w.z, w.letter, w.train)
    with self.assertRaisesRegex(InputError, "^directions=3"):
      absorbed_projection.absorption(fitted, w.x, w.z, w.directions[:3])


# --- a toy SAE ---------------------------------------------------------------


def rows(key, count, tree):
  """Orthogonal features: a parent, a child, and independent ones."""
  p = jnp.full((FEATURES,), 0.1)
  child = jnp.where(tree, CHILDREN, 0.05)
  p = p.at[:2].set(jnp.stack([jnp.asarray(PARENT), child]))
  on = jax.random.bernoulli(key, p, (count, FEATURES))
  on = on.at[:, 1].set(on[:, 1] & (on[:, 0] | ~tree))
  return on.astype(jnp.float32)


def latents(params, x):
  return jax.nn.relu((x - params["b_dec"]) @ params["enc"].T + params["b"])


@functools.partial(jax.jit, static_argnames="steps")
def train(key, tree, *, steps=3000, l1=0.08):
  """An SAE with an L1 penalty and unit decoder rows."""
  first, key = jax.random.split(key)
  W = jax.random.normal(first, (FEATURES, FEATURES))
  W = W / jnp.linalg.norm(W, axis=-1, keepdims=True)
  zeros = jnp.zeros((FEATURES,))
  params = {"enc": W, "dec": W, "b": zeros, "b_dec": zeros}
  adam = optax.adam(optax.linear_schedule(0.01, 0.0, steps))

  def loss(params, x):
    W = params["dec"]
    W = W / jnp.linalg.norm(W, axis=-1, keepdims=True)
    z = latents(params, x)
    error = jnp.square(x - z @ W - params["b_dec"]).sum(axis=-1)
    return jnp.mean(error + l1 * z.sum(axis=-1))

  def step(carry, i):
    params, state = carry
    x = rows(jax.random.fold_in(key, i), 256, tree)
    updates, state = adam.update(jax.grad(loss)(params, x), state)
    return (optax.apply_updates(params, updates), state), None

  (params, _), _ = jax.lax.scan(
    step, (params, adam.init(params)), jnp.arange(steps)
  )
  return params


class ToyTest(absltest.TestCase):
  def measured(self, tree):
    with jax.numpy_dtype_promotion("standard"):  # optax needs it
      params = train(jax.random.key(0), jnp.asarray(tree))
    W = np.asarray(params["dec"])
    W = W / np.linalg.norm(W, axis=-1, keepdims=True)
    x = np.asarray(rows(jax.random.key(9), 20_000, jnp.asarray(tree)))
    z = np.asarray(latents(params, x))
    fires = z > 0.05
    both, alone = (x[:, 0] > 0) & (x[:, 1] > 0), (x[:, 0] > 0) & (x[:, 1] == 0)
    off = x[:, 0] == 0
    parent = (fires[alone].mean(axis=0) - fires[off].mean(axis=0)).argmax()
    child = np.argmax(np.where(np.arange(FEATURES) == parent, -1, W[:, 1]))
    return W[child, 0], fires[both, parent].mean(), W[child, 1]

  def test_a_sparse_sae_absorbs_a_parent_and_not_an_independent_feature(self):
    cosine, recall, own = self.measured(tree=True)
    self.assertGreater(own, 0.5)
    self.assertAlmostEqual(cosine, np.sqrt(0.5), delta=0.1)
    self.assertLess(recall, 0.5)
    cosine, recall, own = self.measured(tree=False)
    self.assertGreater(own, 0.9)
    self.assertLess(abs(cosine), 0.1)
    self.assertGreater(recall, 0.95)


if __name__ == "__main__":
  absltest.main()
