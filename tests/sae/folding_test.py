"""Tests of saejax.sae.folding."""

import jax
import numpy as np
from absl.testing import absltest, parameterized

from saejax.sae import activations, decoders, folding, prep
from tests import toy


class FoldPrepTest(parameterized.TestCase):
  @parameterized.product(
    pre_bias=[True, False],
    activation=[activations.TopK(4), activations.ReLU()],
    decoder=[decoders.Free, decoders.Normalised],
  )
  def test_gives_the_same_latents_and_reconstructions_of_raw_rows(
    self, pre_bias, activation, decoder
  ):
    sae = toy.sae(
      prep_=toy.affine(8),
      pre_bias=pre_bias,
      activation=activation,
      decoder=decoder,
    )
    folded = folding.fold_prep(sae)
    self.assertIsInstance(folded.prep, prep.Identity)
    x = 5 * toy.rows(20, 8) + 1
    run = jax.jit(lambda s: (s.encode(x), s.reconstruct(x)))
    for got, want in zip(run(folded), run(sae), strict=True):
      np.testing.assert_allclose(got, want, rtol=1e-5, atol=5e-5)

  def test_without_prep_nothing_changes(self):
    sae = toy.sae()
    self.assertIs(folding.fold_prep(sae), sae)

  def test_row_layer_norm_cannot_be_folded(self):
    with self.assertRaisesRegex(ValueError, "RowLayerNorm depends on each row"):
      folding.fold_prep(toy.sae(prep_=prep.RowLayerNorm()))


if __name__ == "__main__":
  absltest.main()
