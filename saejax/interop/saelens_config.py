"""The cfg.json of SAELens in its form since version 6, with its defaults.

References:
  decoderesearch/SAELens 6.54.12, handle_pre_6_0_config in
  sae_lens/loading/pretrained_sae_loaders.py; sae_lens/saes/*.py.
"""

import dataclasses
import pathlib
import re
import warnings
from collections.abc import Mapping
from typing import Any

from saejax.errors import InputError
from saejax.interop.files import Files
from saejax.interop.formats import Hints
from saejax.interop.record import FIELD, Site

NAME = "cfg.json"
# Name in the file -> `record.Prep`. Of the second and third the file has the
# weights after folding.
PREPS = {
  "none": "none",
  "expected_average_only_in": "none",
  "covariance_whitening": "none",
  "constant_norm_rescale": "row_norm",
  "layer_norm": "layer_norm",
}
RANKED = ("topk", "abstopk")
BATCH = ("batchtopk", "matryoshka_batchtopk")  # training checkpoints
JUMP = ("jumprelu", "jumprelu_transcoder", "jumprelu_skip_transcoder")
ARCHITECTURES = (
  *("standard", "gated", "matching_pursuit", "transcoder", "skip_transcoder"),
  *RANKED,
  *JUMP,
  *BATCH,
)
METADATA = {  # names in `record.Site` and in the file
  "model": "model_name",
  "hook": "hook_name",
  "hook_out": "hook_name_out",
  "context": "context_size",
  "prepend_bos": "prepend_bos",
  "dataset": "dataset_path",
}


@dataclasses.dataclass(frozen=True)
class Config:
  """cfg.json in its form since version 6, with its defaults."""

  architecture: str
  d_in: int
  d_sae: int
  d_out: int
  subtract: bool
  normalize: str
  k: int
  rescale: bool
  residual: float
  steps: int
  stop_on_repeat: bool
  scale: float  # of the input, not folded yet
  metadata: Mapping[str, Any]
  version: str
  path: pathlib.Path

  @property
  def transcoder(self) -> bool:
    return "transcoder" in self.architecture


def read(files: Files, hints: Hints) -> Config:
  cfg = files.json(NAME)
  path = files.folder / NAME
  metadata = cfg.get("metadata") or {}
  version = cfg.get("sae_lens_version") or metadata.get("sae_lens_version")
  if not version or _number(version) < (6,):
    cfg, metadata = _modern(cfg, path), cfg
  architecture = cfg.get("architecture", "")
  if architecture not in ARCHITECTURES:
    rule = f"architecture must be one of {', '.join(ARCHITECTURES)}, "
    rule += f"is {architecture!r}"
    raise InputError(FIELD, path, rule, "saejax has no form of others")
  normalize = cfg.get("normalize_activations") or "none"
  if normalize not in PREPS:
    rule = f"normalize_activations must be one of {', '.join(PREPS)}"
    raise InputError(FIELD, path, f"{rule}, is {normalize!r}", "save it again")
  sizes = {name: cfg.get(name) for name in ("d_in", "d_sae")}
  for name, size in sizes.items():
    if type(size) is not int or size < 1:
      rule = f"{name} must be a positive integer, is {size!r}"
      raise InputError(FIELD, path, rule, "correct the file")
  transcoder = "transcoder" in architecture
  subtract = bool(cfg.get("apply_b_dec_to_input", not transcoder))
  if transcoder and subtract:
    rule = "apply_b_dec_to_input must be false for a transcoder"
    raise InputError(FIELD, path, rule, "set it to false")
  steps = cfg.get("max_iterations")
  return Config(
    architecture=architecture,
    **sizes,
    d_out=cfg.get("d_out", 768) if transcoder else sizes["d_in"],
    subtract=subtract,
    normalize=normalize,
    k=cfg.get("k", 100),
    rescale=architecture in (*RANKED, *BATCH)
    and cfg.get("rescale_acts_by_decoder_norm", architecture in BATCH),
    residual=cfg.get("residual_threshold", 1e-2),
    steps=sizes["d_in"] if steps is None else steps,
    stop_on_repeat=cfg.get("stop_on_duplicate_support", True),
    scale=_scale(files, hints, normalize),
    metadata=metadata,
    version=str(version or ""),
    path=path,
  )


def _number(version: Any) -> tuple[int, ...]:
  found = re.match(r"(\d+)", str(version))
  return (int(found[1]),) if found else (0,)


def _modern(cfg: Mapping[str, Any], path: Any) -> dict[str, Any]:
  """A flat cfg.json of a version before 6 in the form of version 6."""
  old = {
    {"hook_point": "hook_name", "activation_fn_str": "activation_fn"}.get(
      k, k
    ): v
    for k, v in cfg.items()
  }
  new = {"architecture": "standard", "apply_b_dec_to_input": True, **old}
  function = old.get("activation_fn") or "relu"
  if function == "topk":
    k = (old.get("activation_fn_kwargs") or {}).get("k")
    if k is None:
      rule = "activation_fn_kwargs must have k, as activation_fn is topk"
      raise InputError(FIELD, path, rule, "add it")
    new |= {"architecture": "topk", "k": k}
  elif function != "relu":
    rule = f"activation_fn must be relu or topk, is {function!r}"
    raise InputError(FIELD, path, rule, "SAELens reads it as relu; do not")
  normalize = old.get("normalize_activations")
  if isinstance(normalize, bool):
    new["normalize_activations"] = (
      "expected_average_only_in" if normalize else "none"
    )
  return new


def _scale(files: Files, hints: Hints, normalize: str) -> float:
  """The factor of x that the weights do not have yet."""
  whitening = "activation_whitening.safetensors"
  if normalize == "covariance_whitening" and files.has(whitening):
    rule = "is a training checkpoint whose whitening is not folded"
    raise InputError(FIELD, files.folder, rule, "pass the final SAE")
  if normalize != "expected_average_only_in":
    return 1.0
  scale = hints.scale
  if scale is None and files.has("activation_scaler.json"):
    scale = files.json("activation_scaler.json").get("scaling_factor")
  if scale is None:
    warnings.warn(
      f"{files.name}: normalize_activations is expected_average_only_in and no "
      "factor is given: weights are taken as folded, as SAELens does. Pass "
      "scale= (norm_scaling_factor of its registry) if they are not",
      stacklevel=2,
    )
  return 1.0 if scale is None else float(scale)


def site(cfg: Config, hints: Hints) -> Site:
  known = {ours: cfg.metadata.get(key) for ours, key in METADATA.items()}
  known["hook"] = known["hook"] or cfg.metadata.get("hook_point")
  return Site(**{**known, **hints.site})
