"""Llama: the plain case of `decoder`.

Touvron et al., LLaMA, 2023, arXiv:2302.13971; Grattafiori et al., The Llama 3
Herd of Models, 2024, arXiv:2407.21783.
"""

import dataclasses

from saejax.models import config_file, decoder


def read_config(file: config_file.ConfigFile) -> decoder.Config:
  """Reads the settings of a Llama model.

  Args:
    file: the config.json.

  Raises:
    InputError: a setting is missing, invalid or not implemented.
  """
  bias = file.flag("attention_bias", False)
  return dataclasses.replace(
    decoder.read_config(file),
    qkv_bias=bias,
    out_bias=bias,
    mlp_bias=file.flag("mlp_bias", False),
  )


FAMILY = decoder.make(read_config)
