"""Llama Scope (2024): hyperparams.json and checkpoints/final.safetensors.

x was scaled to a mean norm of sqrt(d), and a latent is measured by a |w| in raw
units: its threshold, one for all, is compared after the norms of the decoder's
rows have been folded. (SAELens' reader, 6.54.12, leaves that fold out, and so
has other latents active.)

References:
  He et al., Llama Scope, 2024, arXiv:2410.20526; OpenMOSS/Language-Model-SAEs,
  November 2024, for the order of the folds.
"""

import dataclasses
from typing import Any

import numpy as np

from saejax.errors import InputError
from saejax.interop import folds, kinds, reference
from saejax.interop.files import Files
from saejax.interop.formats import Forward, Hints, without
from saejax.interop.record import FIELD, Record, Site, Source

CONFIG, WEIGHTS = "hyperparams.json", "checkpoints/final.safetensors"
_SHAPES = {
  "encoder.weight": "n d",
  "encoder.bias": "n",
  "decoder.weight": "o n",
  "decoder.bias": "o",
}


@dataclasses.dataclass(frozen=True)
class _Found:
  """The checked content of the files."""

  weights: dict[str, np.ndarray]
  s_in: float
  s_out: float
  theta: float | None  # None: ReLU or, with k, TopK
  k: int | None
  subtract: bool
  cfg: dict[str, Any]
  dtype: str


def matches(files: Files) -> bool:
  """Whether the two files of Llama Scope are there.

  Args:
    files: the files.
  """
  return files.has(CONFIG) and files.has(WEIGHTS)


def _found(files: Files) -> _Found:
  cfg = files.json(CONFIG)
  path = files.folder / CONFIG
  sizes = {"d": cfg["d_model"], "n": cfg.get("d_sae")}
  tensors = files.tensors(WEIGHTS)
  shapes = dict(_SHAPES)
  if not cfg.get("use_decoder_bias", True):
    del shapes["decoder.bias"]
  weights = tensors.weights(shapes, sizes, config=CONFIG)
  weights.setdefault(
    "decoder.bias", np.zeros(len(weights["decoder.weight"]), np.float32)
  )
  norm = cfg.get("norm_activation", "dataset-wise")
  by_norm = cfg.get("sparsity_include_decoder_norm", True)
  if norm != "dataset-wise" or not by_norm:
    rule = "must have norm_activation dataset-wise, which is "
    rule += f"{norm!r}, and sparsity_include_decoder_norm, which is {by_norm}"
    raise InputError(FIELD, path, rule, "saejax has no form of others")
  norms = cfg["dataset_average_activation_norm"]
  function, theta, k = cfg.get("act_fn", "topk"), None, None
  if function in ("topk", "jumprelu"):
    theta = cfg.get("jump_relu_threshold")
    if not theta or theta < 0:
      theta, k = None, cfg.get("top_k")
      if function == "jumprelu" or type(k) is not int or k < 1:
        rule = "must have a positive jump_relu_threshold or top_k"
        raise InputError(FIELD, path, rule, "correct the file")
  elif function != "relu":
    rule = f"act_fn must be relu, topk or jumprelu, is {function!r}"
    raise InputError(FIELD, path, rule, "saejax has no form of others")
  return _Found(
    weights=weights,
    s_in=sizes["d"] ** 0.5 / norms["in"],
    s_out=len(weights["decoder.bias"]) ** 0.5 / norms["out"],
    theta=theta,
    k=k,
    subtract=bool(cfg.get("apply_decoder_bias_to_pre_encoder")),
    cfg=cfg,
    dtype=tensors.dtype,
  )


def read(files: Files, hints: Hints) -> Record:
  """Reads an SAE, on raw rows and with unit decoder rows.

  Args:
    files: the files.
    hints: `site`.

  Raises:
    InputError: a file is damaged or contradicts the other.
  """
  found = _found(files)
  t, cfg = found.weights, found.cfg
  hook, out = cfg.get("hook_point_in"), cfg.get("hook_point_out")
  record = Record(
    W_enc=t["encoder.weight"],
    b_enc=t["encoder.bias"],
    W_dec=t["decoder.weight"].T,
    b_dec=t["decoder.bias"],
    kind=kinds.Relu(),
    subtract_b_dec=found.subtract,
    transcoder=out is not None and out != hook,
    site=Site(
      **{
        "model": "meta-llama/Llama-3.1-8B",
        "hook": hook,
        "hook_out": out if out != hook else None,
        "context": 1024,
        "prepend_bos": True,
        **hints.site,
      }
    ),
  )
  record = folds.raw_units(record, found.s_in, found.s_out)
  record = folds.decoder_norms(record)
  if found.theta is not None:
    kind = kinds.Threshold(np.full((record.n,), found.theta, np.float32))
  else:
    kind = kinds.TopK(found.k) if found.k else kinds.Relu()
  names = (f"raw_units {found.s_in:.9g} {found.s_out:.9g}", "decoder_norms")
  source = Source("llama_scope", "", found.dtype, files.name, names)
  return record.replace(kind=kind, source=source)


def forward(files: Files, hints: Hints) -> Forward:
  """The forward pass of Llama Scope's code, with its parameters standardised.

  Args:
    files, hints: as for `read`.
  """
  del hints
  found = _found(files)
  t = {k: np.float64(v) for k, v in found.weights.items()}
  b_e = t["encoder.bias"] / found.s_in
  b_d = t["decoder.bias"] / found.s_out
  W_d = t["decoder.weight"] * (found.s_in / found.s_out)
  norms = np.linalg.norm(W_d, axis=0)
  W_d = W_d / norms
  W_e, b_e = t["encoder.weight"] * norms[:, None], b_e * norms

  def run(x):
    c = x - b_d if found.subtract else x
    pre = c @ W_e.T + b_e
    if found.theta is not None:
      z = reference.above(pre, found.theta)
    elif found.k:
      z = reference.top(pre, reference.relu(pre), found.k)
    else:
      z = reference.relu(pre)
    return z, z @ W_d.T + b_d

  return run


def write(record: Record) -> dict[str, Any]:
  """The files of a record: decoder rows of unit norm, one threshold.

  Args:
    record: the record.

  Raises:
    InputError: a prep depends on rows, or thresholds differ once decoder rows
      have unit norm.
    Lossy: latents are ranked, not compared with thresholds.
  """
  record = folds.prep(record)
  if isinstance(record.kind, kinds.Gate | kinds.Threshold):
    record = folds.threshold(record)
  record = folds.decoder_norms(record)
  settings: dict[str, Any] = {"top_k": 1, "jump_relu_threshold": 0.0}
  match record.kind:
    case kinds.Relu():
      settings["act_fn"] = "relu"
    case kinds.TopK(rank="value", signed=False, k=k):
      settings |= {"act_fn": "topk", "top_k": k}
    case kinds.Threshold(theta=theta) if np.ptp(theta) <= 1e-6 * theta.max():
      if theta[0] > 0:
        settings |= {"act_fn": "jumprelu"}
        settings["jump_relu_threshold"] = float(theta[0])
      else:
        settings["act_fn"] = "relu"
    case kinds.Threshold():
      rule = "has one threshold for all latents of unit decoder rows"
      raise InputError("format", "llama_scope", rule, "choose gemma_scope")
    case _:
      raise without("Llama Scope", record.kind)
  if record.W_skip is not None:
    rule = "has no skip connection"
    raise InputError("format", "llama_scope", rule, "choose gemma_scope_2")
  out = record.site.hook
  if record.transcoder:
    out = record.site.hook_out or "target"
  t = {
    "encoder.weight": record.W_enc,
    "encoder.bias": record.b_enc,
    "decoder.weight": record.W_dec.T,
    "decoder.bias": record.b_dec,
  }
  cfg = {
    "d_model": record.d,
    "d_sae": record.n,
    "expansion_factor": record.n / record.d,
    "hook_point_in": record.site.hook,
    "hook_point_out": out,
    **settings,
    "norm_activation": "dataset-wise",
    # Weights act on raw rows: a scale of 1.
    "dataset_average_activation_norm": {
      "in": record.d**0.5,
      "out": record.d_out**0.5,
    },
    "sparsity_include_decoder_norm": True,
    "apply_decoder_bias_to_pre_encoder": record.subtract_b_dec,
    "use_decoder_bias": True,
  }
  return {CONFIG: cfg, WEIGHTS: t}
