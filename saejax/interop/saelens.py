"""SAELens: cfg.json and sae_weights.safetensors, before and since version 6.

References:
  decoderesearch/SAELens 6.54.12, sae_lens/saes/*.py and
  sae_lens/loading/pretrained_sae_loaders.py.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from saejax import machine
from saejax.errors import InputError
from saejax.interop import folds, kinds, reference, saelens_config
from saejax.interop.files import Files, Tensors
from saejax.interop.formats import Forward, Hints, Lossy, without
from saejax.interop.record import FIELD, Prep, Record, Site, Source
from saejax.interop.saelens_config import BATCH, JUMP, RANKED, Config

CONFIG, WEIGHTS = saelens_config.NAME, "sae_weights.safetensors"
VERSION = "6.54.12"  # the version whose reader the files are written for
_LINEAR = {"W_enc": "d n", "b_enc": "n", "W_dec": "n o", "b_dec": "o"}
_GATED = {"W_enc": "d n", "W_dec": "n o", "b_dec": "o"}
_GATED |= {"b_gate": "n", "b_mag": "n", "r_mag": "n"}
_TIED = {"W_dec": "n o", "b_dec": "o"}


def matches(files: Files) -> bool:
  """Whether the two files of SAELens are there.

  Args:
    files: the files.
  """
  return files.has(CONFIG) and files.has(WEIGHTS)


# --- reading -----------------------------------------------------------------


def _tensors(
  files: Files, cfg: Config
) -> tuple[dict[str, np.ndarray], Tensors]:
  tensors = files.tensors(WEIGHTS)
  shapes = {"gated": _GATED, "matching_pursuit": _TIED}.get(
    cfg.architecture, _LINEAR
  )
  shapes = dict(shapes)
  if cfg.architecture in JUMP:
    old = "log_threshold" in tensors
    shapes["log_threshold" if old else "threshold"] = "n"
  if cfg.architecture in BATCH:
    shapes["topk_threshold"] = ""
  if "skip" in cfg.architecture:
    shapes["W_skip"] = "o d"
  sizes = {"d": cfg.d_in, "n": cfg.d_sae, "o": cfg.d_out}
  found = tensors.weights(shapes, sizes, config=CONFIG)
  if "scaling_factor" in tensors:
    factor = tensors.weights({"scaling_factor": "n"}, sizes)["scaling_factor"]
    if not np.allclose(factor, 1):
      rule = "scaling_factor must be 1: version 6 has no such factor"
      raise InputError(FIELD, tensors.path, rule, "fold it into W_dec")
  if not found.get("topk_threshold", np.float32(1)) > 0:
    rule = "topk_threshold must be positive: it was never estimated"
    raise InputError(FIELD, tensors.path, rule, "pass the final SAE")
  return found, tensors


def read(files: Files, hints: Hints) -> Record:
  """Reads an SAE or transcoder.

  Args:
    files: the files.
    hints: `scale` where x was scaled in training and the file is not folded.

  Raises:
    InputError: a file is damaged, contradicts the other, or has an architecture
      that saejax has not.
  """
  cfg = saelens_config.read(files, hints)
  t, tensors = _tensors(files, cfg)
  record = Record(
    W_enc=t["W_enc"].T if "W_enc" in t else t["W_dec"],
    b_enc=_bias(t, cfg),
    W_dec=t["W_dec"],
    b_dec=t["b_dec"],
    kind=_kind(t, cfg),
    subtract_b_dec=cfg.subtract,
    transcoder=cfg.transcoder,
    W_skip=t.get("W_skip"),
    prep=Prep(saelens_config.PREPS[cfg.normalize]),
    site=saelens_config.site(cfg, hints),
    source=Source("saelens", cfg.version, tensors.dtype, files.name),
  )
  if cfg.architecture == "matching_pursuit" and not cfg.subtract:
    record = record.replace(b_dec=np.zeros_like(record.b_dec))
  names = []
  if cfg.scale != 1:
    record = folds.scales(record, cfg.scale, cfg.scale)
    names.append(f"scales {cfg.scale:.9g}")
  if cfg.rescale:
    # Ranks and thresholds are of a |w|, which is a itself after the fold.
    kind = record.kind
    record = folds.decoder_norms(record.replace(kind=kinds.Relu()))
    record = record.replace(kind=kind)
    names.append("decoder_norms")
  source = dataclasses.replace(record.source, folds=tuple(names))
  return record.replace(source=source)


def _bias(t: Mapping[str, np.ndarray], cfg: Config) -> np.ndarray:
  if cfg.architecture == "matching_pursuit":
    return np.zeros((cfg.d_sae,), np.float32)
  return t["b_mag"] if cfg.architecture == "gated" else t["b_enc"]


def _kind(t: Mapping[str, np.ndarray], cfg: Config) -> kinds.Kind:
  name = cfg.architecture
  if name == "gated":
    return kinds.Gate(t["b_gate"], t["r_mag"])
  if name == "matching_pursuit":
    return kinds.Pursuit(cfg.residual, cfg.steps, cfg.stop_on_repeat)
  if name in RANKED:
    if type(cfg.k) is not int or not 1 <= cfg.k <= cfg.d_sae:
      rule = f"k must be in [1, d_sae={cfg.d_sae}], is {cfg.k!r}"
      raise InputError(FIELD, cfg.path, rule, "correct the file")
    signed = name == "abstopk"
    return kinds.TopK(cfg.k, "magnitude" if signed else "value", signed)
  if name in BATCH:  # units of the decoder's rows: scaled as they are
    theta = np.full((cfg.d_sae,), t["topk_threshold"])
    scale = cfg.scale if cfg.rescale else 1.0
    return kinds.Threshold(kinds.float32(theta / scale))
  if "log_threshold" in t:
    return kinds.Threshold(np.exp(t["log_threshold"]))
  return kinds.Threshold(t["threshold"]) if "threshold" in t else kinds.Relu()


# --- the definition ----------------------------------------------------------


def forward(files: Files, hints: Hints) -> Forward:
  """The forward pass of SAELens.

  Args:
    files, hints: as for `read`.
  """
  cfg = saelens_config.read(files, hints)
  t = {k: np.float64(v) for k, v in _tensors(files, cfg)[0].items()}
  # fold_activation_norm_scaling_factor, with the threshold (its issue 763)
  moved = ["W_dec", "b_dec", *["topk_threshold"] * cfg.rescale]
  t |= {key: t[key] / cfg.scale for key in moved if key in t}
  t |= {key: t[key] * cfg.scale for key in ("W_enc",) if key in t}
  norms = np.linalg.norm(t["W_dec"], axis=1)

  def run(x):
    u, mean, std = x, 0.0, 1.0
    if cfg.normalize == "layer_norm":
      u, mean, std = reference.layer_norm(x)
    elif cfg.normalize == "constant_norm_rescale":
      std = np.linalg.norm(x, axis=1, keepdims=True) / cfg.d_in**0.5
      u = x / std
    c = u - t["b_dec"] if cfg.subtract else u
    z = _encoded(c, t, cfg, norms)
    W_dec = t["W_dec"]
    if cfg.rescale:
      W_dec = W_dec / norms[:, None]
    bias = t["b_dec"]
    if cfg.architecture == "matching_pursuit" and not cfg.subtract:
      bias = 0
    y = (z @ W_dec + bias) * std + mean
    return z, y + x @ t["W_skip"].T if "W_skip" in t else y

  return run


def _encoded(c, t, cfg: Config, norms) -> np.ndarray:
  if cfg.architecture == "matching_pursuit":
    return reference.pursue(
      c,
      t["W_dec"],
      residual=cfg.residual,
      steps=cfg.steps,
      stop_on_repeat=cfg.stop_on_repeat,
    )
  g = c @ t["W_enc"]
  if cfg.architecture == "gated":
    open_ = g + t["b_gate"] > 0
    return open_ * reference.relu(g * np.exp(t["r_mag"]) + t["b_mag"])
  pre = g + t["b_enc"]
  if cfg.rescale:
    pre = pre * norms
  if cfg.architecture == "topk":
    return reference.top(pre, reference.relu(pre), cfg.k)
  if cfg.architecture == "abstopk":
    return reference.top(np.abs(pre), pre, cfg.k)
  for key in ("threshold", "topk_threshold"):
    if key in t:
      return reference.above(pre, t[key])
  if "log_threshold" in t:
    return reference.above(pre, np.exp(t["log_threshold"]))
  return reference.relu(pre)


# --- writing -----------------------------------------------------------------


def write(record: Record) -> dict[str, Any]:
  """The files of a record.

  Args:
    record: the record.

  Raises:
    InputError: SAELens has no such architecture.
    Lossy: a layer norm is undone with an epsilon, or a transcoder ranks latents.
  """
  record, architecture, more = _architecture(_plain(record))
  name = {"none": "none", "layer_norm": "layer_norm"}
  normalize = name.get(record.prep.kind, "constant_norm_rescale")
  if record.prep.undo_eps:
    raise Lossy("layer_norm_eps", "SAELens undoes a layer norm without epsilon")
  t: dict[str, np.ndarray] = {"W_dec": record.W_dec, "b_dec": record.b_dec}
  if architecture != "matching_pursuit":
    t["W_enc"] = record.W_enc.T
    t["b_enc"] = record.b_enc
  if isinstance(record.kind, kinds.Gate):
    t["b_mag"] = t.pop("b_enc")
    t |= {"b_gate": record.kind.b_gate, "r_mag": record.kind.r_mag}
  if isinstance(record.kind, kinds.Threshold):
    t["threshold"] = record.kind.theta
  if record.W_skip is not None:
    t["W_skip"] = record.W_skip
  if record.transcoder:
    more["d_out"] = record.d_out
  cfg = {
    "architecture": architecture,
    "d_in": record.d,
    "d_sae": record.n,
    "dtype": "float32",
    "device": "cpu",
    "apply_b_dec_to_input": record.subtract_b_dec,
    "normalize_activations": normalize,
    "reshape_activations": _reshape(record.site),
    **more,
    "metadata": _metadata(record.site),
  }
  return {CONFIG: cfg, WEIGHTS: t}


def _plain(record: Record) -> Record:
  """The record without an affine prep, and with strict thresholds."""
  if record.prep.kind == "affine":
    record = folds.prep(record)
  if isinstance(record.kind, kinds.Threshold):
    record = folds.threshold(record)
  return record


def _architecture(record: Record) -> tuple[Record, str, dict[str, Any]]:
  kind, more = record.kind, {}
  if record.transcoder or record.W_skip is not None:
    record = folds.gate(record)
    jump = isinstance(record.kind, kinds.Threshold)
    if not jump and not isinstance(kind, kinds.Relu):
      raise without("SAELens, in transcoders,", kind)
    skip = "skip_" * (record.W_skip is not None)
    record = folds.subtract(record, on=False).replace(transcoder=True)
    return record, f"{'jumprelu_' * jump}{skip}transcoder", more
  match kind:
    case kinds.Relu():
      name = "standard"
    case kinds.Threshold():
      name = "jumprelu"
    case kinds.Gate():
      name = "gated"
    case kinds.TopK(rank="norm"):
      return _architecture(folds.decoder_norms(record))
    case kinds.TopK(rank="value", signed=False):
      name, more = "topk", {"rescale_acts_by_decoder_norm": False}
    case kinds.TopK(rank="magnitude", signed=True):
      name, more = "abstopk", {"rescale_acts_by_decoder_norm": False}
    case kinds.Pursuit():
      name = "matching_pursuit"
      more = {
        "residual_threshold": kind.residual,
        "max_iterations": kind.steps,
        "stop_on_duplicate_support": kind.stop_on_repeat,
      }
    case _:
      raise without("SAELens", kind)
  if isinstance(kind, kinds.TopK):
    more["k"] = kind.k
  return record, name, more


def _reshape(site: Site) -> str:
  return "hook_z" if (site.hook or "").endswith("hook_z") else "none"


def _metadata(site: Site) -> dict[str, Any]:
  known = site.known().items()
  return {
    "sae_lens_version": VERSION,
    "sae_lens_training_version": f"saejax-{machine.version()}",
    **{saelens_config.METADATA[name]: value for name, value in known},
  }
