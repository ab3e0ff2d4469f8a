"""saejax/models/taps.py: what sites are called, reading and rewriting them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from saejax import errors
from saejax.models import family, ops, taps
from saejax.models import model as model_lib
from tests.models import golden

FAMILIES = (
  "bert", "gpt2", "llama_gqa_tied", "gpt_neox_parallel", "gemma2_caps_windows",
)  # fmt: skip
PRE_NORM = (
  "gpt2", "llama_gqa_tied", "llama_mha_biased", "gpt2_bare",
  "gemma3_text_local_global", "gpt_neox_sequential_tied", "qwen3_dynamic",
)  # fmt: skip
POINTS = golden.FIVE


@jax.jit
def run(model, ids, mask):
  return model(ids, mask)


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


class ReadTest(Base):
  @parameterized.parameters(*FAMILIES)
  def test_output_of_a_layer_is_exactly_the_input_of_the_next(self, case):
    model, ids, mask = self.load(case)
    names = ["layers.0.resid_post", "layers.1.resid_pre"]
    got = taps.read(model, ids, mask, names)
    np.testing.assert_array_equal(got[names[0]], got[names[1]])

  @parameterized.parameters(*PRE_NORM)
  def test_residual_stream_is_the_sum_of_its_parts(self, case):
    model, ids, mask = self.load(case)
    names = [f"layers.{l}.{p}" for l in (0, 1) for p in POINTS]
    got = taps.read(model, ids, mask, names)
    for layer in (0, 1):
      names = [f"layers.{layer}.{point}" for point in POINTS]
      pre, mid, post, attn, mlp = (got[name] for name in names)
      scale = float(jnp.abs(post).max())
      np.testing.assert_allclose(pre + attn, mid, rtol=0, atol=1e-5 * scale)
      np.testing.assert_allclose(
        pre + attn + mlp, post, rtol=0, atol=1e-5 * scale
      )

  @parameterized.parameters(*golden.CASES)
  def test_shapes_are_those_of_the_points(self, case):
    model, ids, mask = self.load(case)
    read = functools.partial(taps.read, sites=golden.sites(model.config))
    got = jax.eval_shape(read, model, ids, mask)
    for name, h in got.items():
      shape = family.shape(model.config, name.split(".")[-1])
      self.assertEqual(h.shape, (*ids.shape, *shape), name)

  def test_parts_of_attention_are_those_of_the_definition(self):
    # Without rotary positions in between, and with: k at position 0.
    model, ids, mask = self.load("gpt2")
    names = [f"layers.0.{point}" for point in ("q", "k", "v", "z", "attn_out")]
    q, k, v, z, out = taps.read(model, ids, mask, names).values()
    scores = jnp.einsum("bthd,bshd->bhts", q, k) * model.config.head**-0.5
    seen = ops.causal(mask)[:, None]
    p = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1)
    want = jnp.einsum("bhts,bshd->bthd", p, v)
    np.testing.assert_allclose(z[0], want[0], atol=1e-5)
    W, b = model.params["layers"][0]["out"]
    want = z.reshape(*ids.shape, -1) @ W + b[None, None]
    np.testing.assert_allclose(out, want, atol=1e-5)

  def test_logits_are_those_of_the_normed_last_residual(self):
    model, ids, mask = self.load("gpt2")
    post = taps.read(model, ids, mask, ["layers.1.resid_post"])
    h = np.asarray(post["layers.1.resid_post"], np.float64)
    h = (h - h.mean(-1, keepdims=True)) / np.sqrt(
      h.var(-1, keepdims=True) + model.config.eps
    )
    gain, bias = model.params["norm"]
    logits = (h * np.asarray(gain) + np.asarray(bias)) @ np.asarray(
      model.params["token"], np.float64
    ).T
    got = np.asarray(run(model, ids, mask))
    np.testing.assert_allclose(got, logits, atol=1e-4 * np.abs(logits).max())

  def test_results_have_the_names_asked_for(self):
    model, ids, mask = self.load("gpt2")
    names = ["blocks.0.hook_resid_post", "transformer.h.0", "layers.0.mlp_out"]
    got = taps.read(model, ids, mask, names)
    self.assertEqual(list(got), names)
    np.testing.assert_array_equal(got[names[0]], got[names[1]])

  @parameterized.parameters(*FAMILIES)
  def test_later_layers_are_removed_by_the_compiler(self, case):
    model, ids, mask = self.load(case)

    def flops(run):
      compiled = jax.jit(run).lower(model, ids, mask).compile()
      return compiled.cost_analysis()["flops"]

    def early(layer):
      name = f"layers.{layer}.resid_post"
      return lambda *args: taps.read(*args, [name])

    first, second = flops(early(0)), flops(early(1))
    whole = flops(lambda model, ids, mask: model(ids, mask))
    self.assertLess(first, 0.6 * second)
    self.assertLessEqual(second, whole)


class WriteTest(Base):
  @parameterized.parameters(*FAMILIES)
  def test_identity_leaves_every_bit_of_the_output(self, case):
    model, ids, mask = self.load(case)
    edits = {name: lambda h: h for name in golden.sites(model.config)}
    written = jax.jit(functools.partial(taps.write, edits=edits))
    np.testing.assert_array_equal(
      written(model, ids, mask), run(model, ids, mask)
    )

  @parameterized.parameters(*PRE_NORM)
  def test_zeroed_attention_and_mlp_skip_the_block(self, case):
    model, ids, mask = self.load(case)
    edits = {
      "layers.1.attn_out": jnp.zeros_like,
      "layers.1.mlp_out": jnp.zeros_like,
    }
    written = jax.jit(functools.partial(taps.write, edits=edits))
    config = dataclasses.replace(model.config, layers=1)
    params = model.params | {"layers": model.params["layers"][:1]}
    shorter = model.replace(params=params, config=config)
    np.testing.assert_allclose(
      written(model, ids, mask), run(shorter, ids, mask), rtol=1e-5, atol=1e-5
    )

  @parameterized.parameters(*golden.CASES)
  def test_an_edit_of_any_point_changes_the_output(self, case):
    model, ids, mask = self.load(case)
    names = golden.sites(model.config)

    @jax.jit  # one program for all sites
    def scaled(model, factors):
      edits = {
        name: lambda h, c=factors[i]: h * c for i, name in enumerate(names)
      }
      return taps.write(model, ids, mask, edits)

    want = scaled(model, np.ones(len(names), np.float32))
    scale = float(jnp.abs(want).max())
    for i, name in enumerate(names):
      got = scaled(model, np.float32(np.arange(len(names)) != i))
      self.assertGreater(float(jnp.abs(got - want).max()), 1e-3 * scale, name)
      self.assertTrue(np.isfinite(np.asarray(got)).all(), name)

  def test_a_head_can_be_ablated(self):
    model, ids, mask = self.load("gpt2")

    @jax.jit
    def ablated(model):
      edit = {"blocks.0.attn.hook_z": lambda z: z.at[:, :, 1].set(0)}
      return taps.write(model, ids, mask, edit)

    layer = model.params["layers"][0]
    head = model.config.head
    W = layer["out"].W.at[head : 2 * head].set(0)
    layer = layer | {"out": layer["out"]._replace(W=W)}
    layers = (layer, *model.params["layers"][1:])
    without = model.replace(params=model.params | {"layers": layers})
    want = run(without, ids, mask)
    np.testing.assert_allclose(ablated(model), want, atol=1e-5)

  @parameterized.parameters(
    "bert", "gpt2", "llama_gqa_tied", "gemma2_caps_windows"
  )
  def test_an_edit_reaches_what_comes_after_and_nothing_before(self, case):
    model, ids, mask = self.load(case)
    names = []

    @jax.jit
    def rolled(model):
      found = {}

      # Neither norm undoes a rotation of the entries.
      def tap(name, h):
        names.append(name)
        edit = name == "layers.0.resid_mid"
        found[name] = jnp.roll(h, 1, axis=-1) if edit else h
        return found[name]

      model(ids, mask, tap=tap)
      return found

    found = rolled(model)
    plain = taps.read(model, ids, mask, names)
    changed = names.index("layers.0.resid_mid")
    for i, name in enumerate(names):
      difference = float(jnp.abs(found[name] - plain[name]).max())
      if i < changed:
        self.assertLess(difference, 1e-4, name)
      else:
        self.assertGreater(difference, 1e-2, name)

  def test_an_edit_may_not_change_shape_or_dtype(self):
    batch = self.load("gpt2")
    for edit in (lambda h: h[..., :-1], lambda h: h.astype(jnp.bfloat16)):
      with self.assertRaisesRegex(ValueError, "layers.0.mlp_out must return"):
        edits = {"layers.0.mlp_out": edit}
        jax.eval_shape(functools.partial(taps.write, edits=edits), *batch)

  def test_an_unknown_or_doubled_site_is_refused(self):
    model, ids, mask = self.load("gpt2")
    with self.assertRaises(errors.InputError):
      taps.write(model, ids, mask, {"layers.2.mlp_out": lambda h: h})
    twice = {"layers.0.mlp_out": jnp.zeros_like, "h.0.mlp": jnp.zeros_like}
    with self.assertRaisesRegex(ValueError, "different sites"):
      taps.write(model, ids, mask, twice)

  def test_gradients_flow_through_a_write(self):
    model, ids, mask = self.load("llama_gqa_tied")

    @jax.jit
    @jax.grad
    def gradient(scale):
      edits = {"layers.0.resid_post": lambda h: h * scale}
      return taps.write(model, ids, mask, edits).mean()

    slope = float(gradient(1.0))
    self.assertTrue(np.isfinite(slope))
    self.assertNotEqual(slope, 0)


if __name__ == "__main__":
  absltest.main()
