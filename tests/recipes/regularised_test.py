"""Tests of saejax.recipes.regularised: the contract, limits, known truths."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from scipy import optimize

from saejax.errors import InputError
from saejax.recipes import batch_sparse, regularised, row_sparse
from saejax.sae import archetypal
from saejax.sae.context import as_batch
from saejax.training import fit, step
from saejax.training.members import Member
from saejax.training.recipe import Hyper
from tests import contract, family, limits, toy

D, N = contract.D, contract.N
DEAD = {"dead_after_tokens": 10_000}


@functools.cache
def points():
  """Centroids of planted rows."""
  x = jnp.concatenate([contract.rows(jnp.int32(i)) for i in range(16)])
  return archetypal.kmeans(jax.random.key(0), x, 2 * N)


CASES = {
  "ortsae": contract.Case(
    make=lambda: regularised.ortsae(D, N, 3, chunk=16, every=2, **DEAD),
    floor=0.84,  # measured 0.90
  ),
  "ra_sae": contract.Case(
    make=lambda: regularised.ra_sae(D, N, 3, points=points(), **DEAD),
    floor=0.86,  # measured 0.92
  ),
}


class ContractTest(parameterized.TestCase):
  @parameterized.parameters(*zip(CASES))
  def test_passes_the_contract(self, name):
    contract.check(self, CASES[name])


def train(recipe, steps):
  """The SAE after steps on planted rows."""
  one = step.make_step(recipe)
  hyper = Hyper(learning_rate=jnp.float32(1e-2))

  @jax.jit
  def run():
    state = step.init_state(recipe, jax.random.key(0))
    each = lambda i, state: one(state, hyper, contract.rows(i))[0]
    return jax.lax.fori_loop(0, steps, each, state)

  return run().sae


class OrtTest(parameterized.TestCase):
  def test_without_a_weight_it_is_batchtopk(self):
    got = regularised.ortsae(D, N, 3, gamma=0, **DEAD)
    want = batch_sparse.batchtopk(D, N, 3, **DEAD)
    limits.assert_alike(self, got, want, rtol=0)

  def test_with_a_members_coefficient_at_0_it_is_batchtopk(self):
    recipes = (
      regularised.ortsae(D, N, 3, every=1, **DEAD),
      batch_sparse.batchtopk(D, N, 3, **DEAD),
    )
    member = Member(seed=0, learning_rate=1e-2, coefficient=0.0)
    got, want = (
      fit.fit(r, contract.rows, steps=3, members=[member])[1][0]
      for r in recipes
    )
    self.assertIn("ortho", recipes[0].terms)
    toy.assert_trees_close(got, want, rtol=1e-6, atol=1e-7)

  def test_a_larger_weight_trades_error_for_angles_and_recall(self):
    recipe = regularised.ortsae(
      family.D,
      family.N,
      family.K,
      gamma=1.0,
      every=1,
      dead_after_tokens=10**9,
      aux_weight=0.0,
      schedule=family.schedule(),
    )
    gammas = (0.0, 0.25, 1.0)
    members = [
      Member(seed=seed, learning_rate=family.RATE, coefficient=gamma)
      for gamma in gammas
      for seed in (0, 1)
    ]
    # Measured: cosine 0.54, 0.18, 0.03; recall 0.46, 0.71, 0.83; EV 0.95,
    # 0.90, 0.87.
    got = np.asarray(
      [
        [m["cosine"], -m["recall"], m["ev"]]
        for m in family.train(recipe, members)
      ]
    ).reshape(3, 2, 3)
    self.assertTrue((np.diff(got.mean(axis=1), axis=0) < 0).all(), str(got))
    self.assertTrue((got[2] < got[0]).all(), str(got))

  @parameterized.parameters(("gamma", -0.1), ("chunk", 1), ("every", 0))
  def test_refuses(self, field, value):
    with self.assertRaises(InputError) as caught:
      regularised.ortsae(D, N, 3, **{field: value}, **DEAD)
    self.assertEqual(caught.exception.field, field)


class ArchetypalTest(parameterized.TestCase):
  @parameterized.parameters(0.0, 0.3)
  def test_rows_stay_near_the_hull(self, delta):
    recipe = regularised.ra_sae(
      D,
      N,
      3,
      points=points(),
      delta=delta,
      multiplier=False,
      aux_weight=0.0,
      **DEAD,
    )
    decoder = train(recipe, steps=20).decoder
    A = np.asarray(decoder.A)
    self.assertGreaterEqual(A.min(), 0)
    np.testing.assert_allclose(A.sum(axis=1), 1, rtol=1e-5)
    self.assertGreater(np.abs(A - np.eye(*A.shape)).max(), 0.1)
    norms = np.linalg.norm(decoder.relaxation, axis=1)
    self.assertLessEqual(norms.max(), delta + 1e-6)
    np.testing.assert_array_equal(decoder.points, points())
    np.testing.assert_array_equal(decoder.b, 0)
    np.testing.assert_array_equal(decoder.log_multiplier, 0)
    large = 100.0  # holds the weights to a sum of 1
    C = np.vstack([np.asarray(points()).T, np.full((1, 2 * N), large)])
    for row in np.asarray(decoder.rows()):
      far = optimize.nnls(C, np.append(row, large))[1]
      self.assertLess(far, delta + 1e-5)

  def test_two_seeds_agree_more_than_those_of_topk(self):
    centres = 3 * toy.dictionary(24, D)

    def draw(i):
      which, noise = jax.random.split(toy.key(5, i))
      rows = centres[jax.random.randint(which, (128,), 0, 24)]
      return rows + 0.3 * jax.random.normal(noise, rows.shape)

    x = jnp.concatenate([draw(i) for i in range(100, 116)])
    rows_of = lambda recipe, *seeds: [
      sae.W_dec
      for sae in fit.fit(
        recipe,
        draw,
        steps=300,
        members=[fit.member(seed) for seed in seeds],
        stacked=True,
        sample=x,
      )[0]
    ]
    topk = matched(*rows_of(row_sparse.topk(D, 24, 2, **DEAD), 0, 1))
    # Points of their own for each seed.
    ra = matched(
      *rows_of(regularised.ra_sae(D, 24, 2, points=48, **DEAD), 0, 1)
    )
    # Measured: 0.90 and 0.72.
    self.assertGreater(ra, topk)

  def test_centroids_are_each_members_own(self):
    recipe = regularised.ra_sae(D, N, 3, points=N, **DEAD)
    x = contract.rows(jnp.int32(0))
    found = [
      recipe.init(jax.random.key(seed), sample=as_batch(x)).decoder.points
      for seed in (0, 1)
    ]
    self.assertGreater(np.abs(found[0] - found[1]).max(), 0.1)
    for seed, C in enumerate(found):
      want = archetypal.kmeans(jax.random.key(seed), x, N)
      np.testing.assert_array_equal(C, want)

  def test_more_centroids_than_rows_are_refused(self):
    recipe = regularised.ra_sae(D, N, 3, points=N, **DEAD)
    few = as_batch(contract.rows(jnp.int32(0))[: N - 1])
    with self.assertRaisesRegex(InputError, f"points={N}.*{N - 1} rows"):
      recipe.init(jax.random.key(0), sample=few)

  @parameterized.parameters(
    ("k", {"k": N + 1}),
    ("points", {"points": N - 1}),
    ("points", {"points": np.zeros((2 * N, D + 1))}),
    ("points", {"points": np.zeros((N - 1, D))}),
    ("delta", {"delta": -1.0}),
  )
  def test_refuses(self, field, settings):
    settings = {"k": 3, "points": np.zeros((2 * N, D)), **settings}
    with self.assertRaises(InputError) as caught:
      regularised.ra_sae(D, N, **settings, **DEAD)
    self.assertEqual(caught.exception.field, field)


def matched(W, other) -> float:
  """The mean cosine of rows of two dictionaries, matched one to one."""
  cosines = np.asarray(toy.unit(W) @ toy.unit(other).T)
  return cosines[optimize.linear_sum_assignment(-cosines)].mean()


if __name__ == "__main__":
  absltest.main()
