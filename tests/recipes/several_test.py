"""Tests of saejax.recipes.several: bagging, boosting, mutual features."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax import errors
from saejax.data import synthetic
from saejax.evals import recovery
from saejax.recipes import common, row_sparse, several
from saejax.sae import decoders, ensembles, prep
from saejax.training import fit
from saejax.training.parts import coupling
from tests import contract, toy

D, N = contract.D, contract.N


def base(**options):
  # Without AuxK, which doubles the time to compile.
  return row_sparse.topk(
    D, N, 2, dead_after_tokens=10_000, aux_weight=0, **options
  )


@functools.cache
def first_stage():
  """A quickly trained SAE."""
  sample = contract.rows(jnp.asarray(10**6))
  recipe = base(prep=ensembles.residual((), sample))
  return train(recipe)


def train(recipe, steps=200, seed=0):
  members = [fit.member(seed, learning_rate=5e-3)]
  saes, _, _ = fit.fit(recipe, contract.rows, steps=steps, members=members)
  return saes[0]


def second_stage():
  """The recipe of boosting behind the first stage."""
  return base(residual_of=first_stage())


def mutual(**settings):
  return several.mfr(
    D, N, 3, dead_after_tokens=10_000, **{"steps": 1000, **settings}
  )


CASES = {
  # The residual of a dictionary learner: what is left of each direction.
  "boosting": contract.Case(
    make=second_stage, floor=0.7, falls_to=0.75, steps=300
  ),
  "mfr": contract.Case(make=mutual, floor=0.89, stacked=True),
}


class ContractTest(parameterized.TestCase):
  @parameterized.parameters(*zip(CASES))
  def test_passes_the_contract(self, name):
    contract.check(self, CASES[name])


class BoostingTest(parameterized.TestCase):
  def test_each_stage_lowers_the_error_on_the_rows_of_its_scale(self):
    # 0.1 %: b_dec starts at the median, not the mean, of what is left.
    sample = contract.rows(jnp.asarray(10**6))
    error = lambda sae: float(jnp.mean((sample - sae.reconstruct(sample)) ** 2))
    one, two = first_stage(), train(second_stage())
    self.assertLess(error(two), 1.001 * error(one))
    self.assertLess(error(two), 0.7 * error(one))  # and in fact far below
    self.assertLen(ensembles.stages_of(two), 2)

  def test_an_untrained_stage_that_gives_its_bias_does_not_add_error(self):
    sample = contract.rows(jnp.asarray(10**6))
    sae = first_stage()
    behind = ensembles.residual(ensembles.stages_of(sae), sample)
    framed, _ = behind.apply(sample)
    silent = sae.replace(
      prep=behind,
      encoder=sae.encoder.replace(b=jnp.full((N,), -100.0)),
      decoder=sae.decoder.replace(b=framed.mean(axis=0)),
    )
    error = lambda sae: float(jnp.mean((sample - sae.reconstruct(sample)) ** 2))
    self.assertLess(error(silent), error(sae))

  def test_the_first_stage_is_the_base(self):
    sample = contract.rows(jnp.asarray(10**6))
    inner = ensembles.residual((), sample).inner
    one = train(base(prep=ensembles.residual((), sample)), steps=20)
    plain = train(base(prep=inner), steps=20)
    np.testing.assert_array_equal(one.W_enc, plain.W_enc)
    np.testing.assert_allclose(
      one.reconstruct(sample), plain.reconstruct(sample), atol=1e-6
    )

  def test_earlier_stages_stay_as_they_are(self):
    before = ensembles.stages_of(first_stage())
    after = train(second_stage(), steps=5)
    toy.assert_trees_equal(ensembles.stages_of(after)[:-1], before)

  def test_members_drawn_again_stay_behind_the_first_stage(self):
    recipe = mutual(residual_of=first_stage(), restart_above=0.01)
    members = [fit.member(seed, learning_rate=5e-3) for seed in (0, 1)]
    saes, states, _ = fit.fit(
      recipe, contract.rows, steps=3, members=members, stacked=True
    )
    self.assertGreater(int(states[0].stats[coupling.RESTARTS]), 0)
    rows = contract.rows(jnp.asarray(10**6))
    fitted = ensembles.residual((first_stage(),), rows)
    scale, wanted = (
      float(behind.split()[1].affine()[1]) for behind in (saes[0].prep, fitted)
    )
    self.assertNotEqual(scale, 1.0)
    self.assertAlmostEqual(scale / wanted, 1, delta=0.2)

  def test_refuses_what_is_no_stage_and_what_has_a_prep_of_its_own(self):
    first = first_stage()
    missing = self.create_tempdir().full_path
    for given, rule in (
      ({"residual_of": missing}, f"residual_of={missing}: .*a saved SAE"),
      ({"residual_of": toy.sae(d=8)}, "residual_of=8: .*width 16"),
      (
        {"residual_of": first, "prep": prep.Identity()},
        "residual_of=SAE: cannot stand beside prep",
      ),
      (
        {"residual_of": first, "target": common.Target(d=3)},
        "residual_of=SAE: cannot stand beside target",
      ),
      (
        {"residual_of": first.replace(target_prep=prep.Identity())},
        "residual_of=a transcoder",
      ),
    ):
      with self.assertRaisesRegex(errors.InputError, rule):
        base(**given)

  def test_refuses_stages_of_another_width(self):
    with self.assertRaisesRegex(errors.InputError, "width 16 of the rows"):
      ensembles.residual((toy.sae(d=8),), contract.rows(jnp.asarray(0)))


class BaggingTest(absltest.TestCase):
  def test_the_mean_of_members_is_one_sae_with_no_more_error(self):
    members = [fit.member(seed, learning_rate=5e-3) for seed in (0, 1, 2)]
    saes, _, _ = fit.fit(
      base(), contract.rows, steps=150, members=members, stacked=True
    )
    x = contract.rows(jnp.asarray(10**6))
    parts = jnp.stack([toy.reconstruct(sae, x) for sae in saes])
    flat = ensembles.flatten(saes)
    self.assertEqual(flat.n, 3 * N)
    np.testing.assert_allclose(
      toy.reconstruct(flat, x), parts.mean(0), atol=1e-5
    )
    each = jnp.mean((x - parts) ** 2, axis=(1, 2))
    self.assertLessEqual(
      float(jnp.mean((x - toy.reconstruct(flat, x)) ** 2)), float(each.mean())
    )


class MutualFeaturesTest(parameterized.TestCase):
  def members(self, *seeds):
    return [fit.member(seed, learning_rate=1e-3) for seed in seeds]

  def test_without_weight_members_are_as_if_alone(self):
    joint = mutual(coefficient=0.0)
    alone = dataclasses.replace(joint, coupling=None)
    together, _, _ = fit.fit(
      joint, contract.rows, steps=10, members=self.members(0, 1), stacked=True
    )
    apart, _, _ = fit.fit(
      alone, contract.rows, steps=10, members=self.members(0, 1), stacked=True
    )
    for one, two in zip(together, apart, strict=True):
      toy.assert_trees_close(one, two, rtol=1e-6, atol=1e-6)

  def test_similarity_of_members_rises_with_the_weight(self):
    # The paper's groups of features in small: d 32, 64 true, 4 groups, 4 on.
    truth = toy.dictionary(64, 32)

    def rows(step):
      key = toy.key(3, step)
      where, how = jax.random.split(key)
      on = synthetic.grouped(where, 128, 64, groups=4, active=4)
      return synthetic.coefficients(how, on, low=0, high=1) @ truth

    similar, found = [], []
    for weight in (0.0, 0.005):
      recipe = several.mfr(
        32, 64, 4, coefficient=weight, steps=1000, dead_after_tokens=10**6
      )
      saes, _, _ = fit.fit(
        recipe, rows, steps=300, members=self.members(0, 1), stacked=True
      )
      a, b = (decoders.unit_rows(sae.W_dec) for sae in saes)
      similar.append(float(coupling.similarity(a, b, "hungarian")))
      found.append(np.mean([recovery.mmcs(truth, s.W_dec) for s in saes]))
    # Over five pairs of seeds and 500 steps: 0.71 to 0.80, 0.845 to 0.858.
    self.assertGreater(similar[1], similar[0] + 0.03)
    self.assertGreater(found[1], found[0] - 0.02)

  def test_b_dec_stays_0_and_the_code_is_signed(self):
    saes, _, metrics = fit.fit(
      mutual(),
      contract.rows,
      steps=5,
      members=self.members(0, 1),
      stacked=True,
    )
    np.testing.assert_array_equal(saes[0].b_dec, 0)
    low = saes[0].encoder.replace(b=jnp.full((N,), -9.0))
    z = saes[0].replace(encoder=low).encode(contract.rows(jnp.asarray(3)))
    np.testing.assert_array_equal(jnp.sum(z < 0, axis=-1), 3)
    self.assertIn("coupling", metrics)

  def test_refuses_one_member_and_unknown_or_slow_matches(self):
    with self.assertRaisesRegex(errors.InputError, "needs at least 2"):
      fit.fit(
        mutual(), contract.rows, steps=1, members=self.members(0), stacked=True
      )
    with self.assertRaisesRegex(errors.InputError, "stacked"):
      fit.fit(mutual(), contract.rows, steps=1, members=self.members(0, 1))
    with self.assertRaisesRegex(errors.InputError, "one of max, hungarian"):
      mutual(match="greedy")
    with self.assertRaisesRegex(errors.InputError, "too many to assign"):
      several.mfr(8, 8192, 4, match="hungarian", dead_after_tokens=100)


if __name__ == "__main__":
  absltest.main()
