"""Gemma 1, 2 and 3 (the language model).

All: embeddings times sqrt(d), norms with gain 1 + w, tied head. Gemma 2 and 3:
norms before and after attention and MLP, windowed layers, a scale of scores of
its own. Gemma 2: soft caps of scores and logits. Gemma 3: norms of queries and
keys, other rotary positions in windowed layers.

Gemma Team, Gemma, 2024, arXiv:2403.08295; Gemma 2, 2024, arXiv:2408.00118;
Gemma 3 Technical Report, 2025, arXiv:2503.19786.
"""

import dataclasses
from functools import partial
from typing import Any

from saejax.models import config_file, decoder, rotary
from saejax.models.family import Place

GEMMA2 = decoder.Names(
  norm_attn="post_attention_layernorm",
  norm_mid="pre_feedforward_layernorm",
  norm_mlp="post_feedforward_layernorm",
)
GEMMA3 = GEMMA2._replace(norm_q="self_attn.q_norm", norm_k="self_attn.k_norm")
# Prefixes of the language model beside a vision tower, in two versions.
BESIDE_VISION = ("model.language_model.", "language_model.model.")
DEFAULTS = {
  "act": "gelu_pytorch_tanh",
  "head_dim": 256,
  "max_position_embeddings": 8192,
  "tied": True,
}


def _read(
  file: config_file.ConfigFile,
  *implemented: str,
  activation: str = "hidden_activation",
  layer_type: str | None = None,
  **defaults: Any,
) -> decoder.Config:
  config = decoder.read_config(
    file,
    implemented=implemented,
    defaults=DEFAULTS | defaults,
    activation=activation,
    layer_type=layer_type,
  )
  bias = file.flag("attention_bias", False)
  return dataclasses.replace(
    config,
    qkv_bias=bias,
    out_bias=bias,
    embed_scale=config.d**0.5,
    norm_offset=1.0,
  )


def read_gemma(file: config_file.ConfigFile) -> decoder.Config:
  """Reads the settings of a Gemma 1 model.

  Args:
    file: the config.json.

  Raises:
    InputError: a setting is missing, invalid or not implemented.
  """
  config = _read(file, activation="hidden_act")
  # The first files say gelu and mean its approximation by tanh.
  exact = config.activation == "gelu"
  act = "gelu_pytorch_tanh" if exact else config.activation
  return dataclasses.replace(config, activation=act)


def read_gemma2(file: config_file.ConfigFile) -> decoder.Config:
  """Reads the settings of a Gemma 2 model.

  Args:
    file: the config.json.

  Raises:
    InputError: a setting is missing, invalid or not implemented.
  """
  caps = ("attn_logit_softcapping", "final_logit_softcapping")
  config = _read(file, "sliding_window", "layer_types", *caps)
  return dataclasses.replace(
    _windowed(file, config, every=2),
    score_cap=file.optional(file.number, caps[0], 50.0),
    logit_cap=file.optional(file.number, caps[1], 30.0),
  )


def read_gemma3_text(file: config_file.ConfigFile) -> decoder.Config:
  """Reads the settings of a Gemma 3 language model.

  Args:
    file: the config.json.

  Raises:
    InputError: a setting is missing, invalid or not implemented.
  """
  cap = "final_logit_softcapping"
  config = _read(
    file,
    "sliding_window",
    "layer_types",
    cap,
    layer_type=config_file.FULL,
    rope_theta=1e6,
    vocab_size=262208,
    num_attention_heads=8,
    num_key_value_heads=4,
    max_position_embeddings=131072,
  )
  sets = file.values.get("rope_parameters")
  local = sets.get(config_file.SLIDING) if isinstance(sets, dict) else None
  theta = file.number("rope_local_base_freq", 10000.0)
  return dataclasses.replace(
    _windowed(file, config, file.integer("sliding_window_pattern", 6)),
    qk_norm=True,
    logit_cap=file.optional(file.number, cap),
    local_rope=rotary.read(
      dataclasses.replace(file, values={"rope_parameters": local or {}}),
      config.head,
      max_positions=config.max_positions,
      theta=theta,
    ),
  )


def read_gemma3(file: config_file.ConfigFile) -> decoder.Config:
  """Reads the settings of the language model of a Gemma 3 with vision.

  Args:
    file: the config.json.

  Raises:
    InputError: a setting is missing, invalid or not implemented.
  """
  values = file.values.get("text_config")
  if not isinstance(values, dict):
    raise file.refusal("text_config", "must be the settings of a model")
  kept = {
    key: file.values[key]
    for key in ("model_type", "architectures")
    if key in file.values
  }
  file = dataclasses.replace(file, values=values | kept)
  if (config := read_gemma3_text(file)).logit_cap is not None:
    raise file.refusal(  # transformers leaves it out
      "final_logit_softcapping", "must be absent beside a vision tower"
    )
  return config


def _windowed(
  file: config_file.ConfigFile, config: decoder.Config, every: int
) -> decoder.Config:
  """Sets the window of all layers but each `every`th, and the scale."""
  default = [(l + 1) % every != 0 for l in range(config.layers)]
  windowed = file.windowed(config.layers, default)
  window = file.optional(file.integer, "sliding_window", 4096)
  if any(windowed) and window is None:
    raise file.refusal("sliding_window", "must be set for windowed layers")
  scale = file.number("query_pre_attn_scalar", 256) ** -0.5
  return dataclasses.replace(
    config, window=window, windowed=windowed, scale=scale
  )


_LAYER = "model.layers.{}"
_SANDWICH = {
  "attn_out": Place(f"{_LAYER}.post_attention_layernorm"),
  "resid_mid": Place(f"{_LAYER}.pre_feedforward_layernorm", "in"),
  "mlp_out": Place(f"{_LAYER}.post_feedforward_layernorm"),
}
SITES = decoder.SITES | _SANDWICH
ALIASES = {f"{_LAYER}.pre_feedforward_layernorm": "mlp_in"}


def _beside_vision(path: str) -> str:
  return BESIDE_VISION[0] + path.removeprefix(decoder.PREFIX)


GEMMA_FAMILY = decoder.make(read_gemma)
GEMMA2_FAMILY = decoder.make(
  read_gemma2,
  read_params=partial(decoder.read_params, names=GEMMA2),
  sites=SITES,
  aliases=ALIASES,
)
GEMMA3_TEXT_FAMILY = dataclasses.replace(
  GEMMA2_FAMILY,
  read_config=read_gemma3_text,
  read_params=partial(decoder.read_params, names=GEMMA3),
)
GEMMA3_FAMILY = dataclasses.replace(
  GEMMA2_FAMILY,
  read_config=read_gemma3,
  read_params=partial(
    decoder.read_params, names=GEMMA3, prefixes=BESIDE_VISION
  ),
  sites={
    point: place._replace(module=_beside_vision(place.module))
    for point, place in SITES.items()
  },
  aliases={_beside_vision(path): point for path, point in ALIASES.items()},
  prefix=BESIDE_VISION[0],
)
