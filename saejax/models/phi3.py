"""Phi-3 and Phi-4-mini: Llama with joined weights and LongRoPE.

Abdin et al., Phi-3 Technical Report, 2024, arXiv:2404.14219.
"""

import dataclasses
from functools import partial

from saejax.models import config_file, decoder, family
from saejax.models.family import Place

NAMES = decoder.Names(qkv=("self_attn.qkv_proj",), up=("mlp.gate_up_proj",))
_QKV = Place("model.layers.{}.self_attn.qkv_proj", layout=family.FUSED)


def read_config(file: config_file.ConfigFile) -> decoder.Config:
  """Reads the settings of a Phi-3 model.

  Args:
    file: the config.json.

  Raises:
    InputError: a setting is missing, invalid or not implemented.
  """
  original = {"original_max_position_embeddings": 4096}
  config = decoder.read_config(
    dataclasses.replace(file, values=original | dict(file.values)),
    implemented=["sliding_window", "partial_rotary_factor"],
    defaults={"max_position_embeddings": 4096, "rms_norm_eps": 1e-5},
    rotated_share=file.number("partial_rotary_factor", 1.0),
  )
  window = file.optional(file.integer, "sliding_window")
  return dataclasses.replace(
    config, window=window, windowed=(window is not None,) * config.layers
  )


FAMILY = decoder.make(
  read_config,
  read_params=partial(decoder.read_params, names=NAMES),
  sites=decoder.SITES | dict.fromkeys("qkv", _QKV),
)
