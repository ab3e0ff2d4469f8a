"""Checkpoints of random weights, of any family and size."""

import json
import pathlib
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from saejax.models import config_file, lazy, weights
from saejax.models import model as model_lib

# Sizes that two and four devices divide, under the names of most families.
SIZES = {
  "vocab_size": 40,
  "hidden_size": 32,
  "num_hidden_layers": 2,
  "num_attention_heads": 8,
  "num_key_value_heads": 4,
  "intermediate_size": 48,
  "max_position_embeddings": 32,
  "head_dim": 8,
  "sliding_window": 4,
}
OF_GPT2 = {
  "vocab_size": 41,  # which no mesh divides
  "n_embd": 32,
  "n_layer": 2,
  "n_head": 8,
  "n_positions": 32,
}
SETTINGS: dict[str, dict] = {
  "bert": SIZES,
  "gemma": SIZES,
  "gemma2": SIZES,
  "gemma3_text": SIZES,
  "gpt2": OF_GPT2,
  "gpt_neox": SIZES | {"rotary_pct": 1.0},
  "llama": SIZES | {"attention_bias": True, "mlp_bias": True},
  "mistral": SIZES,
  "phi3": SIZES,
  "qwen2": SIZES,
  "qwen3": SIZES,
}
LEFT_OUT = {  # settings that a family refuses
  "sliding_window": ("bert", "gemma", "gpt_neox", "llama"),
  "head_dim": ("bert", "gpt_neox", "phi3"),
}


class Recorder(weights.Weights):
  """Draws every tensor that a family reads, and keeps it by name."""

  def __init__(self):
    super().__init__(pathlib.Path(), {}, jnp.dtype(jnp.float32))
    self.tensors: dict[str, np.ndarray] = {}
    self._rng = np.random.default_rng(0)

  def strip_prefix(self, anchor: str, *prefixes: str) -> None:
    self._prefix = prefixes[0]

  def stored(self, name, *shape, absolute=False):
    key = name if absolute else self._prefix + name
    width = shape[-1] if len(shape) > 1 else 1
    tensor = self._rng.standard_normal(shape, np.float32) / width**0.5
    self.tensors[key] = tensor
    return lazy.Lazy(shape, lambda part: tensor[part])


def settings(family: str) -> dict:
  """The config.json of a family."""
  kept = {
    key: value
    for key, value in SETTINGS[family].items()
    if family not in LEFT_OUT.get(key, ())
  }
  return {"model_type": family, "architectures": ["ForCausalLM"]} | kept


def folder(path: pathlib.Path, values: Mapping, *, files: int = 1) -> str:
  """Writes a checkpoint.

  Args:
    path: the folder.
    values: its config.json.
    files: number of safetensors files; several have an index.
  """
  path.mkdir(parents=True, exist_ok=True)
  (path / "config.json").write_text(json.dumps(values))
  family = model_lib.FAMILIES[values["model_type"]]
  config = family.read_config(config_file.ConfigFile(path, values))
  drawn = Recorder()
  family.read_params(drawn, config)
  if files == 1:
    safetensors.numpy.save_file(drawn.tensors, path / "model.safetensors")
    return str(path)
  names, places = sorted(drawn.tensors), {}
  for i in range(files):
    file = f"model-{i + 1:05}-of-{files:05}.safetensors"
    own = {name: drawn.tensors[name] for name in names[i::files]}
    safetensors.numpy.save_file(own, path / file)
    places |= dict.fromkeys(own, file)
  index = json.dumps({"weight_map": places})
  (path / "model.safetensors.index.json").write_text(index)
  return str(path)
