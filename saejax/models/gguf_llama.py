"""Llama models in GGUF files, under the names of transformers.

llama.cpp rotates adjacent pairs of a query or key, transformers its halves, so
that their rows are stored in another order within each head of width h: row
2 i + j in the file is row i + j h/2 in transformers, j in {0, 1}. This is undone
here.

References:
  llama.cpp, convert_hf_to_gguf.py (LlamaModel.permute) and src/llama-model.cpp
  (settings and their defaults).
"""

import dataclasses
import re
from typing import Any

import numpy as np
from jaxtyping import Float

from saejax.models import config_file, gguf

# Names of the modules, llama.cpp -> transformers.
MODULES = {
  "token_embd": "model.embed_tokens",
  "output_norm": "model.norm",
  "output": "lm_head",
}
LAYER_MODULES = {
  "attn_norm": "input_layernorm",
  "attn_q": "self_attn.q_proj",
  "attn_k": "self_attn.k_proj",
  "attn_v": "self_attn.v_proj",
  "attn_output": "self_attn.o_proj",
  "ffn_norm": "post_attention_layernorm",
  "ffn_gate": "mlp.gate_proj",
  "ffn_up": "mlp.up_proj",
  "ffn_down": "mlp.down_proj",
}
DIVISORS = "rope_freqs.weight"  # of rotary frequencies; no weight of a layer
ARCHITECTURE = "llama"
PREFIX = f"{ARCHITECTURE}."
# Settings that are read; others with this prefix would change the model.
SETTINGS = {
  PREFIX + name
  for name in (
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.value_length",
    "block_count",
    "context_length",
    "embedding_length",
    "expert_count",
    "feed_forward_length",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scaling.factor",
    "rope.scaling.finetuned",  # a note, which changes nothing
    "rope.scaling.type",
    "vocab_size",
  )
}


def settings(file: gguf.File) -> dict[str, Any]:
  """Returns the settings in the form of a config.json.

  Args:
    file: the file.

  Raises:
    InputError: a setting is missing, invalid or not implemented, or the layers
      of the tensors are others than those of the settings.
  """
  of_file = config_file.ConfigFile(file.path, file.metadata, "metadata")
  for key in file.metadata:
    if key.startswith(PREFIX) and key not in SETTINGS:
      raise of_file.refusal(key, "is not implemented")
  if of_file.values.get(PREFIX + "expert_count"):
    rule = "must be 0 or absent; experts are not implemented"
    raise of_file.refusal(PREFIX + "expert_count", rule)

  def integer(name: str, default: int | None = None) -> int:
    return of_file.integer(PREFIX + name, default)

  heads, d = integer("attention.head_count"), integer("embedding_length")
  head = integer("attention.key_length", max(d // heads, 1))
  for name in ("attention.value_length", "rope.dimension_count"):
    if integer(name, head) != head:
      rule = f"must be {head}, the width of a head"
      raise of_file.refusal(PREFIX + name, rule)
  layers, tokens = integer("block_count"), file.metadata.get(gguf.TOKENS)
  return {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": integer(
      "vocab_size", len(tokens) if isinstance(tokens, list) else None
    ),
    "hidden_size": d,
    "num_hidden_layers": layers,
    "num_attention_heads": heads,
    "num_key_value_heads": integer("attention.head_count_kv", heads),
    "head_dim": head,
    "intermediate_size": integer("feed_forward_length"),
    "max_position_embeddings": integer("context_length"),
    "rms_norm_eps": of_file.number(PREFIX + "attention.layer_norm_rms_epsilon"),
    "rope_theta": of_file.number(PREFIX + "rope.freq_base", 10000.0),
    "rope_scaling": _scaling(of_file, file),
    **_of_tensors(file, layers),
  }


def _scaling(
  of_file: config_file.ConfigFile, file: gguf.File
) -> dict[str, Any] | None:
  kind, factor = (PREFIX + f"rope.scaling.{n}" for n in ("type", "factor"))
  chosen = of_file.choice(kind, ("none", "linear"), "linear")
  linear = 1.0 if chosen == "none" else of_file.number(factor, 1.0)
  if DIVISORS not in file.tensors:
    return None if linear == 1 else {"rope_type": "linear", "factor": linear}
  if linear != 1:
    raise of_file.refusal(factor, f"must be 1 beside the tensor {DIVISORS}")
  divisors = file.get_slice(DIVISORS)[:].tolist()
  return {  # those of Llama 3, with divisors that do not depend on the length
    "rope_type": "longrope",
    "factor": 1.0,
    "original_max_position_embeddings": of_file.integer(
      PREFIX + "context_length"
    ),
    "short_factor": divisors,
    "long_factor": divisors,
  }


def _of_tensors(file: gguf.File, layers: int) -> dict[str, bool]:
  """Settings that follow from the tensors that exist."""
  names = _names(file)
  for name in names.values():
    match = re.match(r"blk\.(\d+)\.", name)
    if match is not None and int(match[1]) >= layers:
      raise file.refusal(
        f"must have {layers} layers ({PREFIX}block_count), and has {name}",
        "download the file again",
      )

  def biased(part: str) -> bool:
    return any(part in name and name.endswith(".bias") for name in names)

  return {
    "tie_word_embeddings": "lm_head.weight" not in names,
    "attention_bias": biased(".self_attn."),
    "mlp_bias": biased(".mlp."),
  }


def _names(file: gguf.File) -> dict[str, str]:
  """Names of the tensors, transformers -> llama.cpp."""
  found = {}
  for name in file.tensors:
    if name == DIVISORS:
      continue
    match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
    layer, module, kind = match.groups() if match else (None, name, "")
    known = MODULES if layer is None else LAYER_MODULES
    if module not in known:
      raise file.refusal(
        f"tensor {name} is not implemented for the architecture llama",
        "choose another model",
      )
    before = "" if layer is None else f"model.layers.{layer}."
    found[f"{before}{known[module]}.{kind}"] = name
  return found


class Tensors:
  """The tensors of a file under the names of transformers.

  Args:
    file: the file.

  Attributes:
    names: names of the tensors, transformers -> llama.cpp.

  Raises:
    InputError: a tensor is not implemented, or a setting is invalid.
  """

  def __init__(self, file: gguf.File):
    self._file, self.names = file, _names(file)
    found = settings(file)
    self._heads = {
      "q_proj": found["num_attention_heads"],
      "k_proj": found["num_key_value_heads"],
    }

  def get_slice(self, name: str) -> "gguf.Slices | Halves":
    """Returns a tensor, which is converted to float32 when it is read.

    Args:
      name: name of the tensor in transformers.
    """
    tensor = self._file.get_slice(self.names[name])
    heads = self._heads.get(name.split(".")[-2])
    return tensor if heads is None else Halves(tensor, heads)


@dataclasses.dataclass(frozen=True)
class Halves:
  """A query or key projection that is read by slices, see `halves`.

  Attributes:
    pairs: the projection in the file.
    heads: number of heads.
  """

  pairs: gguf.Slices
  heads: int

  def get_shape(self) -> tuple[int, ...]:
    """Returns the shape."""
    return self.pairs.get_shape()

  def __getitem__(self, index: slice | tuple[slice, ...]) -> np.ndarray:
    """Returns a part as float32.

    Args:
      index: a slice per axis, the first of whole heads; absent ones are whole.
    """
    rows = self.pairs[index]
    head = self.get_shape()[0] // self.heads
    return halves(rows, len(rows) // head)


def halves(rows: Float[np.ndarray, "o ..."], heads: int) -> np.ndarray:
  """Reorders rows of each head from adjacent pairs to halves.

  Args:
    rows: weight or bias of a query or key projection, as in a GGUF file.
    heads: number of heads.

  >>> halves(np.arange(8), 2).tolist()
  [0, 2, 1, 3, 4, 6, 5, 7]
  """
  pairs = rows.reshape(heads, -1, 2, *rows.shape[1:])
  return pairs.swapaxes(1, 2).reshape(rows.shape)
