"""Tests of saejax.sae.convert."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax import errors
from saejax.sae import activations, budgets, convert, jumprelu
from saejax.sae.activations import Ranked, ReLU, Threshold, TopK
from saejax.sae.context import Batch
from tests import toy
from tests.sae import gated_test

X = 2 * toy.rows(200, 8)
THETA = jnp.abs(toy.rows(24, seed=3))


def uneven(activation, **parts):
  """An SAE whose decoder rows have norms from 0.3 to 3."""
  sae = toy.sae(activation=activation, **parts)
  norms = jnp.exp(jnp.linspace(-1.2, 1.1, sae.n))[:, None]
  W = sae.W_dec * norms
  return sae.replace(decoder=sae.decoder.replace(W=W))


class InferenceFormTest(parameterized.TestCase):
  @parameterized.parameters(*range(5))
  def test_a_gate_is_a_threshold(self, seed):
    sae = gated_test.sae(seed=10 * seed)
    held = convert.inference_form(sae)
    self.assertIsInstance(held.activation, Threshold)
    z, want = toy.encode(held, X), toy.encode(sae, X)
    np.testing.assert_allclose(z, want, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(z > 0, want > 0)
    e = sae.encoder
    theta = np.maximum(e.b_mag - np.exp(e.r_mag) * e.b_gate, 0)
    np.testing.assert_allclose(
      held.activation.theta, theta, rtol=1e-5, atol=1e-6
    )
    self.assertGreater(np.sum(theta > 0), 0)

  def test_a_learned_threshold_becomes_a_plain_one(self):
    sae = toy.sae(activation=jumprelu.JumpReLU(THETA))
    held = convert.inference_form(sae)
    np.testing.assert_array_equal(held.activation.theta, THETA)
    np.testing.assert_array_equal(toy.encode(held, X), toy.encode(sae, X))

  def test_other_saes_stay(self):
    sae = toy.sae()
    self.assertIs(convert.inference_form(sae), sae)


class FoldDecoderNormsTest(parameterized.TestCase):
  @parameterized.parameters(
    ReLU(),
    Threshold(THETA),
    Threshold(jnp.float32(0.4)),
    Threshold(jnp.float32(0.4), score="norm"),
    jumprelu.JumpReLU(THETA),
    TopK(4, score="norm"),
    Ranked(budgets.Constant(3.0), scope="batch", score="norm"),
  )
  def test_reconstructions_stay_and_rows_have_unit_norm(self, activation):
    sae = uneven(activation, pre_bias=False)
    folded = convert.fold_decoder_norms(sae)
    norms = np.linalg.norm(folded.W_dec, axis=-1)
    np.testing.assert_allclose(norms, 1, rtol=1e-5)
    np.testing.assert_allclose(
      toy.reconstruct(folded, X), toy.reconstruct(sae, X), rtol=1e-4, atol=1e-4
    )
    z = toy.encode(sae, X) * jnp.linalg.norm(sae.W_dec, axis=-1)
    np.testing.assert_allclose(toy.encode(folded, X), z, rtol=1e-4, atol=1e-4)

  def test_norm_aware_topk_becomes_plain_topk_and_plain_topk_does_not(self):
    aware, plain = uneven(TopK(4, score="norm")), uneven(TopK(4))
    folded = convert.fold_decoder_norms(aware)
    self.assertEqual(folded.activation, TopK(4))
    chosen = [np.asarray(toy.encode(s, X) > 0) for s in (aware, folded, plain)]
    np.testing.assert_array_equal(chosen[0], chosen[1])
    self.assertGreater(np.sum(chosen[2] != chosen[1]), 100)
    with self.assertRaisesRegex(
      NotImplementedError, "TopK would keep other latents"
    ):
      convert.fold_decoder_norms(plain)

  def test_rows_of_zeros_stay_silent(self):
    sae = uneven(ReLU())
    W = sae.W_dec.at[3].set(0)
    sae = sae.replace(decoder=sae.decoder.replace(W=W))
    folded = convert.fold_decoder_norms(sae)
    np.testing.assert_array_equal(toy.encode(folded, X)[:, 3], np.zeros(200))
    np.testing.assert_allclose(
      toy.reconstruct(folded, X), toy.reconstruct(sae, X), rtol=1e-4, atol=1e-4
    )


class ToJumpReLUTest(parameterized.TestCase):
  def test_theta_is_the_order_statistic(self):
    sae = uneven(TopK(3, score="norm"))
    out = convert.to_jumprelu(sae, X)
    a = np.asarray(
      convert.fold_decoder_norms(sae.replace(activation=ReLU())).encode(X)
    )
    want = np.sort(a, axis=None)[-600]
    np.testing.assert_allclose(out.activation.theta, want, rtol=1e-5)
    self.assertEqual(np.sum(np.asarray(toy.encode(out, X)) != 0), 599)

  def test_magnitudes_get_a_threshold_on_both_sides(self):
    sae = toy.sae(activation=TopK(3, score="magnitude", keep="signed"))
    z = np.asarray(convert.to_jumprelu(sae, X).encode(X))
    self.assertEqual(np.sum(z != 0), 599)
    self.assertGreater(np.sum(z < 0), 100)

  def test_budgets_and_batches_of_any_shape_are_read(self):
    sae = toy.sae(activation=Ranked(budgets.Annealed(2.5, 4.0, 10)))
    x = X.reshape(10, 20, 8)
    batch = Batch(x=x, cond=jnp.zeros((10, 20)))
    one, two = (convert.to_jumprelu(sae, b) for b in (batch, X))
    toy.assert_trees_equal(one, two)
    self.assertEqual(np.sum(np.asarray(toy.encode(one, X)) != 0), 499)

  def test_fewer_positive_latents_than_asked_for_keep_all(self):
    sae = toy.sae(activation=TopK(24))
    out = convert.to_jumprelu(sae, X)
    self.assertEqual(out.activation.theta, 0)

  def test_is_refused_where_it_cannot_be_estimated(self):
    with self.assertRaisesRegex(errors.InputError, "ReLU does not define it"):
      convert.to_jumprelu(toy.sae(activation=ReLU()), X)
    sae = toy.sae(activation=Ranked(budgets.Constant(0.1)))
    with self.assertRaisesRegex(errors.InputError, "must be at least 1 / k"):
      convert.to_jumprelu(sae, X[:5])

  def test_theta_does_not_depend_on_the_weights_type(self):
    sae = jax.tree.map(np.asarray, toy.sae(activation=TopK(3)))
    out = convert.to_jumprelu(sae, X)
    self.assertEqual(out.activation.theta.dtype, jnp.float32)
    self.assertIsInstance(out.activation, activations.Threshold)


if __name__ == "__main__":
  absltest.main()
