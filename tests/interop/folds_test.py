"""Folds keep latents and outputs, or refuse; records and SAEs are one another."""

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax.errors import InputError
from saejax.interop import folds, kinds
from saejax.interop import record as records
from saejax.interop.record import Prep, Record, Site
from saejax.sae import activations, encoders, gated, jumprelu, prep
from saejax.sae.context import Batch
from tests import toy

N, D = 12, 6
KINDS = {
  "relu": kinds.Relu(),
  "threshold": kinds.Threshold(np.linspace(-0.2, 1.5, N, dtype=np.float32)),
  "gate": kinds.Gate(
    np.linspace(-1, 1, N, dtype=np.float32),
    np.linspace(-0.5, 0.5, N, dtype=np.float32),
  ),
  "topk": kinds.TopK(3),
  "abstopk": kinds.TopK(3, "magnitude", signed=True),
  "topk_norm": kinds.TopK(3, "norm"),
  "groupmax": kinds.GroupMax(4),
}


def draw(kind, *, subtract=True, **fields) -> Record:
  rng = np.random.default_rng(3)
  normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)
  return Record(
    W_enc=normal(N, D),
    b_enc=0.5 * normal(N),
    W_dec=normal(N, D),
    b_dec=0.5 * normal(D),
    kind=kind,
    subtract_b_dec=subtract,
    **fields,
  )


def passed(record):
  sae = record.to_sae()
  x = toy.rows(64, D)
  return sae.encode(x), sae.reconstruct(x)


class FoldsTest(parameterized.TestCase):
  def assert_same(self, before, after, factor=1.0):
    (z, x_hat), (z_got, x_hat_got) = passed(before), passed(after)
    self.assertBetween(float((z != 0).mean()), 0.05, 0.95)
    np.testing.assert_allclose(z_got, z * factor, rtol=3e-5, atol=3e-5)
    np.testing.assert_allclose(x_hat_got, x_hat, rtol=3e-5, atol=3e-5)

  @parameterized.product(kind=list(KINDS), subtract=[False, True])
  def test_prep(self, kind, subtract):
    before = draw(
      KINDS[kind],
      subtract=subtract,
      prep=Prep("affine", np.arange(D) / 3, 2.5),
    )
    after = folds.prep(before)
    self.assertEqual(after.prep.kind, "none")
    self.assert_same(before, after)

  @parameterized.product(kind=list(KINDS), on=[False, True])
  def test_subtract(self, kind, on):
    before = draw(KINDS[kind], subtract=not on)
    after = folds.subtract(before, on=on)
    self.assertEqual(after.subtract_b_dec, on)
    self.assert_same(before, after)

  @parameterized.parameters("relu", "threshold", "gate", "topk_norm")
  def test_decoder_norms(self, kind):
    before = draw(KINDS[kind])
    norms = np.linalg.norm(before.W_dec, axis=1)
    after = folds.decoder_norms(before)
    np.testing.assert_allclose(
      np.linalg.norm(after.W_dec, axis=1), 1, rtol=1e-6
    )
    self.assert_same(before, after, norms)

  @parameterized.parameters("topk", "abstopk", "groupmax")
  def test_decoder_norms_under_ranks_are_refused(self, kind):
    with self.assertRaisesRegex(InputError, "would keep other latents"):
      folds.decoder_norms(draw(KINDS[kind]))

  def test_scales_of_a_transcoder_with_skip(self):
    skip = np.ones((D, D), np.float32)
    before = draw(
      KINDS["threshold"], subtract=False, transcoder=True, W_skip=skip
    )
    after = folds.scales(before, 2.0, 4.0)
    x = toy.rows(64, D)
    want, got = before.to_sae(), after.to_sae()
    np.testing.assert_allclose(got.encode(x), want.encode(2 * x), rtol=1e-5)
    np.testing.assert_allclose(
      got.reconstruct(x), want.reconstruct(2 * x) / 4, rtol=1e-4, atol=1e-5
    )

  def test_scales_that_differ_with_b_dec_subtracted_are_refused(self):
    with self.assertRaisesRegex(InputError, "one factor"):
      folds.scales(draw(kinds.Relu()), 1.0, 2.0)

  def test_raw_units_divide_latents_too(self):
    before = draw(KINDS["threshold"])
    after = folds.raw_units(before, 3.0, 3.0)
    x = toy.rows(64, D)
    want, got = before.to_sae(), after.to_sae()
    np.testing.assert_allclose(
      got.encode(x), want.encode(3 * x) / 3, rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(
      got.reconstruct(x), want.reconstruct(3 * x) / 3, rtol=1e-4, atol=1e-5
    )

  @parameterized.parameters("relu", "gate", "threshold")
  def test_threshold(self, kind):
    before = draw(KINDS[kind])
    after = folds.threshold(before)
    self.assertIsInstance(after.kind, kinds.Threshold)
    self.assert_same(before, after)

  @parameterized.parameters("layer_norm", "row_norm")
  def test_prep_of_rows_is_refused(self, kind):
    with self.assertRaisesRegex(InputError, "depends on each row"):
      folds.prep(draw(kinds.Relu(), prep=Prep(kind)))

  def test_a_latent_at_its_threshold_is_on_unless_strict(self):
    for strict, active in ((True, 0), (False, N)):
      kind = kinds.Threshold(np.full((N,), 0.5, np.float32), strict=strict)
      record = draw(kind, subtract=False).replace(
        b_enc=np.full((N,), 0.5, np.float32)
      )
      z = record.to_sae().encode(jnp.zeros((1, D)))
      self.assertEqual(int((z > 0).sum()), active, strict)
      z = folds.threshold(record).to_sae().encode(jnp.zeros((1, D)))
      self.assertEqual(int((z > 0).sum()), active, strict)


class RecordTest(parameterized.TestCase):
  @parameterized.parameters(
    activations.ReLU(),
    activations.TopK(3),
    activations.TopK(3, "magnitude", "signed"),
    activations.TopK(3, "norm"),
    activations.BlockTopK(1, 4),
    activations.Threshold(jnp.float32(0.4)),
    activations.Threshold(jnp.float32(0.4), "norm"),
    jumprelu.JumpReLU(jnp.full((24,), 0.3)),
  )
  def test_an_sae_comes_back(self, activation):
    for pre_bias in (False, True):
      sae = toy.sae(activation=activation, pre_bias=pre_bias)
      sae = sae.replace(decoder=sae.decoder.replace(W=2 * sae.decoder.W))
      got = records.from_sae(sae).to_sae()
      x = toy.rows(32, 8)
      np.testing.assert_allclose(got.encode(x), sae.encode(x), rtol=1e-6)
      np.testing.assert_allclose(got.reconstruct(x), sae.reconstruct(x), 1e-5)

  @parameterized.parameters(
    prep.Affine(centre=jnp.arange(8.0), scale=jnp.float32(2)),
    prep.RowLayerNorm(),
    prep.RowLayerNorm(undo_eps=0.0),
    prep.RowNorm(),
  )
  def test_its_prep_comes_back(self, prep_):
    sae = toy.sae(prep_=prep_)
    got = records.from_sae(sae).to_sae()
    self.assertEqual(str(got.prep), str(sae.prep))
    x = toy.rows(32, 8)
    np.testing.assert_allclose(got.reconstruct(x), sae.reconstruct(x), 1e-5)

  def test_gate_stays_a_gate(self):
    W = toy.rows(24, 8)
    encoder = gated.init(W).replace(b_gate=toy.rows(24), r_mag=toy.rows(24))
    sae = toy.sae(activation=gated.Gate()).replace(encoder=encoder)
    record = records.from_sae(sae)
    self.assertIsInstance(record.kind, kinds.Gate)
    x = toy.rows(32, 8)
    np.testing.assert_allclose(record.to_sae().encode(x), sae.encode(x))

  def test_parts_without_a_form_are_named(self):
    for activation in (
      activations.BatchTopK(3),
      activations.Threshold(jnp.float32(0.4), "magnitude", "signed"),
    ):
      sae = toy.sae(activation=activation)
      with self.assertRaisesRegex(InputError, type(activation).__name__):
        records.from_sae(sae)
    sae = toy.sae()
    affine = prep.Affine(centre=jnp.zeros(8), scale=jnp.float32(2))
    sae = sae.replace(prep=affine, target_prep=affine, pre_bias=False)
    with self.assertRaisesRegex(InputError, "prep of a transcoder"):
      records.from_sae(sae)

  def test_a_transcoder_cannot_subtract_b_dec(self):
    with self.assertRaisesRegex(InputError, "cannot subtract b_dec"):
      draw(kinds.Relu(), transcoder=True)
    with self.assertRaisesRegex(InputError, "whose target has other norms"):
      draw(
        kinds.Relu(),
        subtract=False,
        transcoder=True,
        prep=Prep("layer_norm"),
      )

  def test_skip_transcoder_is_trained_on_what_the_skip_leaves(self):
    skip = np.eye(D, dtype=np.float32)
    record = draw(kinds.TopK(2), subtract=False, transcoder=True, W_skip=skip)
    sae = record.to_sae()
    x, y = toy.rows(16, D), toy.rows(16, D, seed=2)
    out = sae.forward(Batch(x=x, target=y))
    np.testing.assert_allclose(out.target, y - x, rtol=1e-6)
    want = sae.decode_in_frame(sae.encode(x)) + x
    np.testing.assert_allclose(sae.reconstruct(x), want, rtol=1e-5, atol=1e-6)
    with self.assertRaisesRegex(ValueError, "skip connection needs the rows"):
      sae.decode(sae.encode(x))

  def test_matching_pursuit_needs_no_encoder(self):
    kind = kinds.Pursuit(0.3, 5)
    record = draw(kind).replace(b_enc=np.zeros((N,), np.float32))
    sae = record.to_sae()
    self.assertIsInstance(sae.encoder, encoders.Tied)
    self.assertEqual(records.from_sae(sae).kind, kind)
    with self.assertRaisesRegex(InputError, "b_enc"):
      draw(kind).to_sae()

  def test_only_known_fields_of_a_site(self):
    self.assertEqual(
      Site(model="a", context=3).known(), {"model": "a", "context": 3}
    )


if __name__ == "__main__":
  absltest.main()
