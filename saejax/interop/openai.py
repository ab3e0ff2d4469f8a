"""OpenAI: a .pt of a state dict with the activation's name and settings.

Rows are layer-normalised exactly where the activation is TopK.

References:
  Gao et al., Scaling and evaluating sparse autoencoders, 2024,
  arXiv:2406.04093; openai/sparse_autoencoder, model.py (2024-06-30).
"""

import dataclasses
from typing import Any

import numpy as np

from saejax.errors import InputError
from saejax.interop import folds, kinds, reference
from saejax.interop.files import Files, Tensors
from saejax.interop.formats import Forward, Hints, Lossy
from saejax.interop.record import FIELD, Prep, Record, Site, Source

WEIGHTS = "autoencoder.pt"  # written; what is read may have any name
_KEYS = {"pre_bias", "latent_bias", "encoder.weight", "activation"}
_SHAPES = {
  "pre_bias": "d",
  "encoder.weight": "n d",
  "latent_bias": "n",
  "decoder.weight": "d n",
}


@dataclasses.dataclass(frozen=True)
class _Found:
  """The checked content of the file."""

  weights: dict[str, np.ndarray]
  k: int | None  # None: ReLU, without layer norm
  dtype: str


def _file(files: Files) -> str | None:
  names = files.matching((".pt", ".pth"))
  return names[0] if len(names) == 1 else None


def matches(files: Files) -> bool:
  """Whether there is one .pt with the keys of OpenAI.

  Args:
    files: the files.
  """
  name = _file(files)
  return name is not None and files.keys(name) >= _KEYS


def _found(files: Files) -> _Found:
  name = _file(files)
  if name is None:
    rule = "must have one .pt file"
    raise InputError(FIELD, files.name, rule, "give the path of one")
  tensors: Tensors = files.tensors(name)
  function = tensors.arrays.get("activation")
  state = tensors.arrays.get("activation_state_dict")
  k = state.get("k") if isinstance(state, dict) else None
  if isinstance(k, np.ndarray):
    k = int(k)
  post = state.get("postact_fn", "ReLU") if isinstance(state, dict) else "ReLU"
  if function not in ("ReLU", "TopK") or post != "ReLU":
    rule = (
      f"activation must be ReLU or TopK with ReLU, is {function} with {post}"
    )
    raise InputError(FIELD, tensors.path, rule, "saejax has no form of others")
  if function == "TopK" and (type(k) is not int or k < 1):
    rule = f"activation_state_dict must have k for TopK, has {k!r}"
    raise InputError(FIELD, tensors.path, rule, "download the file again")
  weights = tensors.weights(_SHAPES)
  return _Found(weights, k if function == "TopK" else None, tensors.dtype)


def read(files: Files, hints: Hints) -> Record:
  """Reads an SAE.

  Args:
    files: the files.
    hints: `site`.

  Raises:
    InputError: the file is damaged, or its activation is unknown.
  """
  found = _found(files)
  t = found.weights
  site = {"model": "gpt2", **hints.site}
  return Record(
    W_enc=t["encoder.weight"],
    b_enc=t["latent_bias"],
    W_dec=t["decoder.weight"].T,
    b_dec=t["pre_bias"],
    kind=kinds.Relu() if found.k is None else kinds.TopK(found.k),
    subtract_b_dec=True,
    prep=Prep("none" if found.k is None else "layer_norm"),
    site=Site(**site),
    source=Source("openai", "", found.dtype, files.name),
  )


def forward(files: Files, hints: Hints) -> Forward:
  """The forward pass of OpenAI's code.

  Args:
    files, hints: as for `read`.
  """
  del hints
  found = _found(files)
  t = {k: np.float64(v) for k, v in found.weights.items()}

  def run(x):
    u, mean, std = x, 0.0, 1.0
    if found.k is not None:
      u, mean, std = reference.layer_norm(x)
    a = (u - t["pre_bias"]) @ t["encoder.weight"].T + t["latent_bias"]
    z = reference.relu(a)
    if found.k is not None:
      z = reference.top(a, z, found.k)
    return z, (z @ t["decoder.weight"].T + t["pre_bias"]) * std + mean

  return run


def write(record: Record) -> dict[str, Any]:
  """The file of a record.

  Args:
    record: the record.

  Raises:
    InputError: it is neither ReLU on rows as they are nor TopK on
      layer-normalised rows, or a transcoder.
    Lossy: a layer norm is undone with an epsilon.
  """
  if record.prep.kind == "affine":
    record = folds.prep(record)
  if isinstance(record.kind, kinds.TopK) and record.kind.rank == "norm":
    record = folds.decoder_norms(record)
  k = None
  match record.kind, record.prep.kind:
    case kinds.Relu(), "none":
      pass
    case kinds.TopK(rank="value", signed=False), "layer_norm":
      k = record.kind.k
    case kind, prep:
      name = f"{type(kind).__name__} with the prep {prep!r}"
      rule = "has ReLU on rows as they are and TopK on layer-normalised rows, "
      rule += f"not {name}"
      raise InputError("format", "openai", rule, "choose saelens")
  if record.transcoder or record.W_skip is not None:
    rule = "has no transcoders"
    raise InputError("format", "openai", rule, "choose saelens")
  if record.prep.undo_eps:
    raise Lossy("layer_norm_eps", "OpenAI undoes a layer norm without epsilon")
  record = folds.subtract(record, on=True)
  n = record.n
  t: dict[str, Any] = {
    "pre_bias": record.b_dec,
    "encoder.weight": record.W_enc,
    "latent_bias": record.b_enc,
    "decoder.weight": record.W_dec.T,
    # Statistics that its loader asks for; unknown here.
    "stats_last_nonzero": np.zeros((n,), np.int64),
    "latents_activation_frequency": np.zeros((n,), np.float32),
    "latents_mean_square": np.zeros((n,), np.float32),
    "activation": "ReLU" if k is None else "TopK",
  }
  if k is not None:
    t["activation_state_dict"] = {"k": k, "postact_fn": "ReLU"}
  return {WEIGHTS: t}
