"""What is known of each latent of one SAE, for records of evaluations.

With decoder rows of unit norm, that is W_dec,i / c_i, c_i W_enc,i and c_i b_enc,i
with c_i the norm of W_dec,i in the units of the model:

  encoder_norm, encoder_bias      c_i |W_enc,i| and c_i b_enc,i
  encoder_decoder_cosine_sim      of W_enc,i and W_dec,i
  max_encoder_cosine_sim          largest cosine with another row of the encoder
  max_decoder_cosine_sim          largest cosine with another row of the decoder
  feature_density                 share of tokens where it is active
  consistent_activation_heuristic active tokens / windows with an active token

References:
  Karvonen et al., SAEBench, 2025, arXiv:2503.09532, whose names these are.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from saejax.evals import geometry
from saejax.sae import folding
from saejax.sae.sae import SAE

CONSISTENT = "consistent_activation_heuristic"
DENSITY = "feature_density"
DIGITS = 10  # decimals of a number of a latent
SHARES = {"1": 0.01, "10": 0.1}  # percent in a name, density


def norms(sae: SAE) -> Float[Array, "n"]:
  """Norms of the decoder rows in the units of the model.

  Those in the frame of a prep that depends on the row are left in it.

  Args:
    sae: the SAE.
  """
  return jnp.linalg.norm(_raw(sae).W_dec, axis=-1)


def of_weights(sae: SAE) -> dict[str, Float[np.ndarray, "n"]]:
  """The measures of weights; those of an encoder without rows are left out, and
  the cosine of a transcoder's encoder and decoder.

  Args:
    sae: the SAE.
  """
  raw = _raw(sae)
  c, W_dec = np.asarray(norms(sae)), np.asarray(raw.W_dec, np.float32)
  found = {"max_decoder_cosine_sim": geometry.max_cosines(W_dec)}
  try:
    W, b = raw.encoder.weights(raw.decoder)
  except NotImplementedError:
    return found
  W, b = np.asarray(W, np.float32), np.asarray(b, np.float32)
  length = np.linalg.norm(W, axis=-1)
  found |= {
    "max_encoder_cosine_sim": geometry.max_cosines(W),
    "encoder_norm": c * length,
    "encoder_bias": c * b,
  }
  if sae.target_prep is None:  # else rows and columns are of two sites
    with np.errstate(invalid="ignore", divide="ignore"):
      cosine = np.sum(W * W_dec, axis=-1) / (length * c)
    found["encoder_decoder_cosine_sim"] = cosine
  return found


def _raw(sae: SAE) -> SAE:
  try:
    return folding.fold_prep(sae)
  except (NotImplementedError, ValueError):  # as of a transcoder with pre-bias
    return sae


def ratio(
  a: Float[np.ndarray, "n"], b: Float[np.ndarray, "n"]
) -> Float[np.ndarray, "n"]:
  """a / b, NaN where b is 0.

  Args:
    a, b: arrays of one shape.
  """
  return np.divide(a, b, out=np.full(len(a), np.nan), where=b != 0)


# --- records -----------------------------------------------------------------


def summary(of: Mapping[str, Float[np.ndarray, "n"]]) -> dict[str, float]:
  """SAEBench's misc_metrics of measures of latents.

  The share of latents that are active at all ("frac_alive") and on more than 1
  and 10 % of tokens, the share of all activity that the latter have, and mean
  largest cosines.

  Args:
    of: measures by name, the density among them.
  """
  density = of[DENSITY]
  total = density.sum()
  found = {
    f"average_max_{side}_cosine_sim": of[f"max_{side}_cosine_sim"].mean()
    for side in ("encoder", "decoder")
    if f"max_{side}_cosine_sim" in of
  }
  found["frac_alive"] = (density > 0).mean()
  for name, share in SHARES.items():
    dense = density > share
    part = density[dense].sum() / total if total else 0.0
    found[f"freq_over_{name}_percent"] = dense.mean()
    found[f"normalized_freq_over_{name}_percent"] = part
  return {name: float(value) for name, value in found.items()}


def details(
  of: Mapping[str, Float[np.ndarray, "n"]],
) -> list[dict[str, float | int]]:
  """A flat record for each latent; NaN is -1.

  Args:
    of: measures by name.
  """
  clean = {
    name: np.round(
      np.where(np.isnan(values), -1.0, values).astype(np.float64), DIGITS
    ).tolist()
    for name, values in of.items()
  }
  count = len(next(iter(clean.values())))
  return [
    {"index": i, **{name: values[i] for name, values in clean.items()}}
    for i in range(count)
  ]


def cleaned(metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, dict]:
  """Categories of metrics with -1 for NaN.

  Args:
    metrics: metrics by category.
  """
  finite = lambda value: -1.0 if np.isnan(value) else value
  return {
    category: {name: finite(value) for name, value in values.items()}
    for category, values in metrics.items()
  }
