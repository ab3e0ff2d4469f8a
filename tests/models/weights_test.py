"""saejax/models/weights.py: tensors are checked as they are read."""

import numpy as np
from absl.testing import absltest, parameterized

from saejax.models import model as model_lib
from tests.models import golden


class RefusalTest(golden.Refusals):
  def test_a_folder_in_place_of_the_file(self):
    golden.folder(self.path, "bert")
    (self.path / "model.safetensors").unlink()
    (self.path / "model.safetensors").mkdir()
    self.assert_refused("model.safetensors: must be readable")

  def test_no_weights(self):
    golden.folder(self.path, "bert")
    (self.path / "model.safetensors").unlink()
    self.assert_refused("must have model.safetensors")

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
    ("llama_mha_biased", "model.layers.1.mlp.up_proj.bias"),
  )
  def test_missing_tensor(self, case, key):
    tensors = golden.weights(case)
    del tensors[key]
    golden.folder(self.path, case, tensors=tensors)
    self.assert_refused(f"must have {key}")

  @parameterized.parameters("GPT2LMHeadModel", "LlamaForCausalLM")
  def test_a_language_model_without_its_head(self, architecture):
    gpt2 = architecture.startswith("GPT2")
    case = "gpt2_untied_scaled" if gpt2 else "llama_linear_rope"
    tensors = golden.weights(case)
    del tensors["lm_head.weight"]
    settings = {"architectures": [architecture]}
    golden.folder(self.path, case, settings=settings, tensors=tensors)
    self.assert_refused("must have lm_head.weight")

  @parameterized.parameters(
    ("bert", "encoder.layer.1.output.LayerNorm.weight", np.nan, "float32"),
    ("gpt2", "transformer.wte.weight", np.inf, "float32"),
    ("gpt2", "transformer.h.1.attn.c_attn.bias", -np.inf, "bfloat16"),
    (
      "llama_mha_biased",
      "model.layers.0.self_attn.q_proj.weight",
      np.nan,
      "float32",
    ),
    ("llama_mha_biased", "lm_head.weight", np.nan, "float32"),
    ("gpt2", "transformer.wpe.weight", 3.4e38, "bfloat16"),
  )
  def test_weights_that_are_not_finite(self, case, key, value, dtype):
    tensors = golden.weights(case)
    tensors[key] = tensors[key].copy()
    tensors[key].reshape(-1)[-3:-1] = value
    golden.folder(self.path, case, tensors=tensors)
    size = tensors[key].size // (3 if "c_attn" in key else 1)  # read in parts
    self.assert_refused(
      f"{key} must be finite in {dtype}",
      f"2 of {size} entries are NaN or infinite",
      dtype=dtype,
    )

  def test_half_precision_weights_that_overflowed(self):
    tensors = golden.weights("gpt2")
    tensors = {k: v.astype(np.float16) for k, v in tensors.items()}
    tensors["transformer.wte.weight"][3, 5] = np.inf
    golden.folder(self.path, "gpt2", tensors=tensors)
    self.assert_refused("transformer.wte.weight must be finite", "1 of 960")

  @parameterized.parameters(
    ("llama_gqa_tied", "model.layers.0.self_attn.q_proj.bias"),
    ("llama_gqa_tied", "model.layers.1.self_attn.q_norm.weight"),
    ("qwen2_tied", "model.layers.2.mlp.up_proj.weight"),
    ("gpt2_bare", "h.0.ln_3.weight"),
    ("gpt_neox_parallel", "embed_out.bias"),
    ("bert", "encoder.layer.0.output.dense.extra"),
  )
  def test_a_tensor_without_a_place(self, case, key):
    tensors = golden.weights(case)
    if key == "embed_out.bias":  # the name of the head in older checkpoints
      tensors["embed_out.weight"] = tensors.pop("lm_head.weight")
      golden.folder(self.path, case, tensors=tensors)
      model_lib.load(str(self.path))
    tensors[key] = np.ones(3, np.float32)
    golden.folder(self.path, case, tensors=tensors)
    self.assert_refused(f"must not have {key}, for which config.json")

  def test_many_tensors_without_a_place_are_counted(self):
    golden.folder(self.path, "gpt2", settings={"n_layer": 1})
    self.assert_refused("transformer.h.1.attn.c_attn.weight, ", "nor 9 more")

  def test_buffers_and_parts_that_are_not_read_may_be_there(self):
    more = {
      "transformer.h.0.attn.bias": np.ones((1, 1, 3, 3), np.uint8),
      "transformer.h.1.attn.masked_bias": np.ones((), np.float32),
      "score.weight": np.ones((2, 24), np.float32),
    }
    tensors = golden.weights("gpt2") | more
    golden.folder(self.path, "gpt2", tensors=tensors)
    self.assertEqual(model_lib.load(str(self.path)).layers, 2)

  def test_wrong_shape(self):
    settings = {"intermediate_size": 41}
    golden.folder(self.path, "bert", settings=settings)
    self.assert_refused("must have shape [41, 24], has [40, 24]")

  def test_integer_weights(self):
    tensors = golden.weights("gpt2")
    tensors["transformer.wpe.weight"] = np.zeros((20, 24), np.int8)
    golden.folder(self.path, "gpt2", tensors=tensors)
    self.assert_refused("floating point", "int8")


if __name__ == "__main__":
  absltest.main()
