"""Tests of saejax.evals.biology.completeness: SAEs on cells whose variables are known."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from saejax.data import regulation
from saejax.errors import InputError
from saejax.evals import recovery
from saejax.evals.biology import completeness
from saejax.recipes import row_sparse
from saejax.training import fit

REGULATORS, CELLS, N, STEPS = 24, 4000, 48, 400


def world():
  """Cells of many types, with few regulators each."""
  sizes = {"regulators": REGULATORS, "genes": 200, "types": 200, "has": 0.1}
  cells = regulation.cells(jax.random.key(0), **sizes)
  found = regulation.large(jax.random.key(1), CELLS, cells)
  return {name: np.asarray(value) for name, value in found.items()}


def latents(x, *others):
  """Latents of an SAE that is trained on rows of unit scale, of these and others."""
  mean, scale = x.mean(axis=0), x.std()
  others = [(y - mean) / scale for y in (x, *others)]
  x = jnp.asarray(others[0])

  def draw(i):
    rows = jax.random.randint(
      jax.random.fold_in(jax.random.key(3), i), (256,), 0, CELLS
    )
    return x[rows]

  recipe = row_sparse.relu_l1(
    x.shape[1], N, coefficient=0.3, dead_after_tokens=100_000
  )
  members = [fit.member(0, learning_rate=1e-2)]
  (sae,), _, _ = fit.fit(recipe, draw, steps=STEPS, members=members)
  return [np.asarray(sae.encode(y)) for y in others]


class TrainedTest(absltest.TestCase):
  def test_an_sae_on_the_true_variables_finds_most_of_them(self):
    truth = world()["x2"]
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(truth.shape, np.float32) * truth.std(axis=0)
    z, of_noise = latents(truth, noise)
    found = completeness.compared(z, truth, truth)
    self.assertGreater(found.found.share, 0.9)
    self.assertLess(found.random.share, 0.1)
    self.assertGreater(found.found.mean, found.random.mean + 0.2)
    control = completeness.recovered(of_noise, truth)
    self.assertEqual(control.share, 0)
    self.assertLess(control.mean, 0.2)

  def test_more_complete_representations_recover_more(self):
    # PCA is the best linear autoencoder.
    cells = world()
    x = cells["x"] - cells["x"].mean(axis=0)
    means = []
    for width in (4, REGULATORS):
      reduced = x @ recovery.principal_directions(x, width).T
      found = completeness.recovered(*latents(reduced), cells["x2"])
      means.append(found.mean)
    self.assertLess(means[0] + 0.1, means[1])


class RecoveredTest(absltest.TestCase):
  def test_it_is_the_best_correlation_over_active_latents(self):
    rng = np.random.default_rng(0)
    truth = rng.standard_normal((500, 3))
    truth[:, 2] = 1.5
    z = np.maximum(rng.standard_normal((500, 6)), 0)
    z[:, 1] = 5 - truth[:, 0]  # r = -1
    z[:, 4] = 0  # dead
    z[:, 5] = 0.9 * z[:, 3]  # repeats
    found = completeness.recovered(z, truth)
    live = [0, 1, 2, 3, 5]
    r = np.abs(np.corrcoef(z[:, live].T, truth[:, :2].T)[:5, 5:])
    np.testing.assert_allclose(found.best[:2], r.max(axis=0))
    self.assertTrue(np.isnan(found.best[2]))
    np.testing.assert_array_equal(found.latent, [1, live[r[:, 1].argmax()], -1])
    np.testing.assert_array_equal(found.above, [1, 0, 0])
    self.assertEqual((found.active, found.redundant), (5, 1))
    self.assertEqual(found.share, 0.5)

  def test_no_latent_is_redundant_with_itself(self):
    z = np.abs(np.random.default_rng(0).standard_normal((200, 30)))
    self.assertEqual(completeness.recovered(z, z).redundant, 0)
    twice = np.concatenate([z, 2 * z[:, :7]], axis=1)
    with absltest.mock.patch.object(completeness, "_ROWS", 4):
      found = completeness.recovered(twice, z)
    self.assertEqual((found.redundant, found.active), (7, 37))
    np.testing.assert_array_equal(found.above, [2] * 7 + [1] * 23)

  def test_the_best_of_many_random_latents_is_large(self):
    rng = np.random.default_rng(0)
    truth = rng.standard_normal((40, 5))
    few, many = (
      completeness.compared(np.zeros((40, n)), truth, truth).random.mean
      for n in (5, 2000)
    )
    self.assertGreater(many, few + 0.1)

  def test_without_active_latents_nothing_is_recovered(self):
    found = completeness.recovered(np.zeros((9, 4)), np.eye(9)[:, :2])
    np.testing.assert_array_equal(found.best, 0)
    np.testing.assert_array_equal(found.latent, -1)
    self.assertEqual((found.active, found.share), (0, 0))

  def test_refuses_other_rows(self):
    with self.assertRaisesRegex(InputError, "^truth=4: .*5 rows"):
      completeness.recovered(np.ones((5, 2)), np.ones((4, 1)))


if __name__ == "__main__":
  absltest.main()
