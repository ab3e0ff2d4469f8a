"""saejax/models/config_file.py: what is not implemented is refused."""

import json

from absl.testing import absltest, parameterized

from saejax.models import model as model_lib
from tests.models import golden


class RefusalTest(golden.Refusals):
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
    ("llama_gqa_tied", "rope_scaling", {"type": "proportional"}),
    ("llama_gqa_tied", "rope_scaling", {"type": ["yarn"]}),
    ("llama_gqa_tied", "rope_scaling", {"type": "yarn"}),
    ("llama_gqa_tied", "rope_parameters", {"mrope_section": [16, 24]}),
    ("llama_gqa_tied", "use_sliding_window", True),
    ("llama_gqa_tied", "rope_parameters", {"rope_type": "dynamic"}),
    ("llama_gqa_tied", "rope_parameters", {"rope_type": "linear"}),
    ("llama_gqa_tied", "rope_parameters", {"partial_rotary_factor": 0.5}),
    ("llama_gqa_tied", "rope_parameters", {"full_attention": {}}),
    ("llama_gqa_tied", "rope_scaling", [1]),
    ("llama_gqa_tied", "layer_types", 5),
    ("llama_gqa_tied", "rms_norm_eps", float("inf")),
    ("llama_gqa_tied", "rms_norm_eps", float("nan")),
    ("llama_gqa_tied", "rms_norm_eps", 10**400),
    ("llama_gqa_tied", "architectures", "LlamaForCausalLM"),
    ("mistral_windows", "sliding_window", 0),
    ("mistral_windows", "layer_types", ["sliding_attention"] * 2),
    ("qwen2_yarn_some_windows", "layer_types", ["sliding_attention"]),
    ("qwen2_tied", "layer_types", ["chunked_attention"] * 2),
    ("qwen2_tied", "layer_types", ["sliding_attention"] * 2),
    ("qwen3_dynamic", "head_dim", 2),
    ("gemma2_caps_windows", "sliding_window", "4096"),
    ("gemma2_caps_windows", "final_logit_softcapping", -1.0),
    ("gemma2_caps_windows", "use_bidirectional_attention", True),
    ("gemma3_text_local_global", "attn_logit_softcapping", 50.0),
    ("gemma_shared_key", "final_logit_softcapping", 30.0),
    (
      "gpt_neox_parallel",
      "rope_parameters",
      {"partial_rotary_factor": 0.4},
    ),
    ("gpt_neox_parallel", "num_attention_heads", 3),
    ("phi3_longrope", "partial_rotary_factor", "half"),
    ("phi3_longrope", "rope_scaling", {"type": "longrope"}),
    ("gpt2", "n_embd", [[[[[[[[]]]]]]]]),
    ("gpt2", "model_type", ["gpt2"]),
    ("bert", "position_embedding_type", {"a": 1}),
  )
  def test_settings_not_implemented(self, case, key, value):
    golden.folder(self.path, case, settings={key: value})
    known_by = "config.json: "
    if isinstance(value, dict) and key.startswith("rope_"):
      key = ""  # named by the entry inside
    self.assert_refused(known_by + key)

  def test_lists_of_divisors_have_one_for_each_frequency(self):
    rope = golden.config("phi3_longrope")["rope_parameters"]
    for divisors in ([1.0] * 3, [1.0, 1.0, 1.0, 0.0], 2.0):
      changed = {"rope_parameters": rope | {"long_factor": divisors}}
      golden.folder(self.path, "phi3_longrope", settings=changed)
      self.assert_refused("config.json: long_factor must be")

  def test_null_turns_a_setting_off_and_absence_does_not(self):
    path = golden.folder(self.path, "gemma2_caps_windows")
    values = golden.config("gemma2_caps_windows")
    for change, want in ((None, None), (7.0, 7.0), ("absent", 30.0)):
      changed = values | {"final_logit_softcapping": change}
      if change == "absent":
        del changed["final_logit_softcapping"]
      (self.path / "config.json").write_text(json.dumps(changed))
      self.assertEqual(model_lib.load(path).config.logit_cap, want)

  def test_a_cap_of_logits_beside_a_vision_tower(self):
    text = golden.config("gemma3_text_local_global")
    for values, message in (
      ({"text_config": text}, "config.json: final_logit_softcapping must be"),
      ({}, "config.json: text_config must be"),
    ):
      self.path.mkdir(exist_ok=True)
      values = values | {"model_type": "gemma3"}
      (self.path / "config.json").write_text(json.dumps(values))
      self.assert_refused(message)

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
    for name, content in golden.HOSTILE.items():
      with self.subTest(name):
        (self.path / "config.json").write_bytes(content)
        self.assert_refused("config.json: must")

  def test_a_folder_in_place_of_the_file(self):
    (self.path / "config.json").mkdir()
    self.assert_refused("config.json: cannot be read (Is a directory)")


if __name__ == "__main__":
  absltest.main()
