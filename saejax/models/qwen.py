"""Qwen 2, 2.5 and 3: Llama with biases of queries, keys and values, or with norms.

Yang et al., Qwen2 Technical Report, 2024, arXiv:2407.10671; Qwen2.5 Technical
Report, 2024, arXiv:2412.15115; Qwen3 Technical Report, 2025, arXiv:2505.09388.
"""

import dataclasses
from functools import partial
from typing import Any

from saejax.models import config_file, decoder

QWEN3 = decoder.Names(norm_q="self_attn.q_norm", norm_k="self_attn.k_norm")


def read_qwen2(file: config_file.ConfigFile) -> decoder.Config:
  """Reads the settings of a Qwen 2 or 2.5 model.

  Args:
    file: the config.json.

  Raises:
    InputError: a setting is missing, invalid or not implemented.
  """
  return dataclasses.replace(_read(file), qkv_bias=True)


def read_qwen3(file: config_file.ConfigFile) -> decoder.Config:
  """Reads the settings of a Qwen 3 model without experts.

  Args:
    file: the config.json.

  Raises:
    InputError: a setting is missing, invalid or not implemented.
  """
  bias = file.flag("attention_bias", False)
  config = _read(file, head_dim=128)
  return dataclasses.replace(config, qk_norm=True, qkv_bias=bias, out_bias=bias)


def _read(file: config_file.ConfigFile, **defaults: Any) -> decoder.Config:
  config = decoder.read_config(
    file,
    implemented=["sliding_window", "use_sliding_window", "layer_types"],
    defaults={"max_position_embeddings": 32768, **defaults},
  )
  window, first = None, config.layers
  if file.flag("use_sliding_window", False):
    window = file.optional(file.integer, "sliding_window", 4096)
    if window is not None:
      first = file.integer("max_window_layers", 28)
  windowed = file.windowed(
    config.layers, [l >= first for l in range(config.layers)]
  )
  if any(windowed) and window is None:
    raise file.refusal(
      "layer_types", "must all be full_attention without use_sliding_window"
    )
  return dataclasses.replace(config, window=window, windowed=windowed)


QWEN2_FAMILY = decoder.make(read_qwen2)
QWEN3_FAMILY = decoder.make(
  read_qwen3, read_params=partial(decoder.read_params, names=QWEN3)
)
