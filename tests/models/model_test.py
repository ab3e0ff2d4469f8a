"""saejax/models/model.py: loading, padding, and what is refused."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from absl.testing import absltest, parameterized

import saejax.models
from saejax import errors
from saejax.models import generate, taps
from saejax.models import model as model_lib
from tests.models import golden

FAMILIES = (
  "bert", "gpt2", "llama_scaled_rope", "gemma2_caps_windows",
  "gpt_neox_parallel", "phi3_longrope",
)  # fmt: skip
UNTIED = (  # with the architectures that have no language head
  ("gpt2_untied_scaled", "GPT2Model"),
  ("llama_linear_rope", "LlamaForSequenceClassification"),
  ("llama_mha_biased", None),
)
T = 9


@jax.jit
def run(model, ids, mask):
  return model(ids, mask)


class LoadTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.path = pathlib.Path(self.create_tempdir().full_path)

  def output(self, folder):
    want = golden.expected("gpt2")
    model = model_lib.load(str(folder))
    return run(model, jnp.asarray(want["ids"]), jnp.asarray(want["mask"]))

  def test_exported_name(self):
    self.assertIs(saejax.models.load, model_lib.load)

  @parameterized.parameters(*golden.CASES)
  def test_sizes(self, case):
    model = model_lib.load(golden.folder(self.path, case))
    sizes = model.family, model.d, model.layers, model.vocabulary
    widths = (16, 2, 24) if case in golden.SMALL else (24, 2, 40)
    self.assertEqual(sizes, (golden.config(case)["model_type"], *widths))
    self.assertEqual(model.name, str(self.path))
    hash(model.config)  # static under jit
    for leaf in jax.tree.leaves(model):
      self.assertEqual(leaf.dtype, jnp.float32)

  def test_bfloat16(self):
    folder = golden.folder(self.path, "llama_gqa_tied")
    exact = model_lib.load(folder)
    model = model_lib.load(folder, dtype="bfloat16")
    for leaf in jax.tree.leaves(model):
      self.assertEqual(leaf.dtype, jnp.bfloat16)
    want = golden.expected("llama_gqa_tied")
    ids, mask = jnp.asarray(want["ids"]), jnp.asarray(want["mask"])
    got = run(model, ids, mask)
    self.assertEqual(got.dtype, jnp.bfloat16)
    real = want["mask"]
    error = (
      np.asarray(got, np.float32)[real]
      - np.asarray(run(exact, ids, mask))[real]
    )
    self.assertLess(np.sqrt((error**2).mean()), 0.05 * want["output"].std())
    with self.assertRaisesRegex(ValueError, "float32 or bfloat16"):
      model_lib.load(folder, dtype="float16")

  @parameterized.parameters(*FAMILIES)
  def test_every_family_runs_in_bfloat16(self, case):
    model = model_lib.load(golden.folder(self.path, case), dtype="bfloat16")
    out = run(model, jnp.ones((2, T), jnp.int32), jnp.ones((2, T), bool))
    self.assertEqual(out.dtype, jnp.bfloat16)
    self.assertTrue(bool(jnp.isfinite(out).all()))

  def test_checkpoints_stored_in_bfloat16_are_read_in_float32(self):
    tensors = golden.weights("gpt2")
    halved = {k: v.astype(jnp.bfloat16) for k, v in tensors.items()}
    model = model_lib.load(golden.folder(self.path, "gpt2", tensors=halved))
    rounded = tensors["transformer.wte.weight"].astype(jnp.bfloat16)
    np.testing.assert_array_equal(
      model.params["token"], rounded.astype(np.float32)
    )

  @parameterized.parameters(
    "gpt2",
    "llama_gqa_tied",
    "bert",
    "gemma_shared_key",
    "gpt_neox_sequential_tied",
  )
  def test_base_prefix_may_be_there_or_not(self, case):
    prefix = model_lib.FAMILIES[golden.config(case)["model_type"]].prefix
    tensors = golden.weights(case)
    bare = {k.removeprefix(prefix): v for k, v in tensors.items()}
    full = {prefix + k: v for k, v in bare.items()}
    leaves = []
    for i, names in enumerate((bare, full)):
      folder = golden.folder(self.path / str(i), case, tensors=names)
      leaves.append(jax.tree.leaves(model_lib.load(folder)))
    for a, b in zip(*leaves, strict=True):
      np.testing.assert_array_equal(a, b)

  def test_layer_norm_parameters_may_have_their_first_names(self):
    renamed = {}
    for key, value in golden.weights("bert").items():
      key = key.replace("LayerNorm.weight", "LayerNorm.gamma")
      renamed[key.replace("LayerNorm.bias", "LayerNorm.beta")] = value
    a = model_lib.load(golden.folder(self.path / "a", "bert"))
    b = model_lib.load(golden.folder(self.path / "b", "bert", tensors=renamed))
    for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True):
      np.testing.assert_array_equal(x, y)

  def test_shards_equal_the_single_file(self):
    whole = self.output(golden.folder(self.path / "whole", "gpt2"))
    folder = self.path / "shards"
    golden.folder(folder, "gpt2")
    (folder / "model.safetensors").unlink()
    tensors = golden.weights("gpt2")
    places = {k: f"model-{i % 3}.safetensors" for i, k in enumerate(tensors)}
    for file in set(places.values()):
      shard = {k: v for k, v in tensors.items() if places[k] == file}
      safetensors.numpy.save_file(shard, folder / file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    np.testing.assert_array_equal(self.output(folder), whole)
    (folder / "model-1.safetensors").unlink()
    with self.assertRaisesRegex(errors.InputError, "model-1.safetensors"):
      model_lib.load(str(folder))
    for hostile in (
      *golden.HOSTILE.values(),
      b"{}",
      b'{"weight_map": 3}',
      b'{"weight_map": {}}',
      b'{"weight_map": {"a": 3}}',
      b'{"weight_map": {"a": ["b"]}}',
      b'{"weight_map": {"a": "../other/model.safetensors"}}',
    ):
      index.write_bytes(hostile)
      with self.assertRaisesRegex(errors.InputError, "index.json: [^\n]*$"):
        model_lib.load(str(folder))

  @parameterized.parameters(*UNTIED)
  def test_a_checkpoint_without_a_language_head_loads(self, case, architecture):
    tensors = golden.weights(case)
    whole = model_lib.load(golden.folder(self.path / "whole", case))
    del tensors["lm_head.weight"]
    tensors["score.weight"] = np.ones((2, 24), np.float32)
    settings = {"architectures": architecture and [architecture]}
    folder = golden.folder(
      self.path / "bare", case, settings=settings, tensors=tensors
    )
    model = model_lib.load(folder)
    ids, mask = np.ones((1, T), np.int32), np.ones((1, T), bool)
    hidden = jax.jit(lambda model: model.hidden(ids, mask))
    np.testing.assert_array_equal(hidden(model), hidden(whole))
    read = [
      taps.read(m, ids, mask, ["layers.1.resid_post"]) for m in (model, whole)
    ]
    np.testing.assert_array_equal(*(next(iter(r.values())) for r in read))
    for use in (
      lambda: model(ids, mask),
      lambda: generate.generate(model, [[1]], max_tokens=1),
      lambda: taps.write(model, ids, mask, {"layers.0.mlp_out": lambda h: h}),
    ):
      with self.assertRaisesRegex(
        errors.InputError, "language head.*lacks lm_head.weight; load the"
      ):
        use()

  def test_an_encoder_has_no_language_head(self):
    model = model_lib.load(golden.folder(self.path, "bert"))
    with self.assertRaisesRegex(errors.InputError, "language head.*has none"):
      _ = model.head


class ForwardTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.rng = np.random.default_rng(0)
    self.path = self.create_tempdir()

  def load(self, case):
    return model_lib.load(golden.folder(self.path, case))

  @parameterized.product(case=FAMILIES, left=[False, True])
  def test_padding_changes_no_real_row(self, case, left):
    model = self.load(case)
    ids = jnp.asarray(self.rng.integers(0, model.vocabulary, (2, T)), jnp.int32)
    alone = run(model, ids, jnp.ones((2, T), bool))
    sides = ((0, 0), (4, 0) if left else (0, 4))
    padded = jnp.pad(ids, sides, constant_values=7)
    mask = jnp.pad(jnp.ones((2, T), bool), sides)
    got = run(model, padded, mask)
    real = got[:, 4:] if left else got[:, :T]
    scale = float(jnp.abs(alone).max())
    np.testing.assert_allclose(real, alone, rtol=0, atol=1e-5 * scale)
    self.assertTrue(bool(jnp.isfinite(got).all()))

  @parameterized.parameters(*FAMILIES)
  def test_ids_under_the_mask_do_not_matter(self, case):
    model = self.load(case)
    ids = jnp.asarray(self.rng.integers(0, model.vocabulary, (2, T)), jnp.int32)
    mask = jnp.arange(T)[None] < jnp.array([[5], [0]])
    other = jnp.where(mask, ids, 3)
    a, b = run(model, ids, mask), run(model, other, mask)
    np.testing.assert_array_equal(a[0, :5], b[0, :5])
    self.assertTrue(bool(jnp.isfinite(a).all()))  # also of an empty row

  @parameterized.parameters("gpt2", "llama_scaled_rope")
  def test_causal_models_do_not_look_ahead(self, case):
    model = self.load(case)
    ids = jnp.asarray(self.rng.integers(0, model.vocabulary, (1, T)), jnp.int32)
    mask = jnp.ones((1, T), bool)
    changed = ids.at[0, 6].set((ids[0, 6] + 1) % model.vocabulary)
    a, b = run(model, ids, mask), run(model, changed, mask)
    np.testing.assert_array_equal(a[:, :6], b[:, :6])
    self.assertGreater(float(jnp.abs(a[:, 6:] - b[:, 6:]).min(-1).min()), 0)

  def test_encoders_look_both_ways(self):
    model = self.load("bert")
    ids = jnp.asarray(self.rng.integers(0, model.vocabulary, (1, T)), jnp.int32)
    mask = jnp.ones((1, T), bool)
    changed = ids.at[0, 6].set((ids[0, 6] + 1) % model.vocabulary)
    difference = jnp.abs(run(model, ids, mask) - run(model, changed, mask)).max(
      -1
    )
    self.assertGreater(float(difference.min()), 1e-4)

  @parameterized.parameters("bert", "gpt2")
  def test_more_tokens_than_positions_are_refused(self, case):
    model = self.load(case)
    ids = jnp.zeros((1, 21), jnp.int32)
    with self.assertRaisesRegex(errors.InputError, "harvest.context=21"):
      model(ids, jnp.ones((1, 21), bool))

  @parameterized.parameters(*FAMILIES)
  def test_an_id_outside_the_vocabulary_gives_nan_not_another_token(self, case):
    model = self.load(case)
    for outside in (model.vocabulary, -1, -model.vocabulary, 50256):
      ids = jnp.zeros((2, T), jnp.int32).at[0, 0].set(outside)
      out = run(model, ids, jnp.ones((2, T), bool))
      self.assertTrue(bool(jnp.isnan(out[0]).all()), outside)
      self.assertTrue(bool(jnp.isfinite(out[1]).all()), outside)

  @parameterized.parameters(*FAMILIES)
  def test_an_id_outside_the_vocabulary_is_refused_where_it_is_known(
    self, case
  ):
    model = self.load(case)
    mask = np.ones((2, T), bool)
    for outside in (model.vocabulary, -1, 50256, 2**31 + 3):
      ids = np.zeros((2, T), np.int64)
      ids[1, 3:5] = outside
      for use in (
        lambda ids=ids: model(ids, mask),
        lambda ids=ids: taps.read(model, ids, mask, ["layers.0.resid_pre"]),
        lambda ids=ids: taps.write(model, ids, mask, {}),
      ):
        with self.assertRaisesRegex(
          errors.InputError,
          rf"^ids={outside}: .*\[0, {model.vocabulary}\).* 2 of 18 ids are",
        ):
          use()

  @parameterized.parameters(*FAMILIES)
  def test_padding_may_have_any_id(self, case):
    model = self.load(case)
    ids = self.rng.integers(0, model.vocabulary, (2, T)).astype(np.int32)
    mask = np.arange(T)[None] < np.array([[5], [T]])
    want = run(model, ids, mask)
    for padding in (-100, model.vocabulary, 50257):
      padded = np.where(mask, ids, padding)
      np.testing.assert_array_equal(run(model, padded, mask), want)
      found = taps.read(model, padded, mask, ["layers.1.resid_post"])
      self.assertTrue(np.isfinite(found["layers.1.resid_post"]).all())

  def test_shapes_and_types_of_input_are_checked(self):
    model = self.load("bert")
    ids, mask = jnp.zeros((2, T), jnp.int32), jnp.ones((2, T), bool)
    for bad in (
      (ids[0], mask[0]),
      (ids.astype(jnp.float32), mask),
      (ids, mask[:1]),
      (ids, mask.astype(jnp.int32)),
    ):
      with self.assertRaises(ValueError):
        model(*bad)


if __name__ == "__main__":
  absltest.main()
