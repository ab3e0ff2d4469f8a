"""Tests of saejax.recipes.contrastive: rows that come in pairs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax import errors
from saejax.data import synthetic
from saejax.recipes import contrastive
from saejax.sae.context import Batch
from saejax.training import fit
from tests import contract, toy

D, N = contract.D, contract.N
PARTS = jnp.split(contract.TRUTH, [16, 24])  # u, v, w


def pairs(i):
  """Pairs (u + v, u + w) of planted directions."""
  key = toy.key(13, i)
  return Batch(**synthetic.paired(key, contract.ROWS // 2, *PARTS, active=1.0))


def csae(**settings):
  settings = {"sparsity": 0.1, "steps": 100, "sparsity_warmup": 0.5, **settings}
  return contrastive.csae(D, N, dead_after_tokens=10_000, **settings)


CASES = {
  "csae": contract.Case(
    make=functools.partial(csae, coefficient=0.1), draw=pairs, floor=0.77
  ),
}


class ContractTest(parameterized.TestCase):
  @parameterized.parameters(*zip(CASES))
  def test_passes_the_contract(self, name):
    contract.check(self, CASES[name])


class ContrastiveTest(parameterized.TestCase):
  def loss(self, recipe, batch, sae=None):
    """The loss at step 1000, by hand from the terms."""
    sae = toy.sae(d=D, n=N) if sae is None else sae
    record = contract.record(recipe, sae, batch)
    total = 0.0
    for term in recipe.terms.values():
      weight = term.weight
      weight = weight(jnp.asarray(1000)) if callable(weight) else weight
      total += float(weight * jnp.mean(term.fn(record)))
    return total

  def test_the_loss_is_the_papers(self):
    recipe = csae(coefficient=0.3)
    batch = pairs(jnp.asarray(3))
    sae = recipe.init(jax.random.key(0), sample=batch)
    x = np.asarray(batch.x).reshape(-1, D)
    f = np.maximum(x @ np.asarray(sae.W_enc).T + np.asarray(sae.b_enc), 0)
    x_hat = f @ np.asarray(sae.W_dec) + np.asarray(sae.b_dec)
    norms = np.linalg.norm(sae.W_dec, axis=1)
    c, d = np.split(f.reshape(-1, 2, N), 2, axis=-1)
    want = (
      np.mean(np.sum((x - x_hat) ** 2, axis=1))
      + 0.1 * np.mean(np.sum(f * norms, axis=1))
      + 0.3 * np.mean(np.abs(c[:, 0] - c[:, 1]).sum(axis=1))
      + 0.3 * np.mean(np.abs(d[:, 0] * d[:, 1]).sum(axis=1))
    )
    self.assertAlmostEqual(self.loss(recipe, batch, sae), want, places=4)
    np.testing.assert_array_equal(sae.b_dec, 0)
    self.assertFalse(sae.pre_bias)

  def test_exchanging_the_two_rows_changes_nothing(self):
    recipe, batch = csae(coefficient=0.3), pairs(jnp.asarray(3))
    other = batch.replace(x=batch.x[:, ::-1])
    self.assertAlmostEqual(
      self.loss(recipe, batch), self.loss(recipe, other), places=4
    )

  def test_without_contrast_it_is_a_plain_sae_on_all_rows(self):
    flat = lambda i: pairs(i).x.reshape(-1, D)
    ends = []
    for draw in (pairs, flat):
      members = [fit.member(0)]
      saes, _, _ = fit.fit(
        csae(coefficient=0.0), draw, steps=10, members=members
      )
      ends.append(saes[0])
    toy.assert_trees_close(*ends, rtol=1e-4, atol=1e-6)

  def test_the_second_half_tells_the_rows_apart_and_the_first_does_not(self):
    # Three private features a row: only 2 % of rows have none.
    parts = jnp.split(toy.dictionary(32, 32), [16, 24])

    def draw(i):
      key = toy.key(19, i)
      return Batch(**synthetic.paired(key, 128, *parts, active=3.0))

    recipe = contrastive.csae(
      32, 64, coefficient=0.5, sparsity=0.1, steps=500, dead_after_tokens=10**6
    )
    members = [fit.member(0, learning_rate=5e-3)]
    saes, _, _ = fit.fit(recipe, draw, steps=500, members=members)
    encode = jax.jit(saes[0].encode)
    z = np.concatenate(
      [encode(draw(jnp.asarray(i)).x) for i in range(900, 908)]
    )
    accuracy = {
      name: probe(z[:768, :, half], z[768:, :, half])
      for name, half in (("c", slice(32)), ("d", slice(32, None)))
    }
    self.assertGreater(accuracy["d"], 0.9)
    self.assertLess(accuracy["c"], 0.65)

  def test_refuses_odd_sizes_and_rows_that_are_not_pairs(self):
    with self.assertRaisesRegex(errors.InputError, "n=9: must be even"):
      contrastive.csae(D, 9, dead_after_tokens=100)
    with self.assertRaisesRegex(errors.InputError, "pairs of rows"):
      fit.fit(csae(), contract.rows, steps=1, members=[fit.member(0)])


def probe(train, test):
  """Accuracy of a linear probe for the first or second row of a pair."""
  design = lambda z: np.concatenate(
    [z.reshape(-1, z.shape[-1]), np.ones((z.shape[0] * 2, 1))], axis=1
  )
  label = lambda z: np.tile([-1.0, 1.0], len(z))
  weights = np.linalg.lstsq(design(train), label(train), rcond=1e-3)[0]
  return float((np.sign(design(test) @ weights) == label(test)).mean())


if __name__ == "__main__":
  absltest.main()
