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
from saejax.models import model as model_lib
from tests.models import golden

FAMILIES = ("bert", "gpt2", "llama_scaled_rope")
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
    self.assertEqual(sizes, (case.split("_")[0], 24, 2, 40))
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

  @parameterized.parameters("bert", "gpt2", "llama_scaled_rope")
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

  @parameterized.parameters("gpt2", "llama_gqa_tied", "bert")
  def test_base_prefix_may_be_there_or_not(self, case):
    prefix = model_lib.FAMILIES[case.split("_")[0]].PREFIX
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
    index.write_text("[]")
    with self.assertRaisesRegex(errors.InputError, "index.json"):
      model_lib.load(str(folder))


class RefusalTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.path = pathlib.Path(self.create_tempdir().full_path)

  def assert_refused(self, *parts):
    with self.assertRaises(errors.InputError) as caught:
      model_lib.load(str(self.path))
    message = str(caught.exception)
    self.assertStartsWith(message, "harvest.model=")
    self.assertNotIn("\n", message)
    for part in parts:
      self.assertIn(part, message)

  @parameterized.parameters(
    ("bert", "model_type", "mamba"),
    ("bert", "model_type", None),
    ("bert", "hidden_act", "quick_gelu"),
    ("bert", "position_embedding_type", "relative_key"),
    ("bert", "is_decoder", True),
    ("bert", "add_cross_attention", True),
    ("bert", "num_attention_heads", 5),
    ("bert", "hidden_size", "384"),
    ("bert", "hidden_size", None),
    ("bert", "layer_norm_eps", 0),
    ("gpt2", "activation_function", "swiglu"),
    ("gpt2", "add_cross_attention", True),
    ("gpt2", "scale_attn_weights", "yes"),
    ("gpt2", "quantization_config", {"bits": 4}),
    ("gpt2", "n_layer", 0),
    ("gpt2", "n_layer", True),
    ("llama_gqa_tied", "sliding_window", 128),
    ("llama_gqa_tied", "hidden_act", "swiglu"),
    ("llama_gqa_tied", "num_key_value_heads", 4),
    ("llama_gqa_tied", "head_dim", 5),
    ("llama_gqa_tied", "attn_logit_softcapping", 50.0),
    ("llama_gqa_tied", "layer_types", ["sliding_attention"] * 2),
    ("llama_gqa_tied", "partial_rotary_factor", 0.5),
    ("llama_gqa_tied", "attention_bias", 1),
    ("llama_gqa_tied", "rope_scaling", {"type": "yarn", "factor": 2.0}),
    ("llama_gqa_tied", "rope_parameters", {"rope_type": "dynamic"}),
    ("llama_gqa_tied", "rope_parameters", {"rope_type": "linear"}),
    ("llama_gqa_tied", "rope_parameters", {"partial_rotary_factor": 0.5}),
    ("llama_gqa_tied", "rope_parameters", {"full_attention": {}}),
  )
  def test_settings_not_implemented(self, case, key, value):
    golden.folder(self.path, case, settings={key: value})
    known_by = "config.json: "
    if isinstance(value, dict) and key.startswith("rope"):
      key = ""  # named by the entry inside
    self.assert_refused(known_by + key)

  def test_settings_that_change_nothing_are_accepted(self):
    golden.folder(
      self.path,
      "llama_gqa_tied",
      settings={
        "sliding_window": None,
        "layer_types": ["full_attention"] * 2,
        "position_embedding_type": "absolute",
        "partial_rotary_factor": 1.0,
        "is_decoder": False,
        "a_key_of_someone_else": 3,
      },
    )
    self.assertEqual(model_lib.load(str(self.path)).family, "llama")

  def test_no_config(self):
    self.assert_refused("config.json", "No such file")

  def test_config_that_is_not_json(self):
    golden.folder(self.path, "bert")
    for text in ("{", "[1]", '{"a": 1\n'):
      (self.path / "config.json").write_text(text)
      self.assert_refused("config.json")

  def test_no_weights(self):
    golden.folder(self.path, "bert")
    (self.path / "model.safetensors").unlink()
    self.assert_refused("must hold model.safetensors")

  def test_corrupt_weights(self):
    golden.folder(self.path, "bert")
    file = self.path / "model.safetensors"
    data = file.read_bytes()
    for corrupt in (data[:-100], data[:4], b"", b"\xff" * 100):
      file.write_bytes(corrupt)
      self.assert_refused("model.safetensors: must be readable")

  @parameterized.parameters(
    ("bert", "encoder.layer.1.output.dense.bias"),
    ("bert", "embeddings.word_embeddings.weight"),
    ("gpt2", "transformer.h.0.attn.c_attn.weight"),
    ("gpt2_untied_scaled", "lm_head.weight"),
    ("llama_mha_biased", "model.layers.1.mlp.up_proj.bias"),
  )
  def test_missing_tensor(self, case, key):
    tensors = golden.weights(case)
    del tensors[key]
    golden.folder(self.path, case, tensors=tensors)
    self.assert_refused(f"must hold {key}")

  def test_wrong_shape(self):
    settings = {"intermediate_size": 41}
    golden.folder(self.path, "bert", settings=settings)
    self.assert_refused("must have shape [41, 24], has [40, 24]")

  def test_integer_weights(self):
    tensors = golden.weights("gpt2")
    tensors["transformer.wpe.weight"] = np.zeros((20, 24), np.int8)
    golden.folder(self.path, "gpt2", tensors=tensors)
    self.assert_refused("floating point", "int8")


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
    ids = jnp.asarray(self.rng.integers(0, 40, (2, T)), jnp.int32)
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
    ids = jnp.asarray(self.rng.integers(0, 40, (2, T)), jnp.int32)
    mask = jnp.arange(T)[None] < jnp.array([[5], [0]])
    other = jnp.where(mask, ids, 3)
    a, b = run(model, ids, mask), run(model, other, mask)
    np.testing.assert_array_equal(a[0, :5], b[0, :5])
    self.assertTrue(bool(jnp.isfinite(a).all()))  # also of an empty row

  @parameterized.parameters("gpt2", "llama_scaled_rope")
  def test_causal_models_do_not_look_ahead(self, case):
    model = self.load(case)
    ids = jnp.asarray(self.rng.integers(0, 40, (1, T)), jnp.int32)
    mask = jnp.ones((1, T), bool)
    changed = ids.at[0, 6].set((ids[0, 6] + 1) % 40)
    a, b = run(model, ids, mask), run(model, changed, mask)
    np.testing.assert_array_equal(a[:, :6], b[:, :6])
    self.assertGreater(float(jnp.abs(a[:, 6:] - b[:, 6:]).min(-1).min()), 0)

  def test_encoders_look_both_ways(self):
    model = self.load("bert")
    ids = jnp.asarray(self.rng.integers(0, 40, (1, T)), jnp.int32)
    mask = jnp.ones((1, T), bool)
    changed = ids.at[0, 6].set((ids[0, 6] + 1) % 40)
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
    ids = jnp.zeros((2, T), jnp.int32).at[0, 0].set(40)
    out = run(model, ids, jnp.ones((2, T), bool))
    self.assertTrue(bool(jnp.isnan(out[0]).all()))
    self.assertTrue(bool(jnp.isfinite(out[1]).all()))

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
