"""Tests of saejax.recipes.circuits: tiny SAEs for codes."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax.evals import circuits as evals
from saejax.recipes import circuits
from saejax.training import fit, step
from tests import contract, toy

D, N = contract.D, contract.N


def codes(d=D, n=N, **settings):
  settings = {"coefficient": 0.02, "dead_after_tokens": 10_000, **settings}
  return circuits.circuit_codes(d, n, **settings)


CASES = {"circuit_codes": contract.Case(make=codes, floor=0.65)}


class ContractTest(parameterized.TestCase):
  @parameterized.parameters(*zip(CASES))
  def test_passes_the_contract(self, name):
    contract.check(self, CASES[name])


def prompts(*, heads=24, inside=6, d=24, seed=0):
  """Outputs [2 * 20, heads, d]; those of some heads depend on the class.

  Their coordinates have a mean square of 1, for which the coefficient is.
  """
  rng = np.random.default_rng(seed)
  directions = np.asarray(toy.dictionary(heads * 4, d, seed=seed))
  directions = directions.reshape(heads, 4, d)
  truth = np.arange(heads) % (heads // inside) == 1
  which = rng.integers(0, 4, (40, heads))
  which[:20, truth] %= 2
  which[20:, truth] = 2 + which[20:, truth] % 2
  x = directions[np.arange(heads)[None], which]
  x = x * d**0.5 * rng.uniform(0.8, 1.2, (40, heads, 1))
  return jnp.asarray(x, jnp.float32), truth


class CodesTest(absltest.TestCase):
  def test_a_few_prompts_are_enough_to_find_planted_heads(self):
    x, truth = prompts()
    some = jnp.concatenate([x[:5], x[20:25]])  # ten prompts, both classes
    saes, _, _ = fit.fit(
      codes(d=24, n=200),
      lambda i: some.reshape(-1, 24),
      steps=500,
      members=[fit.member(0, learning_rate=1e-3)],
    )
    found = evals.codes(saes[0], x)
    scores = evals.unique_code_scores(found[:20], found[20:])
    auc = evals.roc_auc(scores, truth)
    null = evals.null_scores(evals.unique_code_scores, found[:20], found[20:])
    chance = np.mean([evals.roc_auc(scores, truth) for scores in null])
    self.assertGreater(auc, 0.95)
    self.assertAlmostEqual(chance, 0.5, delta=0.05)

  def test_rows_of_the_encoder_and_columns_of_the_decoder_are_unit(self):
    # As stored, since that sets the size of a step.
    recipe = codes()
    start = jax.jit(lambda: step.init_state(recipe, jax.random.key(0)))()
    one = [fit.member(0, learning_rate=1e-2)]
    _, (end,), _ = fit.fit(recipe, contract.rows, steps=5, members=one)
    for sae in (start.sae, end.sae):
      rows = np.linalg.norm(sae.encoder.W, axis=-1)
      columns = np.linalg.norm(sae.decoder.W, axis=0)
      np.testing.assert_allclose(rows, 1, rtol=1e-5)
      np.testing.assert_allclose(columns, 1, rtol=1e-5)
    sae = start.sae
    self.assertLessEqual(float(jnp.abs(sae.b_enc).max()), D**-0.5)
    self.assertTrue(sae.pre_bias)

  def test_no_gradient_lies_along_what_is_normalised(self):
    sae = codes().init(jax.random.key(0), sample=None)
    x = contract.rows(jnp.asarray(0))
    loss = lambda sae: jnp.sum((x - sae.reconstruct(x)) ** 2)
    g = jax.grad(loss)(sae)
    along = jnp.sum(g.encoder.W * sae.encoder.W, axis=-1)
    np.testing.assert_allclose(along, 0, atol=1e-2)
    along = jnp.sum(g.decoder.W * sae.decoder.W, axis=0)
    np.testing.assert_allclose(along, 0, atol=1e-2)


if __name__ == "__main__":
  absltest.main()
