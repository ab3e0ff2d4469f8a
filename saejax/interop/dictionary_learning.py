"""dictionary_learning: ae.pt and config.json of every dictionary class.

Files act on raw rows: saving multiplies biases and thresholds by the factor of
training.

References:
  saprmarks/dictionary_learning 0.1.0, dictionary.py, trainers/*.py, utils.py.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from saejax.errors import InputError
from saejax.interop import folds, kinds, reference
from saejax.interop.files import Files, Tensors
from saejax.interop.formats import Forward, Hints, without
from saejax.interop.record import FIELD, Record, Site, Source

CONFIG, WEIGHTS = "config.json", "ae.pt"
BACKUP = "ae"  # key of the weights in a backup, which has the same file name
_LINEAR = {"encoder.weight": "n d", "decoder.weight": "d n"}
_DIRECT = {"W_enc": "d n", "b_enc": "n", "W_dec": "n d", "b_dec": "d"}
_TOP = {**_LINEAR, "encoder.bias": "n", "b_dec": "d"}
_SHAPES = {
  "AutoEncoder": {**_LINEAR, "encoder.bias": "n", "bias": "d"},
  "AutoEncoderNew": {**_LINEAR, "encoder.bias": "n", "decoder.bias": "d"},
  "GatedAutoEncoder": {
    **_LINEAR,
    "decoder_bias": "d",
    "r_mag": "n",
    "gate_bias": "n",
    "mag_bias": "n",
  },
  "JumpReluAutoEncoder": {**_DIRECT, "threshold": "n"},
  "AutoEncoderTopK": _TOP,
  "BatchTopKSAE": {**_TOP, "threshold": ""},
  "MatryoshkaBatchTopKSAE": {**_DIRECT, "threshold": ""},
}
_TRAINERS = {
  "AutoEncoder": "StandardTrainer",
  "AutoEncoderNew": "StandardTrainerAprilUpdate",
  "GatedAutoEncoder": "GatedSAETrainer",
  "JumpReluAutoEncoder": "JumpReluTrainer",
  "AutoEncoderTopK": "TopKTrainer",
  "BatchTopKSAE": "BatchTopKTrainer",
  "MatryoshkaBatchTopKSAE": "MatryoshkaBatchTopKTrainer",
}
_ESTIMATED = ("BatchTopKSAE", "MatryoshkaBatchTopKSAE")
_BIASES = ("b_dec", "bias", "decoder_bias", "decoder.bias")
# Those that do not subtract the decoder's bias from the input.
_NOT_SUBTRACTED = ("AutoEncoderNew", "JumpReluAutoEncoder")


def matches(files: Files) -> bool:
  """Whether there is an ae.pt.

  Args:
    files: the files.
  """
  return files.has(WEIGHTS)


@dataclasses.dataclass(frozen=True)
class _Found:
  """The checked content of the files."""

  name: str  # of the class
  ranks: bool  # whether it keeps the k highest of each row
  weights: Mapping[str, np.ndarray]
  k: int | None
  groups: tuple[int, ...]
  trainer: Mapping[str, Any]
  buffer: Mapping[str, Any]
  dtype: str


def _found(files: Files, hints: Hints) -> _Found:
  config = files.json(CONFIG) if files.has(CONFIG) else {}
  trainer, buffer = config.get("trainer") or {}, config.get("buffer") or {}
  tensors = files.tensors(WEIGHTS)
  if isinstance(tensors.arrays.get(BACKUP), dict):
    tensors = Tensors(tensors.path, tensors.arrays[BACKUP])
  name = trainer.get("dict_class") or _guess(tensors)
  if name not in _SHAPES:
    rule = f"dict_class must be one of {', '.join(_SHAPES)}, is {name!r}"
    remedy = "saejax has no form of others"
    raise InputError(FIELD, files.folder / CONFIG, rule, remedy)
  sizes = {"d": trainer.get("activation_dim"), "n": trainer.get("dict_size")}
  weights = tensors.weights(_SHAPES[name], sizes, config=CONFIG)
  k = _k(tensors, trainer, hints)
  if name == "AutoEncoderTopK" and k is None:
    rule = "must have k, in the file or in config.json"
    raise InputError(FIELD, tensors.path, rule, "pass k")
  ranks = name == "AutoEncoderTopK"
  if name in _ESTIMATED and not weights["threshold"] >= 0:
    ranks = True
    if hints.k is None:
      rule = (
        f"threshold is {weights['threshold']:g}, which means that it was never "
        "estimated (training ended before its step 1000): every positive "
        "latent would be active"
      )
      raise InputError(
        FIELD, tensors.path, rule, "pass k to keep k of each row"
      )
  groups = tensors.arrays.get("group_sizes")
  groups = () if groups is None else tuple(np.asarray(groups).tolist())
  return _Found(name, ranks, weights, k, groups, trainer, buffer, tensors.dtype)


def _guess(tensors: Tensors) -> str:
  """The class, by keys that no other has, for files without config.json."""
  keys = set(tensors.arrays)
  fits = [
    name
    for name, shapes in _SHAPES.items()
    if shapes.keys() <= keys
    and not (keys - shapes.keys() - {"k", "threshold", "group_sizes"})
    and (name != "JumpReluAutoEncoder" or "k" not in keys)
    and (name != "MatryoshkaBatchTopKSAE" or "group_sizes" in keys)
  ]
  if len(fits) != 1:
    rule = f"needs {CONFIG} beside it, as the class could be "
    rule += " or ".join(fits) or f"none of {', '.join(_SHAPES)}"
    raise InputError(FIELD, tensors.path, rule, "download config.json too")
  return fits[0]


def _k(tensors: Tensors, trainer: Mapping[str, Any], hints: Hints):
  stored = tensors.arrays.get("k")
  stored = int(stored) if stored is not None else None
  config = trainer.get("k")
  if None not in (stored, config) and stored != config:
    rule = f"k must be that of {CONFIG}, {config}; it is {stored}"
    raise InputError(FIELD, tensors.path, rule, "correct one of them")
  for k in (hints.k, stored, config):
    if k is not None:
      return k
  return None


def read(files: Files, hints: Hints) -> Record:
  """Reads a dictionary.

  Args:
    files: the files.
    hints: `k` for a threshold that was never estimated: top-k instead.

  Raises:
    InputError: a file is damaged or contradicts the other, the class is
      unknown, or a threshold was never estimated.
  """
  found = _found(files, hints)
  t = found.weights
  direct = "W_enc" in t
  bias = t.get("mag_bias", t.get("encoder.bias", t.get("b_enc")))
  assert bias is not None
  return Record(
    W_enc=t["W_enc"].T if direct else t["encoder.weight"],
    b_enc=bias,
    W_dec=t["W_dec"] if direct else t["decoder.weight"].T,
    b_dec=next(t[key] for key in _BIASES if key in t),
    kind=_kind(found),
    subtract_b_dec=found.name not in _NOT_SUBTRACTED,
    site=_site(found, hints),
    source=Source("dictionary_learning", "", found.dtype, files.name),
  )


def _kind(found: _Found) -> kinds.Kind:
  t = found.weights
  if found.name == "GatedAutoEncoder":
    return kinds.Gate(t["gate_bias"], t["r_mag"])
  if found.name == "JumpReluAutoEncoder":
    return kinds.Threshold(t["threshold"])
  if found.ranks:
    assert found.k is not None
    return kinds.TopK(found.k)
  if found.name in _ESTIMATED:
    n = len(t["b_enc"] if "b_enc" in t else t["encoder.bias"])
    theta = np.full((n,), t["threshold"])
    return kinds.Threshold(theta, k=found.k, groups=found.groups)
  return kinds.Relu()


def _site(found: _Found, hints: Hints) -> Site:
  layer = found.trainer.get("layer")
  hook = found.trainer.get("submodule_name")
  if layer is not None and (hook is None or "resid_post" in hook):
    hook = f"blocks.{layer}.hook_resid_post"
  known = {
    "model": found.trainer.get("lm_name"),
    "hook": hook,
    "context": found.buffer.get("ctx_len"),
  }
  return Site(**{**known, **hints.site})


def forward(files: Files, hints: Hints) -> Forward:
  """The forward pass of each class in dictionary_learning.

  Args:
    files, hints: as for `read`.
  """
  found = _found(files, hints)
  t = {k: np.float64(v) for k, v in found.weights.items()}
  bias = next(t[key] for key in _BIASES if key in t)

  def run(x):
    c = x if found.name in _NOT_SUBTRACTED else x - bias
    if "W_enc" in t:
      a = c @ t["W_enc"]
    else:
      a = c @ t["encoder.weight"].T
    z = _encoded(a, t, found)
    decoder = t["W_dec"] if "W_dec" in t else t["decoder.weight"].T
    return z, z @ decoder + bias

  return run


def _encoded(a: np.ndarray, t, found: _Found) -> np.ndarray:
  if found.name == "GatedAutoEncoder":
    magnitude = reference.relu(np.exp(t["r_mag"]) * a + t["mag_bias"])
    return (a + t["gate_bias"] > 0) * magnitude
  a = a + (t["b_enc"] if "b_enc" in t else t["encoder.bias"])
  if found.name in ("AutoEncoder", "AutoEncoderNew"):
    return reference.relu(a)
  if found.ranks:
    assert found.k is not None
    return reference.top(a, reference.relu(a), found.k)
  return reference.above(a, t["threshold"])


def write(record: Record) -> dict[str, Any]:
  """The files of a record.

  Args:
    record: the record.

  Raises:
    InputError: there is no class for it: a transcoder, or a prep of rows.
    Lossy: latents are ranked otherwise than by TopK.
  """
  if record.transcoder or record.W_skip is not None:
    rule = "is a transcoder, for which dictionary_learning has no class"
    raise InputError("format", "dictionary_learning", rule, "choose saelens")
  record = folds.prep(record)
  if isinstance(record.kind, kinds.Threshold):
    record = folds.threshold(record)
  name, record = _class(record)
  record = folds.subtract(record, on=name not in _NOT_SUBTRACTED)
  t, settings = _stored(name, record)
  trainer = {
    "trainer_class": _TRAINERS[name],
    "dict_class": name,
    "activation_dim": record.d,
    "dict_size": record.n,
    **settings,
    "layer": _layer(record.site.hook),
    "lm_name": record.site.model or "",
    "submodule_name": record.site.hook,
    "device": "cpu",
  }
  buffer = {"d_submodule": record.d, "io": "out"}
  buffer["ctx_len"] = record.site.context
  return {CONFIG: {"trainer": trainer, "buffer": buffer}, WEIGHTS: t}


def _class(record: Record) -> tuple[str, Record]:
  kind = record.kind
  match kind:
    case kinds.Relu():
      return (
        "AutoEncoder" if record.subtract_b_dec else "AutoEncoderNew",
        record,
      )
    case kinds.Gate():
      return "GatedAutoEncoder", record
    case kinds.TopK(rank="norm", signed=False):
      return _class(folds.decoder_norms(record))
    case kinds.TopK(rank="value", signed=False):
      return "AutoEncoderTopK", record
    case kinds.Threshold(k=k, groups=groups):
      one = np.all(kind.theta == kind.theta[0]) and kind.theta[0] >= 0
      if one and k is not None and record.subtract_b_dec:
        return ("MatryoshkaBatchTopKSAE" if groups else "BatchTopKSAE"), record
      return "JumpReluAutoEncoder", record
  raise without("dictionary_learning", kind)


def _stored(name: str, record: Record):
  """The tensors under the class's keys, and its settings."""
  kind = record.kind
  settings: dict[str, Any] = {}
  if "W_enc" in _SHAPES[name]:
    t = {"W_enc": record.W_enc.T, "b_enc": record.b_enc}
    t |= {"W_dec": record.W_dec, "b_dec": record.b_dec}
  else:
    t = {"encoder.weight": record.W_enc, "decoder.weight": record.W_dec.T}
    t[next(key for key in _BIASES if key in _SHAPES[name])] = record.b_dec
    gated = isinstance(kind, kinds.Gate)
    t["mag_bias" if gated else "encoder.bias"] = record.b_enc
  if isinstance(kind, kinds.Gate):
    t |= {"gate_bias": kind.b_gate, "r_mag": kind.r_mag}
  if isinstance(kind, kinds.TopK):
    settings["k"], t["threshold"] = kind.k, np.float32(-1)
  if isinstance(kind, kinds.Threshold):
    jump = name == "JumpReluAutoEncoder"
    t["threshold"] = kind.theta if jump else kind.theta[0]
    if not jump:
      settings["k"] = kind.k
      if kind.groups:
        t["group_sizes"] = np.asarray(kind.groups, np.int64)
        shares = [size / record.n for size in kind.groups]
        settings["group_fractions"] = shares
  if "k" in settings:
    t["k"] = np.int32(settings["k"])
  return {key: np.asarray(value) for key, value in t.items()}, settings


def _layer(hook: str | None) -> int | None:
  found = re.search(r"\d+", hook or "")
  return int(found[0]) if found else None
