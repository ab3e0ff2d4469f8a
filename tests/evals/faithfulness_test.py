"""saejax/evals/faithfulness.py: shared features, response to nonsense."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from saejax.data import streams, synthetic
from saejax.evals import faithfulness, held_out
from saejax.recipes import row_sparse
from saejax.sae import activations, encoders
from saejax.training import fit
from tests import toy


def with_rows(W, seed=0):
  """An SAE with these decoder rows."""
  sae = toy.sae(n=W.shape[0], d=W.shape[1], seed=seed)
  return sae.replace(decoder=sae.decoder.replace(W=jnp.asarray(W)))


class SharedTest(absltest.TestCase):
  def test_a_permuted_copy_is_shared_and_random_ones_are_not(self):
    # faithful, check 1.
    rng = np.random.default_rng(0)
    W = rng.normal(size=(128, 256)).astype(np.float32)
    one, copy = with_rows(W), with_rows(2 * W[rng.permutation(128)])
    other = with_rows(rng.normal(size=(128, 256)).astype(np.float32))
    self.assertEqual(faithfulness.sfr(one, copy), 1)
    self.assertEqual(faithfulness.sfr(one, other), 0)
    self.assertEqual(faithfulness.top1_ratio(one, copy), 1)
    self.assertEqual(faithfulness.top1_ratio(one, other), 0)

  def test_without_assignment_a_latent_may_serve_several(self):
    W = np.eye(4, 8, dtype=np.float32)
    twice = W[[0, 0, 1, 1]]
    self.assertEqual(faithfulness.top1_ratio(with_rows(twice), with_rows(W)), 1)
    self.assertEqual(faithfulness.sfr(with_rows(twice), with_rows(W)), 0.5)


class FakeFeaturesTest(absltest.TestCase):
  def gate(self, b):
    """An SAE of which latent i is on where x_i > -b_i."""
    n = len(b)
    sae = toy.sae(n=n, d=n, pre_bias=False, activation=activations.TopK(n))
    encoder = encoders.Affine(W=jnp.eye(n), b=jnp.asarray(b, jnp.float32))
    return sae.replace(encoder=encoder)

  def test_the_ratio_falls_with_tau_from_always_on_to_dead(self):
    # faithful, check 3. Normal rows: on in 0, 2, 16, 50 and 100 percent.
    x = np.random.default_rng(0).normal(size=(5000, 5)).astype(np.float32)
    sae = self.gate([-50.0, -2.0, -1.0, 0.0, 50.0])
    rates = faithfulness.rates(sae, x)
    np.testing.assert_allclose(rates, [0, 0.023, 0.159, 0.5, 1], atol=0.02)
    taus = [0.0, 0.1, 0.3, 0.9, 1.0]
    curve = faithfulness.ffr_curve(rates, taus)
    np.testing.assert_allclose(curve, [0.8, 0.6, 0.4, 0.2, 0])
    self.assertAlmostEqual(faithfulness.ffr(sae, x, 0.3), 0.4)
    self.assertEqual(faithfulness.ffr(self.gate([-50.0] * 3), x[:, :3]), 0)
    self.assertEqual(faithfulness.ffr(self.gate([50.0] * 3), x[:, :3]), 1)

  def test_random_ids_are_uniform_and_leave_out_what_is_asked(self):
    ids = faithfulness.random_ids(500, 40, 12, leave_out=(0, 5))
    self.assertEqual((ids.shape, ids.dtype), ((500, 40), np.int32))
    share = np.bincount(ids.ravel(), minlength=12) / ids.size
    np.testing.assert_array_equal(share[[0, 5]], 0)
    np.testing.assert_allclose(np.delete(share, [0, 5]), 0.1, atol=0.01)


class FirstTokensTest(absltest.TestCase):
  def test_by_hand(self):
    p = np.array([0.5, 0.25, 0.25, 0.0])
    found = faithfulness.first_tokens(np.array([0, 0, 0, 1]), p, smoothing=0.0)
    q = np.array([0.75, 0.25])
    kl = (q * np.log(q / p[:2])).sum()
    self.assertAlmostEqual(found["kl_data_model"], kl)
    self.assertEqual(found["kl_model_data"], np.inf)
    self.assertAlmostEqual(found["cross_entropy"], -(q * np.log(p[:2])).sum())
    self.assertAlmostEqual(found["coverage"], 0.75)

  def test_the_models_own_tokens_are_nearer_than_others(self):
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.full(30, 0.3))
    own = rng.choice(30, 5000, p=p)
    found = faithfulness.first_tokens(own, p)
    other = faithfulness.first_tokens(rng.integers(0, 30, 5000), p)
    for name in ("kl_data_model", "kl_model_data"):
      self.assertBetween(found[name], -1e-9, 0.02)
      self.assertGreater(other[name], 0.3)


class OwnDataTest(absltest.TestCase):
  def test_an_sae_explains_its_own_data_better(self):
    # faithful, check 4: disjoint planted dictionaries.
    keys = jax.random.split(jax.random.key(12), 3)
    own, other = synthetic.directions(keys[0], 64, 24).reshape(2, 32, 24)
    rows = lambda key, V: np.asarray(synthetic.sparse(key, 4096, V, 2.0))
    x, y = rows(keys[1], own), rows(keys[2], other)
    recipe = row_sparse.topk(24, 48, 4, dead_after_tokens=20_000)
    draw = streams.array_draw({"x": x}, batch_rows=256, seed=0)
    (sae,), _, _ = fit.fit(recipe, draw, steps=400, members=[fit.member()])
    fvu = lambda z: held_out.evaluate(sae, z).fvu
    self.assertLess(fvu(x), fvu(y) - 0.1)


if __name__ == "__main__":
  absltest.main()
