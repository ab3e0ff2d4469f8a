"""Runs SAEBench's core evaluation on local files, offline.

Needs the environment of `make clients`:
  .venv-clients/bin/python tests/clients/core_client.py JOB OUT

JOB is a JSON file: "model", the folder of a Llama model in the form of
transformers; "saes", name -> folder in the form of SAELens; "hook", "documents", "context", "prompts",
"reconstruction" and "variance" (batches). OUT gets {"windows": {"reconstruction",
"variance"}, "special", "saes": name -> {"metrics", "details"}}.
"""

import json
import os
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from datasets import Dataset
from sae_bench.evals.core import eval_config, main
from sae_bench.sae_bench_utils import general_utils
from sae_lens import SAE, ActivationsStore
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions import (
  convert_llama_weights,
)

torch.set_num_threads(1)


def model_of(folder: str) -> HookedTransformer:
  """A Llama model in TransformerLens, without processing of its weights."""
  theirs = transformers.AutoModelForCausalLM.from_pretrained(
    folder, dtype=torch.float32
  )
  c = theirs.config
  config = HookedTransformerConfig(
    n_layers=c.num_hidden_layers,
    d_model=c.hidden_size,
    n_heads=c.num_attention_heads,
    n_key_value_heads=c.num_key_value_heads,
    d_head=c.head_dim,
    d_mlp=c.intermediate_size,
    n_ctx=c.max_position_embeddings,
    d_vocab=c.vocab_size,
    act_fn=c.hidden_act,
    eps=c.rms_norm_eps,
    normalization_type="RMS",
    positional_embedding_type="rotary",
    rotary_adjacent_pairs=False,
    rotary_dim=c.head_dim,
    rotary_base=int(c.rope_parameters["rope_theta"]),
    final_rms=True,
    gated_mlp=True,
    default_prepend_bos=True,
    original_architecture="LlamaForCausalLM",
    dtype=torch.float32,
    device="cpu",
  )
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  model = HookedTransformer(config, tokenizer)
  model.load_and_process_state_dict(
    convert_llama_weights(theirs, config),
    fold_ln=False,
    center_writing_weights=False,
    center_unembed=False,
    fold_value_biases=False,
  )
  return model


def sae_of(folder: str, job: dict, name: str) -> SAE:
  """An SAE as SAEBench prepares those that it loads by name."""
  sae = SAE.load_from_disk(folder)
  sae.cfg.metadata.hook_name = job["hook"]
  sae.cfg.metadata.model_name = "local"
  sae.cfg.metadata.context_size = job["context"]
  sae.cfg.metadata.prepend_bos = True
  try:
    sae.fold_W_dec_norm()
  except NotImplementedError:
    print(f"{name}: not folded")
  general_utils.load_and_format_sae(name, sae, "cpu")  # fills its config
  return sae


def evaluated(model: HookedTransformer, sae: SAE, job: dict) -> tuple:
  """Metrics, details of latents, and the windows that were read."""
  store = ActivationsStore.from_sae(
    model,
    sae,
    dataset=Dataset.from_dict({"text": job["documents"]}),
    streaming=False,
    context_size=job["context"],
    store_batch_size_prompts=job["prompts"],
  )
  windows, draw = [], store.get_batch_tokens

  def recorded(*args, **kwargs):
    windows.append(draw(*args, **kwargs))
    return windows[-1]

  store.get_batch_tokens = recorded
  groups = ("kl", "ce_loss", "l2_norms", "sparsity_metrics", "variance_metrics")
  groups += (
    "featurewise_density_statistics",
    "featurewise_weight_based_metrics",
  )
  config = eval_config.CoreEvalConfig(
    model_name="local",
    batch_size_prompts=job["prompts"],
    n_eval_reconstruction_batches=job["reconstruction"],
    n_eval_sparsity_variance_batches=job["variance"],
    exclude_special_tokens_from_reconstruction=True,
    context_size=job["context"],
    **{f"compute_{group}": True for group in groups},
  )
  words = model.tokenizer
  special = {words.pad_token_id, words.eos_token_id, words.bos_token_id}
  metrics, latents = main.run_evals(
    sae, store, model, config, ignore_tokens=special
  )
  metrics["misc_metrics"] = main.calculate_misc_metrics(latents)
  clean = main.replace_nans_with_negative_one
  details = [vars(one) for one in main.convert_feature_metrics(clean(latents))]
  first = job["reconstruction"]
  read = {
    "reconstruction": [batch.tolist() for batch in windows[:first]],
    "variance": [batch.tolist() for batch in windows[first:]],
  }
  return clean(metrics), details, read, sorted(special)


def run(job: dict) -> dict:
  """What the module's docstring says of OUT."""
  model = model_of(job["model"])
  found: dict = {"saes": {}}
  for name, folder in job["saes"].items():
    sae = sae_of(folder, job, name)
    metrics, details, windows, special = evaluated(model, sae, job)
    found |= {"windows": windows, "special": special}
    found["saes"][name] = {"metrics": metrics, "details": details}
  return found


if __name__ == "__main__":
  with open(sys.argv[1]) as file:
    result = run(json.load(file))
  with open(sys.argv[2], "w") as file:
    json.dump(result, file)
