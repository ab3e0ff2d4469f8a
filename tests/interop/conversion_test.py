"""Conversions keep latents and outputs, prove it, or write nothing."""

import json
import pathlib
import shutil
import warnings
from unittest import mock

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

import saejax
from saejax import durable
from saejax.errors import InputError
from saejax.interop import (
  certificate,
  conversion,
  formats,
  names,
  native,
  saelens,
)
from saejax.sae import activations, gated, jumprelu, prep
from saejax.studies import convert
from tests import toy
from tests.interop import cases


class Conversion(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    self.out = self.folder / "out"

  def saved(self, sae) -> str:
    path = self.folder / "sae"
    saejax.save(sae, path, about={"k": 4})
    return str(path)

  def assert_nothing_written(self):
    left = {p.name for p in self.folder.iterdir()} - {"sae", "rows.npy"}
    self.assertEmpty(left)


SAES = {
  "relu": toy.sae(activation=activations.ReLU()),
  "threshold": toy.sae(activation=activations.Threshold(jnp.float32(0.3))),
  "jumprelu": toy.sae(
    activation=jumprelu.JumpReLU(jnp.linspace(0.1, 0.9, 24)), pre_bias=False
  ),
  "gated": toy.sae(activation=gated.Gate()).replace(
    encoder=gated.init(toy.rows(24, 8)).replace(
      b_gate=0.3 * toy.rows(24), b_mag=0.2 * toy.rows(24)
    )
  ),
  "topk": toy.sae(),
  "abstopk": toy.sae(activation=activations.TopK(4, "magnitude", "signed")),
  "topk_norm": toy.sae(activation=activations.TopK(4, "norm")),
}
AFFINE = prep.Affine(centre=jnp.arange(8.0) / 4, scale=jnp.float32(2.5))


class OursTest(Conversion):
  @parameterized.parameters(*SAES)
  def test_our_sae_in_every_format_that_has_it(self, name):
    sae = SAES[name].replace(prep=AFFINE)
    sae = sae.replace(decoder=sae.decoder.replace(W=1.5 * sae.W_dec))
    folder = self.saved(sae)
    x = 2 * toy.rows(64, 8)
    done = []
    for format in formats.writable():
      try:
        found = conversion.convert(folder, self.folder / format, format)
      except InputError as error:
        self.assertIn(error.field, ("format", "allow_lossy", "fold"), format)
        self.assertFalse((self.folder / format).exists())
        continue
      got = saejax.load(self.folder / format)
      np.testing.assert_allclose(
        got.reconstruct(x), sae.reconstruct(x), rtol=1e-4, atol=1e-5
      )
      if found["latents"] == "same":
        np.testing.assert_allclose(got.encode(x), sae.encode(x), 1e-4, 1e-5)
      self.assertLess(found["written"]["z_error"], 1e-5)
      done.append(format)
    self.assertIn("saelens", done)

  def test_unit_decoder_rows_and_latents_in_their_units(self):
    sae = SAES["threshold"].replace(prep=AFFINE)
    out = self.out
    found = conversion.convert(
      self.saved(sae), out, "saelens", unit_decoder=True
    )
    got = names.read(out).record
    norms = np.linalg.norm(got.W_dec, axis=1)
    np.testing.assert_allclose(norms, 1, rtol=1e-5)
    self.assertEqual(found["latents"], "times the norms of decoder rows")
    self.assertLess(found["written"]["z_error"], 1e-5)

  def test_row_layer_norm_loses_its_epsilon_by_name_alone(self):
    folder = self.saved(toy.sae(prep_=prep.RowLayerNorm()))
    with self.assertRaisesRegex(InputError, "--allow_lossy=layer_norm_eps"):
      conversion.convert(folder, self.out, "saelens")
    self.assert_nothing_written()
    found = conversion.convert(
      folder, self.out, "openai", allow_lossy=["layer_norm_eps"]
    )
    self.assertEqual(found["lossy"], ["layer_norm_eps"])
    self.assertEqual(saejax.load(self.out).prep.undo_eps, 0)

  def test_ranks_become_thresholds_by_name_and_rows_alone(self):
    folder = self.saved(toy.sae())
    convert = lambda **more: conversion.convert(
      folder, self.out, "gemma_scope", **more
    )
    with self.assertRaisesRegex(InputError, "--allow_lossy=threshold"):
      convert()
    with self.assertRaisesRegex(InputError, "needs rows of the site"):
      convert(allow_lossy=["threshold"])
    self.assert_nothing_written()
    np.save(self.folder / "rows.npy", np.asarray(toy.rows(2000, 8)))
    rows = certificate.read_rows(str(self.folder / "rows.npy"))
    found = convert(allow_lossy=["threshold"], rows=rows)
    self.assertEqual(found["lossy"], ["threshold"])
    self.assertEqual(found["rows"]["rows"], 2000)
    after = found["written"]["l0_after"]
    self.assertAlmostEqual(after, found["written"]["l0_before"], delta=0.2)
    self.assertGreater(found["written"]["z_error"], 0.01)

  def test_what_has_no_form_is_named(self):
    with self.assertRaisesRegex(InputError, "Ranked"):
      conversion.convert(
        self.saved(toy.sae(activation=activations.BatchTopK(4))),
        self.out,
        "saelens",
      )
    self.assert_nothing_written()

  def test_signed_latents_are_never_lost_to_thresholds(self):
    folder = self.saved(SAES["abstopk"])
    with self.assertRaisesRegex(
      InputError, "Gemma Scope has no TopK"
    ) as caught:
      conversion.convert(
        folder, self.out, "gemma_scope", allow_lossy=["threshold"]
      )
    self.assertNotIsInstance(caught.exception, formats.Lossy)


class TheirsTest(Conversion):
  @parameterized.parameters(
    "dictionary_learning_AutoEncoder",
    "dictionary_learning_AutoEncoderTopK",
    "gemma_scope_transcoder",
    "qwen_scope",
    "saelens_abstopk",
    "saelens_batchtopk_scaled",
    "saelens_gated_bias",
    "saelens_jumprelu_bias",
    "saelens_jumprelu_skip_transcoder",
    "saelens_pursuit",
    "saelens_topk_layer_norm",
    "saelens_topk_rescale",
    "sparsify_groupmax",
    "sparsify_skip",
  )
  def test_a_client_s_files_in_every_format_that_has_them(self, name):
    case = cases.case(name)
    path = str(cases.path(name))
    settings = {"k": 3} if name == "qwen_scope" else {}
    for format in (names.NATIVE, *formats.writable()):
      out = self.folder / format
      try:
        conversion.convert(
          path, out, format, scale=case.hints.scale, **settings
        )
      except InputError as error:
        self.assertNotEqual(format, names.NATIVE)
        self.assertIn(error.field, ("format", "allow_lossy", "fold"), format)
        continue
      got = np.asarray(saejax.load(out).reconstruct(case.x))
      np.testing.assert_allclose(got, case.x_hat, rtol=1e-4, atol=3e-5)
    self.assertTrue((self.folder / names.NATIVE).exists())


class CertificateTest(Conversion):
  def setUp(self):
    super().setUp()
    self.case = str(cases.path("saelens_jumprelu"))

  def test_it_is_beside_the_files_and_sealed(self):
    found = conversion.convert(self.case, self.out, "gemma_scope")
    read = durable.read_sealed(self.out / "certificate.json")
    self.assertEqual(read, found)
    self.assertEqual(read["source"]["format"], "saelens")
    self.assertEqual(read["rows"]["kind"], "normal")
    self.assertBetween(read["in_saejax"]["l0_before"], 1, 15)
    self.assertLess(read["in_saejax"]["x_hat_error"], 1e-5)

  @parameterized.parameters(
    lambda r: r.replace(W_enc=r.W_enc * np.float32(1.001)),
    lambda r: r.replace(b_dec=r.b_dec + np.float32(1e-3)),
    lambda r: r.replace(subtract_b_dec=not r.subtract_b_dec),
    lambda r: r.replace(kind=type(r.kind)(r.kind.theta * 1.05)),
    lambda r: r.replace(W_dec=np.roll(r.W_dec, 1, axis=0)),
  )
  def test_a_wrong_reader_is_found_and_nothing_written(self, wrong):
    read = saelens.read
    with (
      mock.patch.object(saelens, "read", lambda *a: wrong(read(*a))),
      self.assertRaisesRegex(InputError, "must keep latents and outputs"),
    ):
      conversion.convert(self.case, self.out, "saejax")
    self.assert_nothing_written()

  def test_a_wrong_writer_is_found_and_nothing_written(self):
    write = saelens.write

    def wrong(record):
      return write(record.replace(b_enc=record.b_enc + np.float32(1e-3)))

    with (
      mock.patch.object(saelens, "write", wrong),
      self.assertRaisesRegex(InputError, "must keep latents and outputs"),
    ):
      conversion.convert(self.case, self.out, "saelens")
    self.assert_nothing_written()

  def test_latents_at_their_threshold_are_counted_not_compared(self):
    record = names.read(self.case).record
    kind = record.kind
    x = np.zeros((1, 8), np.float32)
    at = record.b_enc[2] - np.float32(3e-7)  # x is 0: b_enc is the latent
    theta = np.where(np.arange(16) == 2, at, kind.theta)
    near = record.replace(kind=type(kind)(theta))
    far = record.replace(kind=type(kind)(theta + 6e-7))
    rows = certificate.Rows(x, {})
    run = lambda r: native.running(r.to_sae())
    found = certificate.compare(run(near), run(far), near, rows)
    on = bool(record.b_enc[2] > 0)
    self.assertEqual(found.near_threshold, int(on))
    self.assertEqual(found.z_error, 0)
    moved = record.replace(kind=type(kind)(theta + 0.5))
    found = certificate.compare(run(near), run(moved), near, rows)
    self.assertGreater(found.z_error, 0.1)

  def test_rows_of_another_width(self):
    rows = certificate.Rows(np.zeros((3, 5), np.float32), {})
    with self.assertRaisesRegex(InputError, "rows of width 8"):
      conversion.convert(self.case, self.out, "saejax", rows=rows)
    self.assert_nothing_written()

  def test_rows_that_are_none(self):
    bad = self.folder / "rows.npy"
    bad.write_bytes(b"x")
    with self.assertRaisesRegex(InputError, "must be a .npy file"):
      certificate.read_rows(str(bad))
    np.save(bad, np.zeros(3))
    with self.assertRaisesRegex(InputError, r"an array \[rows, d\]"):
      certificate.read_rows(str(bad))

  def test_rows_of_a_store(self):
    x = np.asarray(toy.rows(300, 8))
    store = saejax.write_store(self.folder / "store", x)
    rows = certificate.read_rows(str(store.path), 50)
    self.assertEqual(rows.x.shape, (50, 8))
    self.assertEqual(rows.about["content"], store.content)


class OutputTest(Conversion):
  def setUp(self):
    super().setUp()
    self.case = str(cases.path("saelens_topk"))

  def test_only_an_earlier_conversion_is_replaced(self):
    self.out.mkdir()
    (self.out / "mine.txt").write_text("x")
    with self.assertRaisesRegex(InputError, "a new folder, or an earlier"):
      conversion.convert(self.case, self.out, "sparsify")
    self.assertEqual((self.out / "mine.txt").read_text(), "x")
    shutil.rmtree(self.out)
    conversion.convert(self.case, self.out, "sparsify")
    conversion.convert(self.case, self.out, "saelens")
    self.assertFalse((self.out / "sae.safetensors").exists())
    self.assertTrue((self.out / "sae_weights.safetensors").exists())

  def test_an_earlier_conversion_survives_a_failure(self):
    conversion.convert(self.case, self.out, "sparsify")
    with self.assertRaises(InputError):
      conversion.convert(self.case, self.out, "gemma_scope")
    self.assertEqual(saejax.load(self.out).n, 16)
    self.assertLen(list(self.folder.iterdir()), 1)

  @parameterized.parameters(
    ({"format": "nonsense"}, "format=nonsense: must be one of saejax, saelens"),
    ({"format": "qwen_scope"}, "format=qwen_scope: must be one of"),
    ({"allow_lossy": ["all"]}, "allow_lossy=all: must be among threshold"),
    ({"source": "openai"}, "must have one .pt file"),
    ({"name": "/no/such"}, "not there"),
  )
  def test_settings(self, changes, part):
    given = {"name": self.case, "format": "saelens", **changes}
    with self.assertRaisesRegex(InputError, part):
      conversion.convert(output=self.out, **given)
    self.assert_nothing_written()

  def test_a_folder_that_cannot_be_written_to(self):
    (self.folder / "file").write_text("")
    with self.assertRaisesRegex(InputError, "output="):
      conversion.convert(self.case, self.folder / "file" / "out", "saelens")


class CommandTest(Conversion):
  def test_it_prints_the_errors_and_writes_the_files(self):
    config = convert.Config(
      input=str(cases.path("saelens_topk")),
      output=str(self.out),
      format="dictionary_learning",
    )
    with mock.patch("builtins.print") as shown:
      convert.main(config)
    text = "\n".join(str(call.args[0]) for call in shown.call_args_list)
    self.assertRegex(text, r"written +max error z \S+, x_hat \S+; L0 3 -> 3")
    written = json.loads((self.out / "config.json").read_text())
    self.assertEqual(written["trainer"]["dict_class"], "AutoEncoderTopK")

  def test_k_makes_a_batchtopk_dictionary_of_one_threshold(self):
    folder = self.saved(SAES["threshold"])
    conversion.convert(folder, self.out, "dictionary_learning", k=4)
    config = json.loads((self.out / "config.json").read_text())
    self.assertEqual(config["trainer"]["dict_class"], "BatchTopKSAE")
    self.assertEqual(config["trainer"]["k"], 4)
    self.assertEqual(names.read(self.out).record.kind.k, 4)

  def test_a_scale_that_no_file_has_is_a_warning(self):
    folder = self.folder / "sae"
    shutil.copytree(cases.path("saelens_old_topk"), folder)
    cfg = json.loads((folder / "cfg.json").read_text())
    cfg["normalize_activations"] = True
    (folder / "cfg.json").write_text(json.dumps(cfg))
    with warnings.catch_warnings(record=True) as caught:
      warnings.simplefilter("always")
      plain = saejax.load(folder)
    self.assertIn("weights are taken as folded", str(caught[0].message))
    scaled = saejax.load(folder, scale=2.0)
    np.testing.assert_allclose(scaled.W_enc, 2 * plain.W_enc)


if __name__ == "__main__":
  absltest.main()
