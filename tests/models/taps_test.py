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
      with self.assertRaisesRegex(
        errors.InputError, "edits=layers.0.mlp_out: .* must return float32"
      ):
        edits = {"layers.0.mlp_out": edit}
        jax.eval_shape(functools.partial(taps.write, edits=edits), *batch)

  def test_an_unknown_or_doubled_site_is_refused(self):
    model, ids, mask = self.load("gpt2")
    with self.assertRaises(errors.InputError):
      taps.write(model, ids, mask, {"layers.2.mlp_out": lambda h: h})
    twice = {"layers.0.mlp_out": jnp.zeros_like, "h.0.mlp": jnp.zeros_like}
    with self.assertRaisesRegex(errors.InputError, "edits=.*different sites"):
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
