"""saejax/models/taps.py: what sites are called."""

import dataclasses

import jax.numpy as jnp
from absl.testing import absltest, parameterized

from saejax import errors
from saejax.models import model as model_lib
from saejax.models import taps
from tests.models import golden

FAMILIES = (
  "bert", "gpt2", "llama_gqa_tied", "gpt_neox_parallel", "gemma2_caps_windows",
)  # fmt: skip
POINTS = golden.FIVE


class Base(parameterized.TestCase):
  def load(self, case):
    model = model_lib.load(golden.folder(self.create_tempdir(), case))
    want = golden.expected(case)
    return model, jnp.asarray(want["ids"]), jnp.asarray(want["mask"])


class NamesTest(Base):
  @parameterized.product(
    layer=[0, 1, 11], point=POINTS, family=["gpt2", "llama", None]
  )
  def test_own_and_transformer_lens_names(self, layer, point, family):
    for name in (f"layers.{layer}.{point}", f"blocks.{layer}.hook_{point}"):
      self.assertEqual(taps.parse(name, family), (layer, point))

  @parameterized.parameters(
    ("blocks.3.attn.hook_z", 3, "z"),
    ("blocks.3.attn.hook_q", 3, "q"),
    ("blocks.3.attn.hook_k", 3, "k"),
    ("blocks.3.attn.hook_v", 3, "v"),
    ("blocks.3.mlp.hook_post", 3, "mlp_hidden"),
    ("blocks.3.ln2.hook_normalized", 3, "mlp_in"),
    ("ln_final.hook_normalized", None, "final_norm"),
    ("hook_embed", None, "embed"),
    ("embed", None, "embed"),
    ("final_norm", None, "final_norm"),
    ("layers.3.mlp_in", 3, "mlp_in"),
    ("layers.3.z", 3, "z"),
  )
  def test_names_of_the_inner_points(self, name, layer, point):
    for one in ("gpt2", "gpt_neox", None):
      self.assertEqual(taps.parse(name, one), (layer, point))

  def test_rms_norms_of_transformer_lens_are_before_the_gain(self):
    for name in ("blocks.3.ln2.hook_normalized", "ln_final.hook_normalized"):
      with self.assertRaises(errors.InputError):
        taps.parse(name, "llama")

  @parameterized.parameters(
    ("encoder.layer.3", "resid_post"),
    ("encoder.layer.3:in", "resid_pre"),
    ("bert.encoder.layer.3.output", "resid_post"),
    ("encoder.layer.3.output.LayerNorm", "resid_post"),
    ("encoder.layer.3.attention.output.LayerNorm", "resid_mid"),
    ("encoder.layer.3.attention.output.dense", "attn_out"),
    ("encoder.layer.3.output.dense:out", "mlp_out"),
    ("model.layers.3", "resid_post"),
    ("layers.3", "resid_post"),
    ("model.layers.3:in", "resid_pre"),
    ("model.layers.3.post_attention_layernorm:in", "resid_mid"),
    ("model.layers.3.self_attn", "attn_out"),
    ("model.layers.3.mlp.down_proj", "mlp_out"),
    ("transformer.h.3", "resid_post"),
    ("h.3:in", "resid_pre"),
    ("transformer.h.3.ln_2:in", "resid_mid"),
    ("transformer.h.3.attn", "attn_out"),
    ("h.3.mlp", "mlp_out"),
    ("h.3.mlp.act", "mlp_hidden"),
    ("h.3.attn.c_proj:in", "z"),
    ("model.layers.3.self_attn.q_proj", "q"),
    ("model.layers.3.mlp:in", "mlp_in"),
    ("gpt_neox.layers.3", "resid_post"),
    ("gpt_neox.layers.3.attention.dense:in", "z"),
    ("model.layers.3.post_feedforward_layernorm", "mlp_out"),
    ("model.language_model.layers.3", "resid_post"),
  )
  def test_modules_of_transformers(self, name, point):
    self.assertEqual(taps.parse(name), (3, point))

  @parameterized.parameters(
    "resid_post",
    "layers.3.resid",
    "layers.-1.resid_post",
    "blocks.3.attn.hook_rot_q",
    "blocks.3.hook_mlp_in",  # before the norm there
    "model.layers.3.post_attention_layernorm",  # another point in each family
    "model.layers.3.self_attn:in",
    "h.3.attn.c_attn",  # three points
    "embed.3",
    "layers.embed",
    "layers.3.final_norm",
    "xlayers.3.resid_post",
  )
  def test_other_names_are_refused_with_the_points(self, name):
    with self.assertRaisesRegex(
      errors.InputError, "resid_pre, q, k, .*resid_mid, "
    ):
      taps.parse(name)

  def test_names_of_another_family_are_refused_where_it_is_known(self):
    with self.assertRaises(errors.InputError):
      taps.parse("transformer.h.3", "llama")
    name = "model.layers.3.post_attention_layernorm"
    self.assertEqual(taps.parse(name, "llama"), (3, "mlp_in"))
    self.assertEqual(taps.parse(name, "gemma2"), (3, "attn_out"))

  def test_bert_residuals_of_transformer_lens_lie_before_the_norm(self):
    for point in ("resid_mid", "resid_post"):
      with self.assertRaises(errors.InputError):
        taps.parse(f"blocks.0.hook_{point}", "bert")
      normed = taps.parse(f"blocks.0.hook_normalized_{point}", "bert")
      self.assertEqual(normed, (0, point))

  @parameterized.parameters(*FAMILIES)
  def test_a_site_parses_back_to_its_layer_and_point(self, case):
    model, _, _ = self.load(case)
    for point in model_lib.FAMILIES[model.family].points(model.config):
      layer = None if point in ("embed", "final_norm") else 1
      site = taps.resolve(model, layer, point)
      self.assertEqual(site, taps.resolve(model.config, layer, point))
      suffix = ":in" if site.port == "in" else ""
      names = [site.name, site.module + suffix]
      if site.layout not in ("BTD", "BT(HD)"):  # three points of one module
        with self.assertRaises(errors.InputError):
          taps.parse(names.pop(), model.family)
      for name in names:
        self.assertEqual(taps.parse(name, model.family), (layer, point))
      self.assertEqual(
        (site.call, site.rows, site.branch, site.pool),
        (-1, "mask", "both", "none"),
      )

  def test_points_outside_layers_have_the_layer_that_they_touch(self):
    model, _, _ = self.load("gpt2")
    for point, layer in (("embed", 0), ("final_norm", 1)):
      site = taps.resolve(model, layer, point)
      self.assertEqual(site, taps.resolve(model, None, point))
      self.assertEqual(site.name, point)
      with self.assertRaisesRegex(
        errors.InputError, f"harvest.layer={1 - layer}: must be {layer} for"
      ):
        taps.resolve(model, 1 - layer, point)
    with self.assertRaisesRegex(errors.InputError, "harvest.layer=None"):
      taps.resolve(model, None, "resid_post")

  def test_points_that_a_model_lacks_are_refused(self):
    for case, point in (
      ("gpt_neox_parallel", "resid_mid"),
      ("bert", "final_norm"),
    ):
      model, ids, mask = self.load(case)
      with self.assertRaisesRegex(errors.InputError, "must be a point of the"):
        taps.resolve(model, 0, point)
    model, ids, mask = self.load("gpt_neox_parallel")
    with self.assertRaisesRegex(errors.InputError, "must be a point of the"):
      taps.read(model, ids, mask, ["blocks.0.hook_resid_mid"])

  @parameterized.parameters(2, -1, 99, True)
  def test_unknown_layer_lists_the_layers(self, layer):
    model, _, _ = self.load("bert")
    with self.assertRaisesRegex(
      errors.InputError, rf"^harvest.layer={layer}: .*has 2; choose.* 0, 1$"
    ):
      taps.resolve(model, layer, "resid_post")

  def test_absurdly_many_layers_are_listed_in_part(self):
    model, _, _ = self.load("gpt2")
    config = dataclasses.replace(model.config, layers=10**12)
    with self.assertRaisesRegex(errors.InputError, r"0, 1, .* 199, \.\.\.$"):
      taps.resolve(config, -1, "resid_post")

  def test_unknown_point_lists_the_points(self):
    model, _, _ = self.load("bert")
    with self.assertRaisesRegex(
      errors.InputError, "^harvest.point=resid: .*resid_pre, q, k, .*resid_mid"
    ):
      taps.resolve(model, 0, "resid")


if __name__ == "__main__":
  absltest.main()
