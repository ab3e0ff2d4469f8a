"""llamascopium 2 (OpenMOSS): config.json and sae_weights.safetensors.

Pre-activations are multiplied by the norms of the decoder's rows before the
activation and divided after it, where sparsity_include_decoder_norm says so. On
loading, the library gives latents the units of raw rows; its thresholds are not
converted there (2.0.0b34), and are here.

References:
  OpenMOSS/Language-Model-SAEs 2.0.0b34, by reading.
"""

import dataclasses
from typing import Any

import numpy as np

from saejax.errors import InputError
from saejax.interop import folds, kinds, reference
from saejax.interop.files import Files
from saejax.interop.formats import Forward, Hints
from saejax.interop.record import FIELD, Record, Site, Source

CONFIG, WEIGHTS = "config.json", "sae_weights.safetensors"
_SHAPES = {"W_E": "d n", "b_E": "n", "W_D": "n o", "b_D": "o"}
_THETA = "activation_function.log_jumprelu_threshold"
_NORM = "dataset_average_activation_norm."


@dataclasses.dataclass(frozen=True)
class _Found:
  """The checked content of the files."""

  weights: dict[str, np.ndarray]
  cfg: dict[str, Any]
  function: str
  k: int
  by_norm: bool
  s_in: float
  s_out: float
  dtype: str


def matches(files: Files) -> bool:
  """Whether the two files are there, with W_E.

  Args:
    files: the files.
  """
  both = files.has(CONFIG) and files.has(WEIGHTS)
  return both and "W_E" in files.keys(WEIGHTS)


def _found(files: Files) -> _Found:
  cfg = files.json(CONFIG)
  path = files.folder / CONFIG
  tensors = files.tensors(WEIGHTS)
  if "W_E_glu" in tensors:
    rule = "has a GLU encoder, of which saejax has no form"
    raise InputError(FIELD, path, rule, "choose another SAE")
  function = cfg.get("act_fn", "relu").lower()
  if function not in ("relu", "jumprelu", "topk"):
    rule = f"act_fn must be relu, jumprelu or topk, is {function!r}"
    raise InputError(FIELD, path, rule, "saejax has no form of others")
  shapes = {**_SHAPES, **({_THETA: "n"} if function == "jumprelu" else {})}
  hooks = {cfg.get("hook_point_in"), cfg.get("hook_point_out")}
  norms = {
    f"{_NORM}{hook}": "" for hook in hooks if f"{_NORM}{hook}" in tensors
  }
  weights = tensors.weights(
    {**shapes, **norms}, {"d": cfg.get("d_model")}, config=CONFIG
  )
  norm = cfg.get("norm_activation", "none")
  if norm == "dataset-wise":
    scale = lambda key, d: d**0.5 / float(weights[f"{_NORM}{cfg[key]}"])
    s_in = scale("hook_point_in", len(weights["W_E"]))
    s_out = scale("hook_point_out", len(weights["b_D"]))
  elif norm in ("none", "inference"):
    s_in = s_out = 1.0
  else:
    rule = f"norm_activation must be dataset-wise or none, is {norm!r}"
    raise InputError(FIELD, path, rule, "saejax has no form of others")
  k = cfg.get("top_k", 0)
  if function == "topk" and (type(k) is not int or k < 1):
    rule = f"top_k must be a positive integer, is {k!r}"
    raise InputError(FIELD, path, rule, "correct the file")
  by_norm = bool(cfg.get("sparsity_include_decoder_norm", True))
  return _Found(weights, cfg, function, k, by_norm, s_in, s_out, tensors.dtype)


def read(files: Files, hints: Hints) -> Record:
  """Reads an SAE or transcoder, on raw rows.

  Args:
    files: the files.
    hints: `site`.

  Raises:
    InputError: a file is damaged, contradicts the other, or has a part that
      saejax has not.
  """
  found = _found(files)
  t, cfg = found.weights, found.cfg
  norms = np.linalg.norm(np.float64(t["W_D"]), axis=1)
  norms = norms if found.by_norm else np.ones_like(norms)
  kind: kinds.Kind = kinds.Relu()
  if found.function == "jumprelu":  # a |w| > theta
    kind = kinds.Threshold(kinds.float32(np.exp(t[_THETA]) / norms))
  if found.function == "topk":
    kind = kinds.TopK(found.k, "norm" if found.by_norm else "value")
  hook, out = cfg.get("hook_point_in"), cfg.get("hook_point_out")
  site = {"model": cfg.get("model_name"), "hook": hook}
  site["hook_out"] = out if out != hook else None
  record = Record(
    W_enc=t["W_E"].T,
    b_enc=t["b_E"],
    W_dec=t["W_D"],
    b_dec=t["b_D"],
    kind=kind,
    subtract_b_dec=False,
    transcoder=out is not None and out != hook,
    site=Site(**{**site, **hints.site}),
  )
  names = (f"raw_units {found.s_in:.9g} {found.s_out:.9g}",)
  source = Source("llamascopium", "2", found.dtype, files.name, names)
  record = folds.raw_units(record, found.s_in, found.s_out)
  return record.replace(source=source)


def forward(files: Files, hints: Hints) -> Forward:
  """The forward pass on rows times their factor; latents in units of x.

  Args:
    files, hints: as for `read`.
  """
  del hints
  found = _found(files)
  t = {k: np.float64(v) for k, v in found.weights.items()}
  norms = np.linalg.norm(t["W_D"], axis=1) if found.by_norm else 1.0

  def run(x):
    pre = ((x * found.s_in) @ t["W_E"] + t["b_E"]) * norms
    if found.function == "jumprelu":
      z = reference.above(pre, np.exp(t[_THETA]))
    elif found.function == "topk":
      z = reference.top(pre, reference.relu(pre), found.k)
    else:
      z = reference.relu(pre)
    z = z / norms
    return z / found.s_in, (z @ t["W_D"] + t["b_D"]) / found.s_out

  return run
