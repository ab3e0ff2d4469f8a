"""sparsify: cfg.json and sae.safetensors, SAEs and transcoders, TopK or GroupMax.

W_dec has a row per latent; b_dec is subtracted unless it is a transcoder;
num_latents 0 means expansion_factor times the width. (SAELens' reader of these
files, 6.54.12, transposes W_dec, takes 0 as the width, and subtracts b_dec only
where the decoder is not normalised.)

References:
  EleutherAI/sparsify 1.3.3, sparse_coder.py, fused_encoder.py, config.py.
"""

import dataclasses
from typing import Any

import numpy as np

from saejax.errors import InputError
from saejax.interop import folds, kinds, reference
from saejax.interop.files import Files
from saejax.interop.formats import Forward, Hints
from saejax.interop.record import FIELD, Record, Site, Source

CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"
_SHAPES = {
  "encoder.weight": "n d",
  "encoder.bias": "n",
  "W_dec": "n d",
  "b_dec": "d",
}


@dataclasses.dataclass(frozen=True)
class _Found:
  """The checked content of the files."""

  weights: dict[str, np.ndarray]
  groups: bool  # GroupMax, not TopK
  k: int
  transcode: bool
  dtype: str


def matches(files: Files) -> bool:
  """Whether the two files of sparsify are there.

  Args:
    files: the files.
  """
  return files.has(CONFIG) and files.has(WEIGHTS)


def _found(files: Files) -> _Found:
  cfg = files.json(CONFIG)
  path = files.folder / CONFIG
  if cfg.get("signed"):
    rule = "signed must be false: its ranking is not documented"
    raise InputError(FIELD, path, rule, "saejax has no form of it")
  activation = cfg.get("activation", "topk")
  if activation not in ("topk", "groupmax"):
    rule = f"activation must be topk or groupmax, is {activation!r}"
    raise InputError(FIELD, path, rule, "saejax has no form of others")
  d = cfg.get("d_in")
  n = cfg.get("num_latents") or (d and d * cfg.get("expansion_factor", 32))
  tensors = files.tensors(WEIGHTS)
  shapes = dict(_SHAPES)
  if cfg.get("skip_connection"):
    shapes["W_skip"] = "d d"
  weights = tensors.weights(shapes, {"d": d, "n": n}, config=CONFIG)
  k, n = cfg.get("k", 32), len(weights["encoder.bias"])
  if type(k) is not int or not 1 <= k <= n:
    rule = f"k must be in [1, n={n}], is {k!r}"
    raise InputError(FIELD, path, rule, "correct the file")
  if activation == "groupmax" and n % k:
    rule = f"k={k} must divide n={n} for groupmax"
    raise InputError(FIELD, path, rule, "correct the file")
  transcode = bool(cfg.get("transcode"))
  return _Found(weights, activation == "groupmax", k, transcode, tensors.dtype)


def read(files: Files, hints: Hints) -> Record:
  """Reads an SAE or transcoder.

  Args:
    files: the files.
    hints: `site`.

  Raises:
    InputError: a file is damaged or contradicts the other.
  """
  found = _found(files)
  t = found.weights
  return Record(
    W_enc=t["encoder.weight"],
    b_enc=t["encoder.bias"],
    W_dec=t["W_dec"],
    b_dec=t["b_dec"],
    kind=kinds.GroupMax(found.k) if found.groups else kinds.TopK(found.k),
    subtract_b_dec=not found.transcode,
    transcoder=found.transcode,
    W_skip=t.get("W_skip"),
    site=_site(files, hints),
    source=Source("sparsify", "", found.dtype, files.name),
  )


def _site(files: Files, hints: Hints) -> Site:
  # The folder's name is the module, and the run's settings lie above it.
  known: dict[str, Any] = {"hook": files.name.rstrip("/").rpartition("/")[2]}
  run = files.folder.parent
  if (run / "config.json").is_file():
    config = Files(run).json("config.json")
    known["model"] = config.get("model")
    known["dataset"] = config.get("dataset")
    known["context"] = config.get("ctx_len")
  return Site(**{**known, **hints.site})


def forward(files: Files, hints: Hints) -> Forward:
  """The forward pass of sparsify.

  Args:
    files, hints: as for `read`.
  """
  del hints
  found = _found(files)
  t = {k: np.float64(v) for k, v in found.weights.items()}

  def run(x):
    c = x if found.transcode else x - t["b_dec"]
    a = reference.relu(c @ t["encoder.weight"].T + t["encoder.bias"])
    if found.groups:
      z = reference.group_max(a, found.k)
    else:
      z = reference.top(a, a, found.k)
    y = z @ t["W_dec"] + t["b_dec"]
    return z, y + x @ t["W_skip"].T if "W_skip" in t else y

  return run


def write(record: Record) -> dict[str, Any]:
  """The files of a record.

  Args:
    record: the record.

  Raises:
    InputError: the activation is not TopK or GroupMax, which cannot be
      converted to either; or a prep depends on rows.
  """
  record = folds.prep(record)
  if isinstance(record.kind, kinds.TopK) and record.kind.rank == "norm":
    record = folds.decoder_norms(record)
  kind = record.kind
  match kind:
    case kinds.TopK(rank="value", signed=False):
      activation = "topk"
    case kinds.GroupMax():
      activation = "groupmax"
    case _:
      rule = f"has TopK and GroupMax alone, not {type(kind).__name__}"
      raise InputError("format", "sparsify", rule, "choose saelens")
  if record.transcoder and record.d != record.d_out:
    rule = f"has transcoders of one width, not {record.d} to {record.d_out}"
    raise InputError("format", "sparsify", rule, "choose saelens")
  record = folds.subtract(record, on=not record.transcoder)
  t = {
    "encoder.weight": record.W_enc,
    "encoder.bias": record.b_enc,
    "W_dec": record.W_dec,
    "b_dec": record.b_dec,
  }
  if record.W_skip is not None:
    t["W_skip"] = record.W_skip
  norms = np.linalg.norm(record.W_dec, axis=1)
  cfg = {
    "activation": activation,
    "expansion_factor": max(record.n // record.d, 1),
    "normalize_decoder": bool(np.allclose(norms, 1, atol=1e-5)),
    "num_latents": record.n,
    "k": kind.k,
    "multi_topk": False,
    "skip_connection": record.W_skip is not None,
    "transcode": record.transcoder,
    "d_in": record.d,
  }
  return {CONFIG: cfg, WEIGHTS: t}
