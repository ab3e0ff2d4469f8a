"""Cases of `make_models` for the families of decoders: class and settings."""

WINDOW = 3
_LONG = [1.0, 1.5, 3.0, 5.0]
_ROPE = {"rope_type": "default", "rope_theta": 100.0}
# name: (class of transformers, settings of its config beside the sizes)
CASES = {
  "gemma_shared_key": (
    "GemmaForCausalLM",
    {"num_key_value_heads": 1, "head_dim": 8, "rope_parameters": _ROPE},
  ),
  "gemma2_caps_windows": (
    "Gemma2ForCausalLM",
    {
      "num_key_value_heads": 2,
      "head_dim": 8,
      "sliding_window": WINDOW,
      "query_pre_attn_scalar": 6,
      "attn_logit_softcapping": 2.0,
      "final_logit_softcapping": 3.0,
      "rope_parameters": _ROPE,
    },
  ),
  "gemma3_text_local_global": (
    "Gemma3ForCausalLM",
    {
      "num_key_value_heads": 2,
      "head_dim": 8,
      "sliding_window": WINDOW,
      "query_pre_attn_scalar": 6,
      "layer_types": ["sliding_attention", "full_attention"],
      "final_logit_softcapping": 3.0,
      "rope_parameters": {
        "full_attention": {
          "rope_type": "linear",
          "factor": 2.0,
          "rope_theta": 500.0,
        },
        "sliding_attention": {"rope_type": "default", "rope_theta": 20.0},
      },
    },
  ),
  "gpt_neox_parallel": (
    "GPTNeoXForCausalLM",
    {"num_attention_heads": 2, "rotary_pct": 0.5, "rotary_emb_base": 100},
  ),
  "gpt_neox_sequential_tied": (
    "GPTNeoXForCausalLM",
    {
      "use_parallel_residual": False,
      "tie_word_embeddings": True,
      "attention_bias": False,
      "hidden_act": "gelu_fast",
      "rotary_pct": 1.0,
    },
  ),
  "mistral_windows": (
    "MistralForCausalLM",
    {
      "num_key_value_heads": 2,
      "head_dim": 8,
      "sliding_window": WINDOW,
      "rope_parameters": _ROPE,
    },
  ),
  "phi3_longrope": (
    "Phi3ForCausalLM",
    {
      "num_attention_heads": 2,
      "num_key_value_heads": 1,
      "original_max_position_embeddings": 5,
      "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 100.0,
        "short_factor": [1.0, 1.1, 1.2, 1.3],
        "long_factor": _LONG,
      },
    },
  ),
  "phi3_windows_part_rotated": (
    "Phi3ForCausalLM",
    {
      "num_attention_heads": 2,
      "sliding_window": WINDOW,
      "partial_rotary_factor": 0.75,
      "tie_word_embeddings": True,
      "rope_parameters": {**_ROPE, "partial_rotary_factor": 0.75},
    },
  ),
  "qwen2_yarn_some_windows": (
    "Qwen2ForCausalLM",
    {
      "num_attention_heads": 2,
      "num_key_value_heads": 1,
      "use_sliding_window": True,
      "sliding_window": WINDOW,
      "max_window_layers": 1,
      "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 100.0,
        "factor": 4.0,
        "beta_fast": 2.0,
        "original_max_position_embeddings": 16,
      },
    },
  ),
  "qwen2_tied": (
    "Qwen2ForCausalLM",
    {"num_key_value_heads": 4, "tie_word_embeddings": True},
  ),
  "qwen3_dynamic": (
    "Qwen3ForCausalLM",
    {
      "num_key_value_heads": 2,
      "head_dim": 8,
      "max_position_embeddings": 5,
      "rope_parameters": {
        "rope_type": "dynamic",
        "rope_theta": 100.0,
        "factor": 3.0,
      },
    },
  ),
}
