"""Tests of saejax.recipes.stochastic: the contract, limits, known truths."""

import operator
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax import errors
from saejax.recipes import common, row_sparse, stochastic
from saejax.sae import activations, encoders, initial, masking
from saejax.training import fit, sharding
from saejax.training.members import Group, Member
from saejax.training.parts import importance, losses
from saejax.training.parts import kl as variational
from saejax.training.recipe import Term
from tests import contract, toy

D, N = contract.D, contract.N
CASES = {
  "vsae": contract.Case(
    make=lambda: stochastic.vsae(
      D,
      N,
      3,
      coefficient=0.01,
      kl_warmup=0.1,
      steps=600,
      posterior="learned",
      dead_after_tokens=10_000,
    ),
    floor=0.86,
    # Users hold the mean; in training a sample around it, which cost 0.10.
    tolerance=0.15,
  ),
  "topk_l2": contract.Case(
    make=lambda: stochastic.topk_l2(D, N, 3, dead_after_tokens=10_000),
    floor=0.9,
  ),
  "atm": contract.Case(
    make=lambda: stochastic.atm(
      D, N, coefficient=0.3, steps=600, mask_start=0.5, dead_after_tokens=10_000
    ),
    floor=0.8,
    tolerance=0.05,  # in training some latents are masked
  ),
}


class ContractTest(parameterized.TestCase):
  @parameterized.parameters(*zip(CASES))
  def test_passes_the_contract(self, name):
    contract.check(self, CASES[name])


def draw(i):
  return toy.planted(toy.key(3, i), 128, contract.TRUTH)


class VSAETest(parameterized.TestCase):
  def test_without_a_posterior_its_latents_are_those_of_topk(self):
    recipe = stochastic.vsae(
      D, N, 3, coefficient=0.0, kl_warmup=0.0, dead_after_tokens=100
    )
    sae = recipe.init(jax.random.key(0), sample=draw(0))
    topk = sae.replace(
      encoder=encoders.Affine(W=sae.encoder.W, b=sae.encoder.b),
      activation=activations.TopK(3),
    )
    for around in ({}, {"train": True, "key": jax.random.key(1)}):
      ours = sae.forward(draw(1), engine="dense", **around)
      want = topk.forward(draw(1), engine="dense", **around)
      np.testing.assert_array_equal(ours.latents.dense(), want.latents.dense())
      np.testing.assert_array_equal(ours.x_hat, want.x_hat)

  @parameterized.parameters(20, 10_000)  # with dead latents, and without
  def test_without_a_divergence_it_trains_as_topk_does(self, dead):
    options = {"clip_norm": 1.0, "dead_after_tokens": dead}
    ours = stochastic.vsae(D, N, 3, coefficient=0, kl_warmup=0.0, **options)

    def init(key, **settings):
      return initial.init(
        jax.random.split(key)[0],  # the other half is of the posterior
        activation=activations.TopK(3),
        row_norm=0.1,
        pre_bias=False,
        **settings,
      )

    topk = common.compose(
      "topk",
      D,
      N,
      options,
      init=init,
      terms={"mse": Term(fn=losses.mse)},
      aux=common.aux_k(None, common.AUX_WEIGHT, 3),
      unit_norm=False,
    )
    few = lambda i: draw(i)[:16]
    run = lambda r: fit.fit(
      r, few, steps=10, members=[fit.member(0)], engine="dense"
    )
    (_, (got,), metrics), (_, (want,), _) = run(ours), run(topk)
    self.assertEqual(bool(metrics["aux"][-1, 0] > 0), dead == 20)
    for path in ("decoder.W", "decoder.b", "encoder.W", "encoder.b"):
      leaf = operator.attrgetter(path)
      np.testing.assert_allclose(
        leaf(got.sae), leaf(want.sae), atol=1e-6, err_msg=path
      )

  def test_the_divergence_shrinks_means_and_kills_latents(self):
    # No AuxK, which would revive them. At 0, 0.1, 1 and 10 the mean squares
    # were 4.9, 1.3, 0.35, 0.07 and the dead 0, 9, 47, 44 %.
    coefficients = (0.0, 0.1, 1.0, 10.0)
    recipe = stochastic.vsae(
      D,
      N,
      3,
      coefficient=1.0,
      kl_warmup=0.075,
      steps=400,
      dead_after_tokens=2000,
      aux_weight=0.0,
    )
    members = [
      Member(seed=0, learning_rate=3e-3, coefficient=c) for c in coefficients
    ]
    _, states, metrics = fit.fit(
      recipe, draw, steps=400, members=members, stacked=True
    )
    x = draw(10**6)
    means = [
      float(jnp.sum(s.sae.encoder(x, toy.context(x)).mean ** 2)) for s in states
    ]
    self.assertTrue((np.diff(means) < 0).all(), means)
    dead = metrics["dead"][-1]
    self.assertTrue((dead[1:] >= dead[0]).all(), dead)
    self.assertGreater(dead[-1], 0.2)

  def test_refuses_an_unknown_posterior(self):
    with self.assertRaisesRegex(errors.InputError, "posterior=laplace"):
      stochastic.vsae(
        D,
        N,
        3,
        coefficient=0.1,
        kl_warmup=0.0,
        posterior="laplace",
        dead_after_tokens=100,
      )

  def test_the_divergence_warms_up_and_can_be_masked(self):
    recipe = stochastic.vsae(
      D,
      N,
      3,
      coefficient=0.5,
      kl_warmup=0.1,
      steps=100,
      masked=True,
      dead_after_tokens=100,
    )
    kl = recipe.terms["kl"]
    got = [float(kl.weight(jnp.int32(i))) for i in (0, 5, 10, 99)]
    self.assertEqual(got, [0, 0.25, 0.5, 0.5])
    sae = recipe.init(jax.random.key(0), sample=None)
    record = contract.record(recipe, sae, draw(0))
    np.testing.assert_allclose(kl.fn(record), losses.l2(record) / 2, rtol=1e-5)


class ControlTest(parameterized.TestCase):
  def test_over_all_latents_it_has_the_penalty_of_vsae_without_a_posterior(
    self,
  ):
    settings = {"dead_after_tokens": 100}
    vsae = stochastic.vsae(D, N, 3, coefficient=1, kl_warmup=0.0, **settings)
    sae = vsae.init(jax.random.key(0), sample=None)
    want = variational.kl(contract.record(vsae, sae, draw(0)))
    recipe = stochastic.topk_l2(D, N, 3, over="all", **settings)
    plain = sae.replace(
      encoder=encoders.Affine(W=sae.encoder.W, b=sae.encoder.b),
      activation=activations.TopK(3),
    )
    record = contract.record(recipe, plain, draw(0))
    penalty = recipe.terms["l2"].fn(record)
    np.testing.assert_allclose(penalty / 2, want, rtol=1e-5)
    self.assertGreater(float(jnp.mean(penalty - losses.l2(record))), 1e-3)

  def test_over_all_latents_it_trains_and_is_topk_without_a_weight(self):
    run = lambda recipe: fit.fit(
      recipe, draw, steps=5, members=[fit.member(0)]
    )[0][0]
    make = lambda over: stochastic.topk_l2(
      D, N, 3, coefficient=0.0, over=over, dead_after_tokens=10_000
    )
    got, want = run(make("all")), run(make("kept"))
    toy.assert_trees_close(got, want, rtol=1e-4, atol=1e-5)

  def test_refuses_other_latents(self):
    with self.assertRaisesRegex(errors.InputError, "^over=dead"):
      stochastic.topk_l2(D, N, 3, over="dead", dead_after_tokens=100)


class ATMTest(parameterized.TestCase):
  def test_a_checkpoint_restores_masking_exactly(self):
    recipe = stochastic.atm(
      D, N, coefficient=0.3, steps=10, mask_start=0.2, dead_after_tokens=100
    )
    mesh = sharding.make_mesh((1, 1, 1))
    group = Group(lambda: recipe, [fit.member(0)], mesh=mesh, stacked=False)
    states, *_ = group.run_drawn(group.init(draw(0)), draw, 0, 4)
    self.assertTrue((states[0].stats[masking.PROBABILITY] > 0).any())
    with tempfile.TemporaryDirectory() as folder:
      again = contract.restored(folder, states)
    want, *_ = group.run_drawn(states, draw, 4, 6)
    got, *_ = group.run_drawn(again, draw, 4, 6)
    toy.assert_trees_equal(got, want)

  def test_without_steepness_it_is_relu_l1(self):
    settings = {"coefficient": 0.3, "dead_after_tokens": 1000}
    recipes = (
      stochastic.atm(D, N, r=0.0, mask_start=0.0, **settings),
      row_sparse.relu_l1(D, N, **settings),
    )
    ours, want = (
      fit.fit(r, draw, steps=10, members=[fit.member(0)])[1][0].sae
      for r in recipes
    )
    toy.assert_trees_close(
      ours.replace(activation=want.activation), want, rtol=1e-6, atol=1e-7
    )

  def test_what_users_hold_masks_nothing_or_the_rare_for_good(self):
    make = lambda **how: stochastic.atm(
      D, N, coefficient=0.3, steps=10, dead_after_tokens=100, **how
    )
    recipe = make()
    sae = recipe.init(jax.random.key(0), sample=None)
    self.assertIs(recipe.finish(sae, {}, None), sae)
    finish = make(deterministic=True).finish
    self.assertIsInstance(finish, importance.WithoutMasked)

  def test_settings_of_the_importance_reach_it(self):
    given = {"c": 0.5, "r": 2.0, "decay": 0.9, "weights": (1.0, 0.0, 0.0)}
    recipe = stochastic.atm(
      D, N, coefficient=0.3, steps=10, dead_after_tokens=100, **given
    )
    (rule,) = (r for r in recipe.rules if isinstance(r, importance.Importance))
    for name, value in given.items():
      self.assertEqual(getattr(rule, name), value)

  @parameterized.parameters(
    ("r", -1),
    ("decay", 1.0),
    ("weights", (1.0, 1.0)),
    ("weights", (0.0, 0.0, 0.0)),
    ("coefficient", -0.1),
    ("coefficient", float("nan")),
    ("coefficient_warmup", -1),
  )
  def test_refuses(self, field, value):
    settings = {"coefficient": 0.1, "steps": 10, field: value}
    with self.assertRaises(errors.InputError) as caught:
      stochastic.atm(D, N, dead_after_tokens=100, **settings)
    self.assertEqual(caught.exception.field, field)


if __name__ == "__main__":
  absltest.main()
