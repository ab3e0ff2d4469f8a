"""Llama Scope R1 Distill: config.json and sae_weights.safetensors.

x was scaled in training; the factor is in no file of the release but in the
registry of SAELens (norm_scaling_factor).

References:
  fnlp/Llama-Scope-R1-Distill; SAELens 6.54.12,
  llama_scope_r1_distill_sae_huggingface_loader.
"""

import numpy as np

from saejax.errors import InputError
from saejax.interop import folds, kinds, reference
from saejax.interop.files import Files
from saejax.interop.formats import Forward, Hints
from saejax.interop.record import FIELD, Record, Site, Source

CONFIG, WEIGHTS = "config.json", "sae_weights.safetensors"
_SHAPES = {
  "encoder.weight": "n d",
  "encoder.bias": "n",
  "decoder.weight": "d n",
  "decoder.bias": "d",
  "log_jumprelu_threshold": "n",
}


def matches(files: Files) -> bool:
  """Whether the two files are there, with a log_jumprelu_threshold.

  Args:
    files: the files.
  """
  both = files.has(CONFIG) and files.has(WEIGHTS)
  return both and "log_jumprelu_threshold" in files.keys(WEIGHTS)


def _found(files: Files, hints: Hints):
  cfg = files.json(CONFIG)
  d = cfg["d_model"]
  tensors = files.tensors(WEIGHTS)
  sizes = {"d": d, "n": d * cfg["expansion_factor"]}
  weights = tensors.weights(_SHAPES, sizes, config=CONFIG)
  scale = hints.scale
  norms = cfg.get("dataset_average_activation_norm")
  if norms is not None:
    scale = d**0.5 / norms["in"]
  if scale is None:
    rule = "has no factor of x, which is in SAELens' registry"
    remedy = "load it as sae-lens:llama_scope_r1_distill/ID, or pass scale"
    raise InputError(FIELD, files.name, rule, remedy)
  return weights, scale, cfg, tensors.dtype


def read(files: Files, hints: Hints) -> Record:
  """Reads an SAE.

  Args:
    files: the files.
    hints: `scale`, the factor of x; `site`.

  Raises:
    InputError: a file is damaged, or the factor is unknown.
  """
  t, scale, cfg, dtype = _found(files, hints)
  site = {
    "model": "deepseek-ai/DeepSeek-R1-Distill-Llama-8B",
    "hook": cfg.get("hook_point_in"),
    "context": 1024,
    "prepend_bos": True,
    **hints.site,
  }
  record = Record(
    W_enc=t["encoder.weight"],
    b_enc=t["encoder.bias"],
    W_dec=t["decoder.weight"].T,
    b_dec=t["decoder.bias"],
    kind=kinds.Threshold(np.exp(t["log_jumprelu_threshold"])),
    subtract_b_dec=False,
    site=Site(**site),
    source=Source(
      "llama_scope_r1", "", dtype, files.name, (f"scales {scale:.9g}",)
    ),
  )
  return folds.scales(record, scale, scale)


def forward(files: Files, hints: Hints) -> Forward:
  """The forward pass in training: rows times the factor, and back.

  Args:
    files, hints: as for `read`.
  """
  weights, scale, _, _ = _found(files, hints)
  t = {k: np.float64(v) for k, v in weights.items()}

  def run(x):
    a = (x * scale) @ t["encoder.weight"].T + t["encoder.bias"]
    z = reference.above(a, np.exp(t["log_jumprelu_threshold"]))
    return z, (z @ t["decoder.weight"].T + t["decoder.bias"]) / scale

  return run
