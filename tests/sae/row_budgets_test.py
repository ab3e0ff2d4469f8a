"""Tests of saejax.sae.row_budgets."""

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax.sae import activations, decoders, encoders, row_budgets
from saejax.sae.context import Batch, Pre
from tests import toy

NORM_MATCH = activations.Ranked(row_budgets.NormMatch(), score="norm")


class NormMatchTest(parameterized.TestCase):
  def test_the_hand_case(self):
    a = jnp.asarray([[5.0, 4, 3], [1, 1, 1], [1, 10, 2]])
    W = jnp.asarray([[1.0, 2], [3, 4], [5, 6]])
    ctx = toy.context(a @ W, W=W)
    k = row_budgets.NormMatch()(Pre(a=a), ctx)
    np.testing.assert_array_equal(k[:, 0], 2)
    np.testing.assert_array_equal(
      NORM_MATCH(Pre(a=a), ctx), [[0, 4, 3], [0, 1, 1], [0, 10, 2]]
    )

  def test_of_an_orthonormal_dictionary_all_active_latents_are_kept(self):
    W = jnp.linalg.qr(toy.rows(8, 8))[0]
    z = jnp.maximum(toy.rows(50, 8, seed=3), 0).at[:, 0].set(0)
    b = toy.rows(8, seed=5)
    model = toy.sae(n=8, activation=NORM_MATCH)
    model = model.replace(
      encoder=encoders.Affine(W=W, b=jnp.zeros(8)),
      decoder=decoders.Free(W=W, b=b),
    )
    x = z @ W + b
    np.testing.assert_allclose(toy.encode(model, x), z, atol=1e-5)
    np.testing.assert_allclose(toy.reconstruct(model, x), x, atol=1e-5)
    self.assertLess(int(jnp.max(jnp.sum(z > 0, axis=1))), 8)

  def test_a_rescaled_latent_leaves_the_choice_as_it_is(self):
    model = toy.sae(activation=NORM_MATCH)
    scale = jnp.ones((24, 1)).at[jnp.asarray([2, 9])].set(2)
    other = model.replace(
      encoder=model.encoder.replace(
        W=model.encoder.W / scale, b=model.encoder.b / scale[:, 0]
      ),
      decoder=model.decoder.replace(W=model.decoder.W * scale),
    )
    x = 2 * toy.rows(40, 8)
    np.testing.assert_array_equal(
      toy.encode(model, x) > 0, toy.encode(other, x) > 0
    )
    counts = np.sum(toy.encode(model, x) > 0, axis=1)
    self.assertGreater(len(set(counts.tolist())), 2)

  def test_a_row_without_positive_latents_keeps_none_and_is_finite(self):
    a = jnp.asarray([[-1.0, -2, -3], [1, 1, 1]])
    W = jnp.asarray([[1.0, 2], [3, 4], [5, 6]])
    got = NORM_MATCH(Pre(a=a), toy.context(jnp.ones((2, 2)), W=W))
    np.testing.assert_array_equal(got[0], 0)
    self.assertTrue(jnp.isfinite(got).all())

  def test_never_all_latents(self):
    a, W = jnp.ones((1, 3)), jnp.eye(3)
    k = row_budgets.NormMatch()(Pre(a=a), toy.context(100 * a, W=W))
    np.testing.assert_array_equal(k, 2)


def probe(min_k=20, max_k=320, **changes):
  given = {"w": jnp.zeros(4), "b": jnp.zeros(()), "penalty": jnp.zeros(())}
  return row_budgets.Probe(**{**given, **changes}, min_k=min_k, max_k=max_k)


class ProbeTest(parameterized.TestCase):
  @parameterized.parameters((0, 34), (5, 170), (10, 306), (-9, 34), (99, 306))
  def test_maps_scores_to_the_papers_k(self, score, k):
    self.assertEqual(probe().at(jnp.float32(score)), k)

  def test_every_row_keeps_its_own_k(self):
    x = 3 * toy.rows(30, 4)
    b = probe(2, 9, w=jnp.asarray([1.0, 0, 0, 2]), b=jnp.float32(5))
    a = jnp.abs(toy.rows(30, 24)) + 0.1
    z = toy.activate(activations.Ranked(b), a, batch=Batch(x=x))
    want = b.at(x @ b.w + 5)
    np.testing.assert_array_equal(jnp.sum(z != 0, axis=1), want)
    self.assertGreater(len(set(np.asarray(want).tolist())), 4)

  @parameterized.parameters(0.0, 4.0, 10.0)
  def test_a_constant_score_is_topk(self, score):
    b = probe(1, 20, b=jnp.float32(score))
    k = int(b.at(jnp.float32(score)))
    model = toy.sae(activation=activations.TopK(k))
    # The probe reads the raw rows, whatever the prep.
    model = model.replace(prep=toy.affine(8))
    other = model.replace(
      activation=activations.Ranked(b.replace(w=jnp.zeros(8)))
    )
    x = toy.rows(30, 8)
    np.testing.assert_allclose(
      toy.encode(model, x), toy.encode(other, x), atol=1e-5
    )


if __name__ == "__main__":
  absltest.main()
