"""Bugs that users met in other libraries' readers and writers are not ours.

Each test names the report, as in "SAELens 308". Where a release and a numerical
check exist, `golden_test` and `formats_test` have more.
"""

import json
import pathlib
import shutil
from unittest import mock

import jax.numpy as jnp
import ml_dtypes
import numpy as np
from absl.testing import absltest, parameterized
from safetensors import numpy as safetensors

import saejax
from saejax.errors import InputError
from saejax.interop import conversion, folds, kinds, names, torch_writer
from saejax.models import torch_file
from saejax.sae import prep
from tests import toy
from tests.interop import cases


class UpstreamTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)

  def copy(self, name: str) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(cases.path(name), self.folder / name))

  def l0(self, sae, name: str) -> float:
    return float((sae.encode(cases.case(name).x) != 0).sum(-1).mean())

  @parameterized.parameters("saelens_old_topk", "saelens_topk", "sparsify_topk")
  def test_topk_is_not_read_as_relu(self, name):
    """SAELens 308, 553: L0 600 instead of 80."""
    self.assertEqual(self.l0(saejax.load(cases.path(name)), name), 3)

  def test_a_fold_does_not_forget_b_dec(self):
    """SAELens 354."""
    record = names.read(cases.path("saelens_standard")).record
    self.assertTrue(record.subtract_b_dec and np.any(record.b_dec))
    folded = folds.scales(record, 2.0, 2.0)
    np.testing.assert_allclose(folded.b_dec, record.b_dec / 2)
    x = toy.rows(9, 8)
    np.testing.assert_allclose(
      folded.to_sae().reconstruct(x / 2),
      record.to_sae().reconstruct(x) / 2,
      rtol=1e-5,
      atol=1e-6,
    )

  def test_a_gated_sae_has_both_heads(self):
    """SAELens 208: gated files failed to load; they have no b_enc."""
    found = names.read(cases.path("saelens_gated"))
    self.assertNotIn("b_enc", found.files.keys("sae_weights.safetensors"))
    self.assertIsInstance(found.record.kind, kinds.Gate)

  def test_a_scaled_threshold_is_in_units_of_the_scaled_decoder(self):
    """SAELens 763: the threshold of an exported BatchTopK was off by s."""
    case = cases.case("saelens_batchtopk_scaled")
    record = case.read().record
    stored = case.files.tensors("sae_weights.safetensors").arrays
    want = float(stored["topk_threshold"]) / cases.SCALE
    np.testing.assert_allclose(record.kind.theta, want, rtol=1e-6)
    l0 = np.mean((case.z != 0).sum(1))
    self.assertAlmostEqual(self.l0(record.to_sae(), case.name), l0, places=5)

  def test_decoder_norms_are_not_folded_under_ranks(self):
    """SAELens 463: folds that are safe for some SAEs and not for others."""
    with self.assertRaisesRegex(InputError, "would keep other latents"):
      conversion.convert(
        str(cases.path("saelens_topk")),
        self.folder / "out",
        "saelens",
        unit_decoder=True,
      )

  def test_a_threshold_that_was_never_estimated_is_refused(self):
    """dictionary_learning: -1 makes a BatchTopK SAE a dense ReLU."""
    folder = self.copy("dictionary_learning_BatchTopKSAE")
    read = torch_file.read(folder / "ae.pt")
    content = {key: np.array(value) for key, value in read.items()}
    content["threshold"] = np.asarray(-1, np.float32)
    torch_writer.write(folder / "ae.pt", content)
    with self.assertRaisesRegex(InputError, "threshold is -1.*pass k"):
      saejax.load(folder)
    found = names.read(folder, k=3)
    sae, x = found.record.to_sae(), cases.case(folder.name).x
    self.assertEqual(self.l0(sae, folder.name), 3)
    got = sae.encode(x), sae.reconstruct(x)
    cases.assert_same(self, found.forward()(np.float64(x)), got)

  def test_a_training_checkpoint_without_a_threshold_is_refused(self):
    """SAELens: the average starts at 0."""
    folder = self.copy("saelens_batchtopk")
    path = folder / "sae_weights.safetensors"
    arrays = {k: v.copy() for k, v in safetensors.load_file(path).items()}
    arrays["topk_threshold"] = np.asarray(0.0)
    safetensors.save_file(arrays, path)
    with self.assertRaisesRegex(InputError, "never estimated"):
      saejax.load(folder)

  def test_old_logarithms_of_thresholds_are_thresholds(self):
    """SAELens, pull request 718."""
    folder = self.copy("saelens_jumprelu")
    path = folder / "sae_weights.safetensors"
    arrays = {k: v.copy() for k, v in safetensors.load_file(path).items()}
    theta = arrays.pop("threshold")
    safetensors.save_file(arrays | {"log_threshold": np.log(theta)}, path)
    np.testing.assert_allclose(
      saejax.load(folder).activation.theta, theta, 1e-6
    )

  def test_backups_of_the_same_name_have_their_weights_under_ae(self):
    """dictionary_learning: ae.pt of another structure."""
    folder = self.copy("dictionary_learning_AutoEncoderNew")
    want = saejax.load(folder).W_dec
    read = torch_file.read
    backup = lambda *a, **k: {
      "step": 3,
      "ae": read(*a, **k),
      "norm_factor": 1.0,
    }
    with mock.patch.object(torch_file, "read", backup):
      np.testing.assert_array_equal(saejax.load(folder).W_dec, want)

  def test_num_latents_0_is_the_expansion_factor(self):
    """SAELens' reader of sparsify takes 0 for the width."""
    folder = self.copy("sparsify_topk")
    cfg = json.loads((folder / "cfg.json").read_text())
    self.assertEqual(cfg["num_latents"], 0)
    self.assertEqual(saejax.load(folder).n, 16)
    cfg["expansion_factor"] = 3
    (folder / "cfg.json").write_text(json.dumps(cfg))
    with self.assertRaisesRegex(InputError, r"\[24\] \(n by cfg.json\)"):
      saejax.load(folder)

  def test_sparsify_subtracts_b_dec_whatever_the_decoder_s_norm(self):
    """SAELens' reader of sparsify sets it by normalize_decoder."""
    folder = self.copy("sparsify_topk")
    for value in (True, False):
      cfg = json.loads((folder / "cfg.json").read_text())
      cfg["normalize_decoder"] = value
      (folder / "cfg.json").write_text(json.dumps(cfg))
      self.assertTrue(saejax.load(folder).pre_bias)

  def test_three_axes_are_rows_of_two(self):
    """sparsify 79: top-k over the wrong axis of unflattened rows."""
    sae = saejax.load(cases.path("sparsify_topk"))
    x = cases.case("sparsify_topk").x
    z = sae.encode(x.reshape(4, 6, 8))
    np.testing.assert_allclose(
      z.reshape(24, 16), sae.encode(x), rtol=1e-5, atol=1e-6
    )

  def test_thresholds_are_never_of_less_than_float32(self):
    """SAELens, pull request 728, and casts of thresholds to bfloat16."""
    folder = self.copy("saelens_jumprelu")
    cfg = json.loads((folder / "cfg.json").read_text()) | {"dtype": "bfloat16"}
    (folder / "cfg.json").write_text(json.dumps(cfg))
    theta = np.asarray(saejax.load(folder).activation.theta)
    rounded = theta.astype(ml_dtypes.bfloat16).astype(np.float32)
    self.assertTrue(np.any(theta != rounded))

  def test_statistics_of_rows_are_not_spent_by_a_decode(self):
    """SAELens: a second decode after one encode fails, which SAEBench does."""
    sae = saejax.load(cases.path("saelens_layer_norm"))
    x = cases.case("saelens_layer_norm").x
    frame, statistics = sae.prep.apply(jnp.asarray(x))
    del frame
    first, second = (sae.decode(sae.encode(x), statistics) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    with self.assertRaisesRegex(ValueError, "without the rows' mean"):
      sae.decode(sae.encode(x))

  def test_rows_are_normalised_in_training_and_inference_alike(self):
    """openai/sparse_autoencoder 19: train.py leaves the layer norm out."""
    sae = toy.sae(prep_=prep.RowLayerNorm(undo_eps=0.0))
    x = toy.rows(5, 8)
    out = sae.forward(x, train=True)
    np.testing.assert_allclose(
      sae.prep.undo(out.x_hat, out.statistics), sae.reconstruct(x), rtol=1e-6
    )

  def test_the_version_is_written_so_that_metadata_is_read(self):
    """SAELens: without a version, hook and model names are dropped."""
    out = self.folder / "out"
    conversion.convert(str(cases.path("saelens_topk")), out, "saelens")
    metadata = json.loads((out / "cfg.json").read_text())["metadata"]
    self.assertGreaterEqual(metadata["sae_lens_version"], "6")
    self.assertEqual(metadata["hook_name"], "blocks.3.hook_resid_post")

  def test_a_transcoder_s_width_is_written(self):
    """SAELens: d_out defaults to 768."""
    out = self.folder / "out"
    conversion.convert(str(cases.path("saelens_transcoder")), out, "saelens")
    self.assertEqual(json.loads((out / "cfg.json").read_text())["d_out"], 6)

  def test_equal_names_in_another_layout_are_not_mistaken(self):
    """Qwen Scope has W_enc and W_dec transposed against SAELens."""
    record = names.read(cases.path("qwen_scope"), k=3).record
    self.assertEqual((record.n, record.d), (16, 8))

  def test_a_square_matrix_does_not_hide_the_layout(self):
    """d = n: the names and files decide, not the shapes."""
    square = np.arange(16, dtype=np.float32).reshape(4, 4)
    bias = np.ones((4,), np.float32)
    t = {"encoder_linear.weight": square, "encoder_linear.bias": bias}
    t |= {"decoder_linear.weight": 2 * square, "decoder_linear.bias": bias}
    torch_writer.write(self.folder / "a.pt", t)
    sae = saejax.load(self.folder)
    np.testing.assert_array_equal(sae.W_enc, square)
    np.testing.assert_array_equal(sae.W_dec, 2 * square.T)


if __name__ == "__main__":
  absltest.main()
