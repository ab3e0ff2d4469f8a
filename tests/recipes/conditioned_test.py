"""Tests of saejax.recipes.conditioned: rows with timesteps or layers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax import errors
from saejax.data import synthetic
from saejax.recipes import conditioned, row_sparse
from saejax.sae import condition_preps as preps
from saejax.sae.context import Batch
from saejax.sae.prep import Affine, Identity
from saejax.training import fit
from tests import contract, toy

D, N, STEPS = contract.D, contract.N, 5
SCALE, SHIFT = synthetic.affines(jax.random.key(5), STEPS, D, ratio=10.0)


def timed(i):
  """The planted rows, each at a timestep with a scale and a shift."""
  key = toy.key(11, i)
  return Batch(**synthetic.conditioned(key, contract.rows(i), SCALE, SHIFT))


def tide(**settings):
  settings = {"timesteps": STEPS, "modulation": "table", **settings}
  return conditioned.tide(
    D, N, 3, dead_after_tokens=10_000, aux_weight=0, **settings
  )


def layergroup():
  return conditioned.layergroup(
    D,
    N,
    3,
    scale=tuple(2 * SCALE.tolist()),
    dead_after_tokens=10_000,
    aux_weight=0,
  )


CASES = {
  "tide": contract.Case(make=tide, draw=timed, floor=0.83),
  "layergroup": contract.Case(make=layergroup, draw=timed, floor=0.75),
}


class ContractTest(parameterized.TestCase):
  @parameterized.parameters(*zip(CASES))
  def test_passes_the_contract(self, name):
    contract.check(self, CASES[name])


@functools.cache
def trained(kind, draw=timed, steps=900):
  """An SAE of each kind, trained on rows of all timesteps."""
  recipe = tide()
  if kind == "plain":
    recipe = without_modulation(recipe)
  elif kind != "tide":
    recipe = tide(modulation=kind)
  saes, _, _ = fit.fit(
    recipe, draw, steps=steps, members=[fit.member(0, learning_rate=5e-3)]
  )
  return saes[0]


def without_modulation(recipe):
  """The plain SAE with the same loss."""

  def init(key, *, sample=None):
    sae = recipe.init(key, sample=sample)
    return sae.replace(prep=Identity())

  return dataclasses.replace(recipe, init=init)


def fvu_by_condition(sae, batch):
  """sum |x - x_hat|^2 / sum |x - mean|^2 of each timestep."""
  x, cond = np.asarray(batch.x), np.asarray(batch.cond)
  x_hat = np.asarray(toy.reconstruct(sae, batch))
  out = []
  for c in range(STEPS):
    own = cond == c
    spread = np.square(x[own] - x[own].mean(axis=0)).sum()
    out.append(np.square(x[own] - x_hat[own]).sum() / spread)
  return np.asarray(out)


class TideTest(parameterized.TestCase):
  def test_its_worst_timestep_is_better_than_that_of_a_plain_sae(self):
    # Enough rows for each timestep: 128 in all leave its error to chance.
    batches = [timed(jnp.asarray(10**6 + i)) for i in range(16)]
    batch = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *batches)
    kinds = ("plain", "tide", "standardise")
    worst = {k: fvu_by_condition(trained(k), batch).max() for k in kinds}
    self.assertLess(worst["tide"], 0.8 * worst["plain"])
    self.assertLess(worst["standardise"], 0.8 * worst["plain"])

  def test_standardising_stays_as_it_was_fitted(self):
    recipe = tide(modulation="standardise")
    sample = timed(jnp.asarray(0))
    start = recipe.init(jax.random.key(0), sample=sample).prep
    end = trained("standardise").prep
    toy.assert_trees_close(end, start, rtol=1e-5, atol=1e-6)
    plain = recipe.init(jax.random.key(0), sample=None).prep.modulation
    self.assertGreater(
      float(jnp.abs(end.modulation.beta - plain.beta).max()), 0.1
    )
    moved = trained("tide").prep.modulation.gamma
    self.assertGreater(float(jnp.abs(moved).max()), 0.1)

  def test_frozen_at_zero_it_is_the_plain_sae(self):
    recipe = tide()

    def init(key, *, sample=None):
      sae = recipe.init(key, sample=sample)
      return sae.replace(prep=sae.prep.replace(frozen=True))

    frozen = dataclasses.replace(recipe, init=init)
    ends = []
    for one in (frozen, without_modulation(recipe)):
      members = [fit.member(0, learning_rate=5e-3)]
      saes, _, _ = fit.fit(one, timed, steps=20, members=members)
      ends.append(saes[0].replace(prep=Identity()))
    toy.assert_trees_close(*ends, rtol=1e-5, atol=1e-6)

  @parameterized.parameters("learned", "table")
  def test_it_starts_as_the_plain_sae(self, modulation):
    recipe = tide(modulation=modulation)
    batch = timed(jnp.asarray(0))
    sae = recipe.init(jax.random.key(0), sample=batch)
    plain = row_sparse.topk(D, N, 3, dead_after_tokens=100)
    plain = plain.init(jax.random.key(0), sample=batch)
    np.testing.assert_array_equal(
      toy.reconstruct(sae, batch), plain.reconstruct(batch.x)
    )

  def test_the_network_learns_times_in_0_to_1(self):
    def draw(i):
      batch = timed(i)
      return batch.replace(cond=batch.cond / STEPS + 0.1)

    recipe = conditioned.tide(D, N, 3, dead_after_tokens=10_000)
    saes, states, metrics = fit.fit(
      recipe, draw, steps=150, members=[fit.member(0, learning_rate=3e-3)]
    )
    self.assertIsInstance(saes[0].prep.modulation, preps.Sinusoidal)
    self.assertEqual(states[0].stats["condition_rows"].shape, (50,))
    self.assertEqual(int((states[0].stats["condition_rows"] > 0).sum()), STEPS)
    self.assertLess(metrics["nmse"][-1, 0], 0.8 * metrics["nmse"][0, 0])
    self.assertGreater(float(jnp.abs(saes[0].prep.modulation.W_out).max()), 0)

  @parameterized.parameters("learned", "table")
  def test_whole_timesteps_are_not_taken_for_times(self, modulation):
    recipe = tide(timesteps=None, modulation=modulation)
    rows = lambda i: Batch(
      x=contract.rows(i), cond=jnp.arange(contract.ROWS, dtype=jnp.int32)
    )
    with self.assertRaisesRegex(errors.InputError, r"cond=int32.*\[0, 1\]"):
      fit.fit(recipe, rows, steps=1, members=[fit.member(0)])

  def test_refuses_what_cannot_be_conditioned(self):
    members = [fit.member(0)]
    with self.assertRaisesRegex(errors.InputError, "tide needs cond"):
      fit.fit(tide(), contract.rows, steps=1, members=members)
    with self.assertRaisesRegex(errors.InputError, "needs cond"):
      fit.fit(layergroup(), contract.rows, steps=1, members=members)
    for rule, settings in (
      ("one of learned, table", {"modulation": "affine"}),
      ("timesteps=0", {"timesteps": 0}),
      ("window_rows=0", {"window_rows": 0}),
    ):
      with self.assertRaisesRegex(errors.InputError, rule):
        tide(**settings)


class LayerGroupTest(absltest.TestCase):
  def test_a_group_of_one_layer_is_topk_behind_its_scale(self):
    one = conditioned.layergroup(
      D, N, 3, scale=(3.0,), dead_after_tokens=10**4, aux_weight=0
    )
    plain = row_sparse.topk(
      D,
      N,
      3,
      prep=Affine(centre=jnp.zeros(D), scale=jnp.float32(3)),
      dead_after_tokens=10**4,
      aux_weight=0,
    )
    zero = lambda i: Batch(
      x=contract.rows(i), cond=jnp.zeros(contract.ROWS, jnp.int32)
    )
    members = [fit.member(0)]
    ends = [
      fit.fit(recipe, draw, steps=20, members=members)[0][0]
      for recipe, draw in ((one, zero), (plain, contract.rows))
    ]
    toy.assert_trees_close(
      *(sae.replace(prep=Identity()) for sae in ends), rtol=1e-5, atol=1e-6
    )

  def test_refuses_a_prep_beside_its_own(self):
    with self.assertRaisesRegex(errors.InputError, "has its own prep"):
      conditioned.layergroup(
        D,
        N,
        3,
        scale=tuple(SCALE.tolist()),
        dead_after_tokens=100,
        prep=Identity(),
      )


if __name__ == "__main__":
  absltest.main()
