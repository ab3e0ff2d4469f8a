"""Gemma Scope 2: params.safetensors of JumpReLU SAEs and transcoders.

References:
  google/gemma-scope-2-*; SAELens 6.54.12, gemma_3_sae_huggingface_loader, for
  sites and names of models.
"""

import re
from typing import Any

import numpy as np

from saejax.interop import reference
from saejax.interop.files import Files
from saejax.interop.formats import Forward, Hints
from saejax.interop.gemma_scope import thresholded
from saejax.interop.kinds import Threshold
from saejax.interop.record import Record, Site, Source

CONFIG, WEIGHTS = "config.json", "params.safetensors"
SKIP = "affine_skip_connection"  # [d, d_out], not transposed as W_skip is
_SHAPES = {
  "w_enc": "d n",
  "b_enc": "n",
  "w_dec": "n o",
  "b_dec": "o",
  "threshold": "n",
}
# Name of the folder -> site in TransformerLens, module, as in the releases.
_HOOKS = {
  "resid_post": "hook_resid_post",
  "attn_out": "attn.hook_z",
  "mlp_out": "hook_mlp_out",
  "transcoder": "hook_mlp_in",
}


def matches(files: Files) -> bool:
  """Whether there is a params.safetensors.

  Args:
    files: the files.
  """
  return files.has(WEIGHTS)


def _weights(files: Files) -> tuple[dict[str, np.ndarray], str]:
  tensors = files.tensors(WEIGHTS)
  skip = {SKIP: "d o"} if SKIP in tensors else {}
  return tensors.weights({**_SHAPES, **skip}), tensors.dtype


def read(files: Files, hints: Hints) -> Record:
  """Reads an SAE or transcoder; config.json or the folder's name gives the site.

  Args:
    files: the files.
    hints: `site`.

  Raises:
    InputError: a file is damaged.
  """
  t, dtype = _weights(files)
  site = _site(files)
  skip = t.get(SKIP)
  wide = len(t["w_enc"]) != len(t["b_dec"])
  return Record(
    W_enc=t["w_enc"].T,
    b_enc=t["b_enc"],
    W_dec=t["w_dec"],
    b_dec=t["b_dec"],
    kind=Threshold(t["threshold"]),
    subtract_b_dec=False,
    transcoder=wide or skip is not None or site.hook_out is not None,
    W_skip=None if skip is None else skip.T,
    site=Site(**{**site.known(), **hints.site}),
    source=Source("gemma_scope_2", "", dtype, files.name),
  )


def _site(files: Files) -> Site:
  config = files.json(CONFIG) if files.has(CONFIG) else {}
  repo = re.search(r"gemma-scope-2-(\w+-(?:pt|it))", files.name)
  model = config.get("model_name") or (repo and f"google/gemma-3-{repo[1]}")
  if model:
    model = model if "/" in model else f"google/{model}"
    model = model.replace("-v3", "-3")
    if "270m" in model:  # its name on the hub has no suffix
      model = model.replace("-pt", "")
  layer = re.search(r"layer_(\d+)", files.name)
  place = next((key for key in _HOOKS if f"{key}" in files.name), None)
  hook = config.get("hf_hook_point_in")
  out = config.get("hf_hook_point_out")
  if place and layer:
    hook = f"blocks.{layer[1]}.{_HOOKS[place]}"
    if place == "transcoder":
      out = f"blocks.{layer[1]}.hook_mlp_out"
  return Site(model or None, hook, out, 1024, True)


def forward(files: Files, hints: Hints) -> Forward:
  """The forward pass of Gemma Scope 2.

  Args:
    files, hints: as for `read`.
  """
  del hints
  t = {k: np.float64(v) for k, v in _weights(files)[0].items()}

  def run(x):
    z = reference.above(x @ t["w_enc"] + t["b_enc"], t["threshold"])
    y = z @ t["w_dec"] + t["b_dec"]
    return z, y + x @ t[SKIP] if SKIP in t else y

  return run


def write(record: Record) -> dict[str, Any]:
  """The files of a record.

  Args:
    record: the record.

  Raises:
    InputError: a prep depends on rows.
    Lossy: latents are ranked, not compared with thresholds.
  """
  record = thresholded(record, "Gemma Scope 2")
  kind = record.kind
  assert isinstance(kind, Threshold)
  t = {"w_enc": record.W_enc.T, "b_enc": record.b_enc}
  t |= {"w_dec": record.W_dec, "b_dec": record.b_dec, "threshold": kind.theta}
  if record.W_skip is not None:
    t[SKIP] = record.W_skip.T
  config = {
    "architecture": "jump_relu",
    "model_name": record.site.model or "unknown",  # SAELens needs one
    "hf_hook_point_in": record.site.hook,
    "hf_hook_point_out": record.site.hook_out or ""
    if record.transcoder
    else None,
    "affine_connection": record.W_skip is not None,
  }
  known = {name: v for name, v in config.items() if v is not None}
  return {CONFIG: known, WEIGHTS: t}
