"""Gemma Scope: params.npz of JumpReLU SAEs and transcoders.

Weights act on raw rows and b_dec is not subtracted. Embedding SAEs were trained
on embeddings times sqrt(d), which SAELens folds when it reads them, as here.

References:
  Lieberum et al., Gemma Scope, 2024, arXiv:2408.05147; SAELens 6.54.12,
  gemma_2_sae_huggingface_loader, for sites and embeddings.
"""

import re
from typing import Any

import numpy as np

from saejax.errors import InputError
from saejax.interop import folds, kinds, reference
from saejax.interop.files import Files
from saejax.interop.formats import Forward, Hints, without
from saejax.interop.record import Record, Site, Source

WEIGHTS = "params.npz"
_SHAPES = {
  "W_enc": "d n",
  "b_enc": "n",
  "W_dec": "n o",
  "b_dec": "o",
  "threshold": "n",
}
_MODEL = re.compile(r"gemma-scope-(2b|9b|27b)-(pt|it)-(\w+)")


def matches(files: Files) -> bool:
  """Whether there is a params.npz.

  Args:
    files: the files.
  """
  return files.has(WEIGHTS)


def _weights(files: Files) -> tuple[dict[str, np.ndarray], str]:
  tensors = files.tensors(WEIGHTS)
  upper = {f"w{key[1:]}": key for key in _SHAPES if key[0] == "W"}
  tensors.arrays = {upper.get(k, k): v for k, v in tensors.arrays.items()}
  return tensors.weights(_SHAPES), tensors.dtype


def _about(files: Files) -> tuple[Site, bool, bool]:
  """The site, whether it is a transcoder, and whether it is of embeddings."""
  name = files.name
  found = _MODEL.search(name)
  kind = found[3] if found else ""
  layer = re.search(r"layer_(\d+)", name)
  layer = layer[1] if layer else "0"
  transcoder = kind == "transcoders"
  embedding = "/embedding/" in f"/{name}/"
  hook = {
    "res": "hook_embed" if embedding else f"blocks.{layer}.hook_resid_post",
    "mlp": f"blocks.{layer}.hook_mlp_out",
    "att": f"blocks.{layer}.attn.hook_z",
    "transcoders": f"blocks.{layer}.ln2.hook_normalized",
  }.get(kind)
  model = None
  if found:
    model = f"google/gemma-2-{found[1]}" + "-it" * (found[2] == "it")
  out = f"blocks.{layer}.hook_mlp_out" if transcoder else None
  return Site(model, hook, out, 1024, True), transcoder, embedding


def read(files: Files, hints: Hints) -> Record:
  """Reads an SAE or transcoder; the files' name gives the site.

  Args:
    files: the files.
    hints: `site`.

  Raises:
    InputError: the file is damaged.
  """
  t, dtype = _weights(files)
  site, transcoder, embedding = _about(files)
  record = Record(
    W_enc=t["W_enc"].T,
    b_enc=t["b_enc"],
    W_dec=t["W_dec"],
    b_dec=t["b_dec"],
    kind=kinds.Threshold(t["threshold"]),
    subtract_b_dec=False,
    transcoder=transcoder or len(t["W_enc"]) != len(t["b_dec"]),
    site=Site(**{**site.known(), **hints.site}),
    source=Source("gemma_scope", "", dtype, files.name),
  )
  if not embedding:
    return record
  # Only the matrices: b_dec is that of embeddings already, as in SAELens.
  root = np.sqrt(record.d)
  scaled = folds.scales(record, 1 / root, 1 / root)
  return scaled.replace(b_dec=record.b_dec)


def forward(files: Files, hints: Hints) -> Forward:
  """The forward pass of Gemma Scope.

  Args:
    files, hints: as for `read`.
  """
  del hints
  t = {k: np.float64(v) for k, v in _weights(files)[0].items()}
  root = np.sqrt(len(t["W_enc"])) if _about(files)[2] else 1.0

  def run(x):
    z = reference.above(x / root @ t["W_enc"] + t["b_enc"], t["threshold"])
    return z, z @ t["W_dec"] * root + t["b_dec"]

  return run


def thresholded(record: Record, name: str) -> Record:
  """The record on raw rows with thresholds, and b_dec not subtracted.

  Args:
    record: the record.
    name: the format that needs it so.

  Raises:
    InputError: a prep depends on rows.
    Lossy: latents are ranked.
  """
  record = folds.threshold(folds.prep(record))
  if not isinstance(record.kind, kinds.Threshold):
    raise without(name, record.kind)
  return folds.subtract(record, on=False)


def write(record: Record) -> dict[str, Any]:
  """The files of a record.

  Args:
    record: the record.

  Raises:
    InputError: a prep depends on rows, or there is a skip connection.
    Lossy: latents are ranked, not compared with thresholds.
  """
  record = thresholded(record, "Gemma Scope")
  if record.W_skip is not None or record.transcoder:
    rule = "says by the repository alone that it is a transcoder"
    raise InputError("format", "gemma_scope", rule, "choose gemma_scope_2")
  kind = record.kind
  assert isinstance(kind, kinds.Threshold)
  t = {"W_enc": record.W_enc.T, "b_enc": record.b_enc}
  t |= {"W_dec": record.W_dec, "b_dec": record.b_dec, "threshold": kind.theta}
  return {WEIGHTS: t}
