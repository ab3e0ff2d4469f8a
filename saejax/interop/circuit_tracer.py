"""Per-layer transcoders of circuit-tracer: layer_{i}.safetensors, config.yaml.

Both matrices have a row per latent. The transcoders of mwhanna for Qwen 3 are of
this form.

References:
  decoderesearch/circuit-tracer 0.4.1; SAELens 6.54.12,
  mwhanna_transcoder_huggingface_loader.
"""

import re
from typing import Any

import numpy as np

from saejax.errors import InputError
from saejax.interop import folds, kinds, reference
from saejax.interop.files import Files, Tensors
from saejax.interop.formats import Forward, Hints
from saejax.interop.record import FIELD, Record, Site, Source

CONFIG = "config.yaml"
NAME = re.compile(r"layer_(\d+)\.safetensors")
_SHAPES = {"W_enc": "n d", "b_enc": "n", "W_dec": "n o", "b_dec": "o"}
_THETA = "activation_function.threshold"
_K = ("k", "activation_function.k")


def _file(files: Files) -> str | None:
  names = [name for name in files.names if NAME.fullmatch(name)]
  return names[0] if len(names) == 1 else None


def matches(files: Files) -> bool:
  """Whether there is one layer_{i}.safetensors with both matrices.

  Args:
    files: the files.
  """
  name = _file(files)
  return name is not None and files.keys(name) >= _SHAPES.keys()


def _found(files: Files) -> tuple[dict[str, np.ndarray], int | None, Tensors]:
  name = _file(files)
  if name is None:
    rule = "must have one layer_{i}.safetensors"
    raise InputError(FIELD, files.name, rule, "give the path of one")
  tensors = files.tensors(name)
  shapes = dict(_SHAPES)
  if _THETA in tensors:
    theta = tensors.arrays[_THETA]
    shapes[_THETA] = "n" if np.size(theta) > 1 else " ".join("1" * theta.ndim)
  if "W_skip" in tensors:
    shapes["W_skip"] = "o d"
  k = next((int(tensors.arrays[key]) for key in _K if key in tensors), None)
  return tensors.weights(shapes), k, tensors


def read(files: Files, hints: Hints) -> Record:
  """Reads the transcoder of one layer.

  Args:
    files: the files, with one layer or the path of its file.
    hints: `site`.

  Raises:
    InputError: a file is damaged.
  """
  t, k, tensors = _found(files)
  n = len(t["b_enc"])
  kind: kinds.Kind = kinds.Relu()
  if _THETA in t:
    kind = kinds.Threshold(np.broadcast_to(t[_THETA].reshape(-1), (n,)))
  elif k is not None:
    kind = kinds.TopK(k)
  return Record(
    W_enc=t["W_enc"],
    b_enc=t["b_enc"],
    W_dec=t["W_dec"],
    b_dec=t["b_dec"],
    kind=kind,
    subtract_b_dec=False,
    transcoder=True,
    W_skip=t.get("W_skip"),
    site=_site(files, hints),
    source=Source("circuit_tracer", "", tensors.dtype, files.name),
  )


def _site(files: Files, hints: Hints) -> Site:
  name = _file(files)
  found = NAME.fullmatch(name or "")
  layer = found[1] if found else "0"
  config = files.yaml(CONFIG) if files.has(CONFIG) else {}
  known = {
    "model": config.get("model_name"),
    "hook": config.get("feature_input_hook", "mlp.hook_in"),
    "hook_out": config.get("feature_output_hook", "hook_mlp_out"),
  }
  for key in ("hook", "hook_out"):
    known[key] = f"blocks.{layer}.{known[key]}"
  return Site(**{**known, **hints.site})


def forward(files: Files, hints: Hints) -> Forward:
  """The forward pass of circuit-tracer's single-layer transcoder.

  Args:
    files, hints: as for `read`.
  """
  del hints
  weights, k, _ = _found(files)
  t = {key: np.float64(v) for key, v in weights.items()}

  def run(x):
    a = x @ t["W_enc"].T + t["b_enc"]
    if _THETA in t:
      z = reference.above(a, t[_THETA].reshape(-1))
    elif k is not None:
      z = reference.top(a, reference.relu(a), k)
    else:
      z = reference.relu(a)
    y = z @ t["W_dec"] + t["b_dec"]
    return z, y + x @ t["W_skip"].T if "W_skip" in t else y

  return run


def write(record: Record) -> dict[str, Any]:
  """The files of a transcoder.

  Args:
    record: the record.

  Raises:
    InputError: it is not a transcoder, a prep depends on rows, or latents are
      ranked otherwise than by TopK.
  """
  if not record.transcoder:
    rule = "has transcoders alone, and this is an SAE"
    raise InputError("format", "circuit_tracer", rule, "choose saelens")
  record = folds.threshold(folds.prep(record))
  t = {"W_enc": record.W_enc, "b_enc": record.b_enc}
  t |= {"W_dec": record.W_dec, "b_dec": record.b_dec}
  match record.kind:
    case kinds.Threshold(theta=theta):
      if np.any(theta > 0):
        t[_THETA] = theta
    case kind:
      rule = f"has no {type(kind).__name__}"
      raise InputError("format", "circuit_tracer", rule, "choose saelens")
  if record.W_skip is not None:
    t["W_skip"] = record.W_skip
  layer = re.search(r"\d+", record.site.hook or "")
  return {f"layer_{layer[0] if layer else 0}.safetensors": t}
