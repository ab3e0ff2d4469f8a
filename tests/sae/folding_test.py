"""Tests of saejax.sae.folding."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax.sae import (
  activations,
  budgets,
  decoders,
  encoders,
  folding,
  groups,
  jumprelu,
  prep,
)
from saejax.sae.context import Batch
from tests import toy
from tests.sae import gated_test

THETA = jnp.abs(toy.rows(24, seed=3))
X = 5 * toy.rows(20, 8) + 1


class FoldPrepTest(parameterized.TestCase):
  @parameterized.product(
    pre_bias=[True, False],
    activation=[activations.TopK(4), activations.ReLU()],
    decoder=[decoders.Free, decoders.Normalised],
  )
  def test_gives_the_same_latents_and_reconstructions_of_raw_rows(
    self, pre_bias, activation, decoder
  ):
    self.check(
      toy.sae(
        prep_=toy.affine(8),
        pre_bias=pre_bias,
        activation=activation,
        decoder=decoder,
      )
    )

  @parameterized.product(
    pre_bias=[True, False],
    activation=[
      activations.TopK(4, score="magnitude", keep="signed"),
      activations.Ranked(budgets.Constant(2.5), scope="batch"),
      groups.GroupMax(4),
    ],
  )
  def test_selections_stay_as_they_are(self, pre_bias, activation):
    sae = toy.sae(prep_=toy.affine(8), pre_bias=pre_bias, activation=activation)
    self.check(sae)
    self.check(sae.replace(encoder=encoders.Tied(b=sae.b_enc)))

  @parameterized.product(
    pre_bias=[True, False],
    activation=[
      jumprelu.JumpReLU(THETA),
      activations.Threshold(THETA),
      activations.Threshold(jnp.float32(0.5)),
      activations.Threshold(jnp.float32(0.5), score="norm"),
      activations.TopK(4, score="norm"),
    ],
  )
  def test_thresholds_keep_their_units(self, pre_bias, activation):
    self.check(
      toy.sae(prep_=toy.affine(8), pre_bias=pre_bias, activation=activation)
    )

  @parameterized.parameters(True, False)
  def test_both_heads_of_a_gated_encoder_are_folded(self, pre_bias):
    sae = gated_test.sae()
    self.check(sae.replace(prep=toy.affine(8), pre_bias=pre_bias))

  @parameterized.product(
    framed=[(True, True), (True, False), (False, True)],
    activation=[
      jumprelu.JumpReLU(THETA),
      activations.Threshold(jnp.float32(0.5), score="norm"),
    ],
  )
  def test_a_transcoder_is_folded_on_both_sides(self, framed, activation):
    sae = transcoder(activation)
    own = prep.Identity()
    self.check(
      sae.replace(
        prep=toy.affine(8) if framed[0] else own,
        target_prep=toy.affine(5, seed=6) if framed[1] else own,
      )
    )

  def check(self, sae):
    folded = folding.fold_prep(sae)
    self.assertIsInstance(folded.prep, prep.Identity)
    self.assertNotIsInstance(folded.target_prep, prep.Affine)
    batch = X
    if sae.target_prep is not None:
      batch = Batch(x=X, target=toy.rows(20, sae.d))
    run = jax.jit(lambda s: (s.encode(X), s.reconstruct(batch)))
    for got, want in zip(run(folded), run(sae), strict=True):
      np.testing.assert_allclose(got, want, rtol=1e-5, atol=5e-5)

  def test_without_prep_nothing_changes(self):
    for sae in (toy.sae(), transcoder(activations.TopK(4))):
      self.assertIs(folding.fold_prep(sae), sae)

  def test_row_layer_norm_cannot_be_folded(self):
    with self.assertRaisesRegex(
      NotImplementedError, "RowLayerNorm depends on each row"
    ):
      folding.fold_prep(toy.sae(prep_=prep.RowLayerNorm()))

  def test_a_transcoder_with_a_pre_bias_cannot_be_folded(self):
    sae = toy.sae(prep_=toy.affine(8)).replace(target_prep=prep.Identity())
    with self.assertRaisesRegex(ValueError, "transcoder with a pre-bias"):
      folding.fold_prep(sae)


def transcoder(activation):
  """From 8 to 5 numbers, without preps."""
  sae = toy.sae(activation=activation, pre_bias=False)
  return sae.replace(
    decoder=decoders.Free(W=toy.rows(24, 5, seed=4), b=toy.rows(5, seed=5)),
    target_prep=prep.Identity(),
  )


if __name__ == "__main__":
  absltest.main()
