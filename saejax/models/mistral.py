"""Mistral: Llama with a sliding window in all layers, or in none.

Jiang et al., Mistral 7B, 2023, arXiv:2310.06825.
"""

import dataclasses

from saejax.models import config_file, decoder


def read_config(file: config_file.ConfigFile) -> decoder.Config:
  """Reads the settings of a Mistral model.

  Args:
    file: the config.json.

  Raises:
    InputError: a setting is missing, invalid or not implemented.
  """
  config = decoder.read_config(
    file,
    implemented=["sliding_window"],
    defaults={
      "max_position_embeddings": 4096 * 32,
      "num_key_value_heads": 8,
    },
  )
  window = file.optional(file.integer, "sliding_window", 4096)
  return dataclasses.replace(
    config, window=window, windowed=(window is not None,) * config.layers
  )


FAMILY = decoder.make(read_config)
