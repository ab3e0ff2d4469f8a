"""Checkpoints: folders and GGUF files give the same model, and bad ones none."""

import dataclasses
import importlib.util
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from absl.testing import absltest, parameterized

from saejax import errors, models
from saejax.data.text import conversations, subject
from saejax.models import (
  checkpoint,
  family,
  generate,
  gguf,
  gguf_llama,
  gguf_tokenizer,
  hub,
  rotary,
  taps,
  tokenizer,
)
from tests.models import gguf_files

TOLERANCE = 1e-5  # of the largest entry


def folder_of(path: pathlib.Path) -> pathlib.Path:
  """Writes the golden model as a folder of safetensors."""
  path.mkdir()
  golden = checkpoint.at(gguf_files.GOLDEN)
  for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
    (path / name).write_bytes(golden.read_bytes(name))
  with golden.tensors() as tensors:
    safetensors.numpy.save_file(
      {
        name: np.ascontiguousarray(handle.get_slice(stored)[:])
        for name, (handle, stored) in tensors.items()
      },
      path / "model.safetensors",
    )
  return path


class GgufModelTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    self.path = self.folder / "model.gguf"

  def test_logits_equal_transformers(self):
    want = gguf_files.expected()
    model = models.load(str(gguf_files.GOLDEN))
    ids = jnp.asarray(want["ids"])
    got = np.asarray(model(ids, jnp.ones(ids.shape, bool)))
    largest = np.abs(want["logits"]).max()
    error = np.abs(got - want["logits"]).max()
    self.assertLessEqual(error, TOLERANCE * largest)

  def test_ids_of_texts_equal_transformers(self):
    words = tokenizer.load(gguf_files.GOLDEN)
    for key, want in gguf_files.expected().items():
      if key.startswith("text/"):
        text = key.removeprefix("text/")
        ids = words.encode(text)
        np.testing.assert_array_equal(ids, want)
        self.assertEqual(words.decode(ids), text)
    self.assertEqual((words.eos, words.bos, words.pad), (0, 1, 2))
    self.assertEqual(words.special_ids, {0, 1, 2})
    self.assertEqual((words.prefix, words.suffix), ((), ()))

  def test_numbers_are_split_character_by_character(self):
    # "Ġ2" and "½" are tokens; only the split before GPT-2's tells them apart.
    settings, _ = gguf_files.parts()
    tokens = [*settings["tokenizer.ggml.tokens"], "Ġ2", "22", "Â½"]
    merges = ["Ġ 2", "2 2", "Â ½", *settings["tokenizer.ggml.merges"]]
    own = {
      "tokenizer.ggml.tokens": tokens,
      "tokenizer.ggml.merges": merges,
      "tokenizer.ggml.token_type": [1] * len(tokens),
    }
    found = {}
    for pre in ("smollm", "gpt-2"):
      own["tokenizer.ggml.pre"] = pre
      words = tokenizer.load(gguf_files.write(self.path, settings=own))
      ids = words.encode("a 22½")
      found[pre] = [tokens[i] for i in ids]
    self.assertEqual(found["smollm"], ["a", "Ġ", "2", "2", "Â½"])
    self.assertEqual(found["gpt-2"], ["a", "Ġ2", "2", "Â½"])

  def test_a_tokenizer_json_beside_the_file_takes_its_place(self):
    gguf_files.write(self.path, settings={gguf_tokenizer.PRE: "deepseek-llm"})
    golden = checkpoint.at(gguf_files.GOLDEN)
    for name in ("tokenizer.json", "tokenizer_config.json"):
      (self.folder / name).write_bytes(golden.read_bytes(name))
    text = "the others in 1984 \u00e9"
    words, want = (tokenizer.load(p) for p in (self.path, gguf_files.GOLDEN))
    np.testing.assert_array_equal(words.encode(text), want.encode(text))
    self.assertEqual((words.bos, words.eos), (want.bos, want.eos))
    found = checkpoint.at(self.path)
    self.assertEqual(found.tokenizer_hash(), golden.tokenizer_hash())

  def test_tokens_that_the_metadata_adds_frame_a_text(self):
    flags = {
      f"tokenizer.ggml.add_{role}_token": True for role in ("bos", "eos")
    }
    words = tokenizer.load(gguf_files.write(self.path, settings=flags))
    self.assertEqual((words.prefix, words.suffix), ((1,), (0,)))

  def test_a_file_equals_the_folder_with_its_weights(self):
    folder = folder_of(self.folder / "saved")
    ids = jnp.asarray(gguf_files.expected()["ids"])
    mask = jnp.ones(ids.shape, bool)
    sites = [f"layers.{l}.{p}" for l in (0, 1) for p in family.LAYER_POINTS]
    found = []
    for path in (folder, gguf_files.GOLDEN):
      model = models.load(str(path))
      self.assertEqual(model.config, models.load(str(folder)).config)
      found.append(taps.read(model, ids, mask, sites))
    for site in sites:
      np.testing.assert_array_equal(*(np.asarray(one[site]) for one in found))

  def test_names_of_a_file(self):
    shutil.copy(gguf_files.GOLDEN, self.path)
    want = checkpoint.at(self.path).weights_hash()
    for name in (self.folder, self.path):
      resolved = hub.resolve(str(name))
      self.assertEqual(checkpoint.at(resolved).path, self.path)
      self.assertEqual(models.load(str(name)).layers, 2)
      found = subject.at_site(str(name), 1, "resid_post")
      self.assertEqual(found.meta["model"]["weights"], want)
      self.assertEqual(found.meta["model"]["name"], name.name)
    renamed = self.path.rename(self.folder / "other.gguf")
    self.assertEqual(checkpoint.at(renamed).weights_hash(), want)

  def test_several_files_in_a_folder_are_refused(self):
    for name in ("a.gguf", "b.gguf"):
      shutil.copy(gguf_files.GOLDEN, self.folder / name)
    with self.assertRaisesRegex(errors.InputError, "has 2; give the path of"):
      models.load(str(self.folder))

  def test_safetensors_come_before_a_file(self):
    folder = folder_of(self.folder / "saved")
    shutil.copy(gguf_files.GOLDEN, folder)
    self.assertIsInstance(checkpoint.at(folder), checkpoint.Folder)

  def test_a_stores_tokenizer_is_that_of_the_file(self):
    found = subject.at_site(str(gguf_files.GOLDEN), 0, "resid_post")
    for name, content in found.files.items():
      path = self.folder / name
      path.parent.mkdir(exist_ok=True)
      path.write_bytes(content)
    words = tokenizer.load(self.folder / "tokenizer")
    self.assertEqual(words.special_ids, {0, 1, 2})
    text = "the others in 1984 \u00e9"
    ids = tokenizer.load(gguf_files.GOLDEN).encode(text)
    np.testing.assert_array_equal(words.encode(text), ids)

  def test_generation(self):
    model = models.load(str(gguf_files.GOLDEN))
    found = generate.generate(
      model,
      [[1, 9]],
      max_tokens=6,
      temperature=0,
    )
    forward = jax.jit(lambda ids, mask: model(ids, mask))
    ids = [1, 9]
    for _ in range(6):
      row = jnp.asarray([ids + [0] * (8 - len(ids))])
      logits = forward(row, jnp.arange(8)[None] < len(ids))
      ids.append(int(logits[0, len(ids) - 1].argmax()))
    self.assertEqual(found.ids[0].tolist(), ids[2:])

  def test_the_chat_template(self):
    if importlib.util.find_spec("transformers") is None:
      self.skipTest("pip install 'saejax[models]'")
    turns = [{"role": "user", "content": "then"}]
    self.assertEqual(
      conversations.render(gguf_files.GOLDEN, turns),
      "<|start|>user\nthen<|end|>\n",
    )

  # --- refusals --------------------------------------------------------------

  @parameterized.parameters(
    ({"general.architecture": "gemma"}, "general.architecture must be one of"),
    ({"general.architecture": None}, "must be one of llama, is None"),
    ({"llama.block_count": None}, "llama.block_count is required"),
    ({"llama.embedding_length": None}, "llama.embedding_length is required"),
    ({"llama.context_length": None}, "llama.context_length is required"),
    ({"llama.attention.head_count": None}, "head_count is required"),
    ({"llama.attention.layer_norm_rms_epsilon": None}, "epsilon is required"),
    ({"llama.block_count": 2**31}, "must have model.layers.2."),
    ({"llama.block_count": 1}, "must have 1 layers (llama.block_count)"),
    ({"llama.block_count": "2"}, "must be a whole number"),
    ({"llama.embedding_length": 2**31}, "must be 536870912, the width"),
    ({"llama.feed_forward_length": 65}, "must have shape [65, 32], has [64, "),
    ({"llama.attention.head_count_kv": 3}, "num_key_value_heads must divide"),
    ({"llama.attention.head_count_kv": [2, 2]}, "must be a whole number"),
    ({"llama.rope.dimension_count": 4}, "must be 8, the width of a head"),
    ({"llama.attention.value_length": 4}, "must be 8, the width of a head"),
    ({"llama.expert_count": 8}, "experts are not implemented"),
    ({"llama.rope.scaling.type": "yarn"}, "must be one of linear, none"),
    ({"llama.attention.scale": 0.5}, "attention.scale is not implemented"),
    ({"llama.vocab_size": 2**31}, "must have shape [2147483648, 32]"),
  )
  def test_settings_that_contradict_or_are_not_implemented(
    self, settings, part
  ):
    gguf_files.write(self.path, settings=settings)
    self.assert_refused(lambda: models.load(str(self.path)), part)

  def test_divisors_of_frequencies_are_those_of_llama3(self):
    own = {"theta": 1000.0, "width": 8, "original": 64.0}
    llama3 = rotary.Rope(kind="llama3", factor=8.0, low=1.0, high=4.0, **own)
    base = 1000.0 ** (-np.arange(4) / 4)
    length = 2 * np.pi / base
    smooth = np.clip((64 / length - 1) / 3, 0, 1)
    divisors = (1 / ((1 - smooth) / 8 + smooth)).astype(np.float32)
    tensors = {"rope_freqs.weight": (0, (4,), divisors.tobytes())}
    model = models.load(str(gguf_files.write(self.path, tensors=tensors)))
    self.assertLen(set(divisors.tolist()), 3)  # both ends and between
    ids, mask = np.arange(2, 26)[None], np.ones((1, 24), bool)
    scaled = dataclasses.replace(model.config, rope=llama3)
    plain = dataclasses.replace(scaled, rope=rotary.Rope(1000.0, 8))
    got, want, without = (
      np.asarray(model.replace(config=config)(ids, mask))
      for config in (model.config, scaled, plain)
    )
    np.testing.assert_allclose(
      got, want, rtol=0, atol=1e-5 * np.abs(want).max()
    )
    self.assertGreater(np.abs(got - without).max(), 1e-2)

  def test_divisors_beside_a_linear_factor_are_refused(self):
    gguf_files.write(
      self.path,
      settings={"llama.rope.scaling.factor": 2.0},
      tensors={"rope_freqs.weight": (0, (4,), np.ones(4, "<f4").tobytes())},
    )
    self.assert_refused(
      lambda: models.load(str(self.path)), "must be 1 beside the tensor"
    )

  @parameterized.parameters(
    ("blk.0.attn_v.weight", None, "must have model.layers.0.self_attn.v_proj"),
    (
      "rope_freqs.weight",
      (0, (4,), bytes(16)),
      "short_factor must be a number above 0",
    ),
    ("blk.0.x.weight", (0, (4,), bytes(16)), "blk.0.x.weight is not implem"),
    ("blk.0.attn_q.bias", (0, (32,), bytes(128)), "must have model.layers.0"),
    ("output_norm.weight", (0, (32,), b"\xff" * 128), "must be finite"),
  )
  def test_tensors_that_are_missing_or_not_implemented(
    self, name, tensor, part
  ):
    gguf_files.write(self.path, tensors={name: tensor})
    self.assert_refused(lambda: models.load(str(self.path)), part)

  @parameterized.parameters(
    ({gguf_tokenizer.KIND: "t5"}, "must be one of gpt2, llama, is 't5'; put"),
    ({gguf_tokenizer.KIND: None}, "must be one of gpt2, llama, is None"),
    (
      {gguf_tokenizer.PRE: "deepseek-llm"},
      "is 'deepseek-llm'; put the model's tokenizer.json beside the file",
    ),
    ({gguf_tokenizer.PRE: None}, "is None; put the model's tokenizer.json"),
    ({gguf_tokenizer.KIND: "llama"}, "tokenizer.ggml.scores must be a list"),
    ({gguf.TOKENS: None}, "tokenizer.ggml.tokens is required"),
    ({gguf.TOKENS: ["a", "a"]}, "must have each token once ('a' occurs 2"),
    ({gguf.TOKENS: []}, "must have each token once"),
    ({gguf.TOKENS: [1, 2]}, "must be a list of texts"),
    ({gguf_tokenizer.MERGES: None}, "tokenizer.ggml.merges is required"),
    ({gguf_tokenizer.MERGES: ["h e", "he"]}, "(not 'he', 1)"),
    ({gguf_tokenizer.MERGES: ["t \u0416"]}, "(not 't \u0416', 0)"),
    ({gguf_tokenizer.TOKEN_TYPES: [1, 3]}, "one per token"),
    ({gguf_tokenizer.TOKEN_TYPES: None}, "one per token"),
    ({"tokenizer.ggml.bos_token_id": 9999}, "must be an id in [0, "),
    ({"tokenizer.ggml.add_space_prefix": True}, "must be false or absent"),
    ({gguf_tokenizer.CHAT_TEMPLATE: 5}, "must be text"),
  )
  def test_tokenizers_that_are_damaged_or_not_implemented(self, settings, part):
    gguf_files.write(self.path, settings=settings)
    self.assert_refused(lambda: tokenizer.load(self.path), part)

  def test_the_tokenizer_json_of_another_model_is_refused(self):
    gguf_files.write(self.path)
    golden = checkpoint.at(gguf_files.GOLDEN)
    parts = golden.read_json("tokenizer.json")
    vocab = parts["model"]["vocab"]
    parts["model"]["vocab"] = dict(
      zip(vocab, reversed(range(len(vocab))), strict=True)
    )
    file = self.folder / "tokenizer.json"
    file.write_text(json.dumps(parts))
    with self.assertRaisesRegex(errors.InputError, "are others for") as caught:
      tokenizer.load(self.path)
    self.assertIn(str(file), str(caught.exception))

  def assert_refused(self, load, part):
    with self.assertRaises(errors.InputError) as caught:
      load()
    message = str(caught.exception)
    self.assertStartsWith(message, f"harvest.model={self.path}: ")
    self.assertNotIn("\n", message)
    self.assertIn(part, message)


class SettingsTest(absltest.TestCase):
  def test_linear_scaling_and_settings_that_change_nothing(self):
    path = pathlib.Path(self.create_tempdir().full_path, "model.gguf")
    for more, kind, factor in (
      ({}, "default", 1.0),
      ({"llama.rope.scaling.factor": 2.0}, "linear", 2.0),
      ({"llama.rope.scaling.type": "none"}, "default", 1.0),
    ):
      settings = {"llama.rope.scaling.finetuned": True, **more}
      gguf_files.write(path, settings=settings)
      rope = models.load(str(path)).config.rope
      self.assertEqual((rope.kind, rope.factor), (kind, factor))
      self.assertEqual(rope.theta, 1000)

  def test_an_output_matrix_unties_the_head(self):
    path = pathlib.Path(self.create_tempdir().full_path, "model.gguf")
    _, tensors = gguf_files.parts()
    own = {"output.weight": tensors["token_embd.weight"]}
    model = models.load(str(gguf_files.write(path, tensors=own)))
    self.assertFalse(model.config.tied)
    np.testing.assert_array_equal(model.head, model.params["token"])

  def test_halves_undo_the_order_of_llama_cpp(self):
    rows = np.arange(24).reshape(12, 2)
    # Head of 6: rows 0, 3, 1, 4, 2, 5.
    stored = rows.reshape(2, 2, 3, 2).swapaxes(1, 2).reshape(12, 2)
    self.assertEqual(stored[:6, 0].tolist(), [0, 6, 2, 8, 4, 10])
    np.testing.assert_array_equal(gguf_llama.halves(stored, 2), rows)

  def test_the_hash_of_a_tokenizer_is_that_of_its_settings_alone(self):
    path = pathlib.Path(self.create_tempdir().full_path, "model.gguf")
    want = checkpoint.at(gguf_files.GOLDEN).tokenizer_hash()
    for settings, same in (
      ({"llama.rope.freq_base": 5.0}, True),
      ({gguf_tokenizer.CHAT_TEMPLATE: "other"}, False),
      ({gguf_tokenizer.MERGES: ["h e"]}, False),
    ):
      gguf_files.write(path, settings=settings)
      self.assertEqual(checkpoint.at(path).tokenizer_hash() == want, same)


if __name__ == "__main__":
  absltest.main()
