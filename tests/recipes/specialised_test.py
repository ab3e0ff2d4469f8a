"""Tests of saejax.recipes.specialised: finetuning for the worst rows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax import errors
from saejax.data import synthetic
from saejax.recipes import row_sparse, specialised
from saejax.sae import activations, initial
from saejax.sae.context import Batch
from saejax.sae.prep import Identity
from saejax.training import fit
from tests import contract, toy

D, N = contract.D, contract.N
RARE = 4  # the last directions: those of the rare rows


@functools.cache
def random_sae():
  """A general SAE that has learnt nothing yet."""
  return initial.init(
    jax.random.key(3), n=N, d=D, activation=activations.ReLU()
  )


def ssae(**settings):
  settings = {"t": 10.0, "coefficient": 0.3 / D, **settings}
  return specialised.ssae(
    D, N, init_from=random_sae(), dead_after_tokens=10_000, **settings
  )


CASES = {"ssae": contract.Case(make=ssae, floor=0.64)}


class ContractTest(parameterized.TestCase):
  @parameterized.parameters(*zip(CASES))
  def test_passes_the_contract(self, name):
    contract.check(self, CASES[name])


def mixture(i, rows=256, share=0.01):
  """99 % of rows have common features, 1 % rare ones; and which are rare."""
  keys = jax.random.split(toy.key(17, i), 4)
  often = synthetic.bernoulli(keys[0], rows, jnp.full((N - RARE,), 2 / N))
  rare = jnp.ones((rows, RARE), bool)
  on, is_rare = synthetic.sometimes(keys[1], often, rare, share)
  x = synthetic.coefficients(keys[2], on) @ contract.TRUTH
  return x, is_rare


def draw(i):
  return mixture(i)[0]


class SpecialisedTest(parameterized.TestCase):
  def test_the_worst_rows_get_better_and_the_mean_worse(self):
    # Eight latents for 28 common features: there is no room for all.
    general = row_sparse.topk(D, 8, 2, dead_after_tokens=10**6, aux_weight=0)
    members = [fit.member(0, learning_rate=5e-3)]
    start = fit.fit(general, draw, steps=300, members=members)[0][0]
    x, rare = mixture(jnp.asarray(10**6), rows=4096)
    mean, worst, of_rare = {}, {}, {}
    for t in (0.0, 20.0):
      recipe = specialised.ssae(
        D, 8, init_from=start, t=t, dead_after_tokens=10**6
      )
      sae = fit.fit(recipe, draw, steps=300, members=members)[0][0]
      error = np.asarray(jnp.sum((x - toy.reconstruct(sae, x)) ** 2, axis=-1))
      mean[t], worst[t] = error.mean(), error.max()
      of_rare[t] = error[np.asarray(rare)].mean()
    self.assertLess(worst[20.0], worst[0.0])
    self.assertLess(of_rare[20.0], of_rare[0.0])
    self.assertGreater(mean[20.0], mean[0.0])

  def test_it_starts_from_the_general_sae_and_keeps_its_prep(self):
    general = toy.sae(d=D, n=N, prep_=toy.affine(D), dtype="bfloat16")
    recipe = specialised.ssae(D, N, init_from=general, dead_after_tokens=100)
    for seed in (0, 1):
      toy.assert_trees_equal(
        recipe.init(jax.random.key(seed), sample=None), general
      )
    self.assertEqual(list(recipe.terms), ["mse"])
    self.assertEqual(recipe.reduce.t, 500)

  def test_without_tilt_it_is_plain_finetuning(self):
    batch = Batch(x=contract.rows(jnp.asarray(0)))
    recipe = ssae(t=0.0)
    sae = random_sae()
    record = contract.record(recipe, sae, batch)
    rows = sum(t.weight * t.fn(record) for t in recipe.terms.values())
    x_hat, z = sae.reconstruct(batch.x), sae.encode(batch.x)
    want = jnp.mean((batch.x - x_hat) ** 2) + 0.3 / D * jnp.mean(
      jnp.sum(z, axis=-1)
    )
    np.testing.assert_allclose(recipe.reduce(rows, None), want, rtol=1e-5)

  def test_refuses_tilts_that_are_not_finite_and_another_prep(self):
    with self.assertRaisesRegex(errors.InputError, "t=nan: must be finite"):
      ssae(t=float("nan"))
    with self.assertRaisesRegex(errors.InputError, "has its own prep"):
      ssae(prep=Identity())


if __name__ == "__main__":
  absltest.main()
