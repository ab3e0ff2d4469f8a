"""The core evaluation of SAEs: reconstruction, sparsity, and the model with them.

Rows are activations x of a site with x_hat, z of the SAE; sums over rows in
float64:

  fvu             sum |x - x_hat|^2 / sum |x - mean|^2, mean of the training rows
  l2_ratio        mean |x_hat| / |x|
  relative_bias   sum |x_hat|^2 / sum <x, x_hat>, below 1 where norms shrink
  l0, l1          mean number of active latents, mean sum |z|
  alive           share of latents that are active on some row
  dense_1, dense_10       share of latents active on more than 1 %, 10 % of rows
  dense_1_activity, dense_10_activity     share of all activity that they have
  consistent_activation   mean over live latents of rows where one is active per
                          window with any
  max_encoder_cosine, max_decoder_cosine  mean over latents of the largest cosine
                          with another

In the model see `in_model` (language models) and `embeddings`. Controls tell what
the numbers mean: zeros and the mean at the site; the projection on as many principal
components of the training rows as the SAE has active latents ("pca"); and a random
dictionary of the same shape with that many active latents ("random"). The identity
is the model itself: nothing lost. Measures of each latent: `latent_records`.

References:
  Karvonen et al., SAEBench, 2025, arXiv:2503.09532, whose names the record has.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from saejax.errors import InputError
from saejax.evals import (
  embeddings,
  held_out,
  in_model,
  latent_records,
  recovery,
)
from saejax.interventions import operators
from saejax.models.edits import Edit
from saejax.models.model import Model
from saejax.sae import activations, initial, prep
from saejax.sae.sae import SAE

BATCH_ROWS = 4096
PCA, RANDOM, MEAN = "pca", "random", "mean"


def evaluate(
  saes: Mapping[str, SAE],
  model: Model,
  site: str,
  batches: Iterable[in_model.Tokens],
  *,
  x: Float[np.ndarray, "R d"],
  train: Float[np.ndarray, "S d"],
  window: Int[np.ndarray, "R"],
  limit: float = np.inf,
  seed: int = 0,
) -> tuple[dict[str, dict[str, Any]], Any]:
  """Evaluates SAEs of one site, with their controls.

  Args:
    saes: SAEs by name, in the inference form.
    model: the model.
    site: the site.
    batches: held-out tokens for the model.
    x: held-out rows of the site.
    train: training rows of the site, for the mean and the controls.
    window: number of the window of each row of x, from 0.
    limit: largest norm of a row, see `in_model.evaluate`.
    seed: of the random dictionaries.

  Returns:
    (records by name, each with "rows", "latents", "model", and "controls"; the
    `in_model.InModel` or `embeddings.Embeddings` over all of them).

  Raises:
    InputError: an SAE is a transcoder or of another width, or as
      `in_model.evaluate`.
  """
  rows, latents = {}, {}
  mean = train.mean(axis=0, dtype=np.float64)
  centre = jnp.asarray(mean, jnp.float32)
  edits: dict[str, Edit] = {
    in_model.ZERO: operators.zero(),
    MEAN: operators.constant(centre),
  }
  for name, sae in saes.items():
    _check_width(name, sae, train.shape[1])
    rows[name], latents[name] = of_rows(sae, x, mean, window)
    k = max(1, round(rows[name]["l0"]))
    edits[name] = operators.splice(sae)
    edits[f"{name}/{PCA}"] = operators.projection(
      centre, jnp.asarray(recovery.principal_directions(train, k))
    )
    edits[f"{name}/{RANDOM}"] = operators.splice(
      random_dictionary(train, n=sae.n, k=k, seed=seed)
    )
  run = in_model.evaluate if model.causal else embeddings.evaluate
  found = run(model, site, edits, batches, limit=limit)
  whole = found.record()
  common = {k: v for k, v in whole.items() if k not in edits}
  records = {}
  for name in saes:
    controls = {"zero": whole[in_model.ZERO], MEAN: whole[MEAN]}
    controls |= {c: whole[f"{name}/{c}"] for c in (PCA, RANDOM)}
    records[name] = {
      "rows": rows[name],
      "latents": latents[name],
      "model": common | whole[name],
      "controls": controls,
    }
  return records, found


def _check_width(name: str, sae: SAE, d: int) -> None:
  if sae.d != d:
    raise InputError(
      "sae",
      name,
      f"must have the width of the site, {d}, and has {sae.d}",
      "name an SAE of this model and site",
    )


def of_rows(
  sae: SAE,
  x: Float[np.ndarray, "R d"],
  mean: Float[np.ndarray, "d"],
  window: Int[np.ndarray, "R"],
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
  """Measures of the module's docstring that need no model.

  Args:
    sae: the SAE.
    x: held-out rows.
    mean: mean of the training rows.
    window: number of the window of each row, from 0; rows of one are together.

  Returns:
    (measures; a record for each latent, see `latent_records`).
  """
  base = held_out.evaluate(sae, x, mean=jnp.asarray(mean, jnp.float32))
  parts = [
    jax.device_get(_of_batch(sae, x[i : i + BATCH_ROWS]))
    for i in range(0, len(x), BATCH_ROWS)
  ]
  row = {
    name: np.concatenate([part[name] for part in parts]).astype(np.float64)
    for name in parts[0]
  }
  consistent = latent_records.consistency(sae, x, window)
  latents = latent_records.of_weights(sae) | {
    latent_records.DENSITY: base.density,
    latent_records.CONSISTENT: consistent,
  }
  of = latent_records.summary(latents)
  live = consistent[~np.isnan(consistent)]
  found = {
    "rows": base.rows,
    "fvu": base.nmse,
    "explained_variance": 1 - base.nmse,
    "mse": float(row["error"].mean()) / sae.d,
    "cosine": base.cosine,
    "l2_norm_in": float(row["norm_in"].mean()),
    "l2_norm_out": float(row["norm_out"].mean()),
    "l2_ratio": float((row["norm_out"] / row["norm_in"]).mean()),
    "relative_bias": float((row["norm_out"] ** 2).sum() / row["dot"].sum()),
    "l0": base.l0,
    "l1": float(row["l1"].mean()),
    "alive": of["frac_alive"],
    "consistent_activation": float(live.mean()) if len(live) else float("nan"),
    "density_histogram": base.histogram(),
  }
  for share in latent_records.SHARES:
    found[f"dense_{share}"] = of[f"freq_over_{share}_percent"]
    activity = of[f"normalized_freq_over_{share}_percent"]
    found[f"dense_{share}_activity"] = activity
  for side in ("encoder", "decoder"):
    if (name := f"average_max_{side}_cosine_sim") in of:
      found[f"max_{side}_cosine"] = of[name]
  return found, latent_records.details(latents)


@jax.jit
def _of_batch(sae: SAE, x: Float[Array, "B d"]) -> dict[str, Array]:
  out = sae.forward(x)
  x_hat = sae.prep.undo(out.x_hat, out.statistics)
  return {
    "error": jnp.sum((x - x_hat) ** 2, axis=-1),
    "norm_in": jnp.linalg.norm(x, axis=-1),
    "norm_out": jnp.linalg.norm(x_hat, axis=-1),
    "dot": jnp.sum(x * x_hat, axis=-1),
    "l1": out.latents.sum(),
  }


# --- controls ----------------------------------------------------------------


def random_dictionary(
  x: Float[np.ndarray, "R d"], *, n: int, k: int, seed: int
) -> SAE:
  """An untrained TopK SAE with random unit rows, for centred and scaled rows.

  Args:
    x: rows, for the prep.
    n: number of latents.
    k: active latents.
    seed: of the rows.
  """
  wide = x.astype(np.float64)
  square = float(np.square(wide).sum(axis=1).mean())
  stats = {"mean": wide.mean(axis=0), "mean_square": square}
  return initial.init(
    jax.random.key(seed),
    d=x.shape[1],
    n=n,
    activation=activations.TopK(min(k, n)),
    prep=prep.from_stats("centre_scale", stats),
  )


# --- SAEBench's record -------------------------------------------------------


def saebench(record: Mapping[str, Any]) -> dict[str, dict[str, float]]:
  """The measures of a record under the names that SAEBench gives them.

  They are the corrected ones: its explained_variance and mse are defined
  otherwise. What a record lacks, such as losses of an embedding model, is left
  out; NaN is -1 as there.

  Args:
    record: one of `evaluate`.
  """
  rows, model = record["rows"], record["model"]
  zero = record["controls"]["zero"]
  names: dict[str, dict[str, Any]] = {
    "model_behavior_preservation": {
      "kl_div_with_sae": model.get("kl"),
      "kl_div_with_ablation": zero.get("kl"),
      "kl_div_score": model.get("kl_recovered"),
    },
    "model_performance_preservation": {
      "ce_loss_without_sae": model.get("clean"),
      "ce_loss_with_sae": model.get("ce"),
      "ce_loss_with_ablation": zero.get("ce"),
      "ce_loss_score": model.get("ce_recovered"),
    },
    "reconstruction_quality": {
      "explained_variance": rows["explained_variance"],
      "mse": rows["mse"],
      "cossim": rows["cosine"],
    },
    "shrinkage": {
      "l2_norm_in": rows["l2_norm_in"],
      "l2_norm_out": rows["l2_norm_out"],
      "l2_ratio": rows["l2_ratio"],
      "relative_reconstruction_bias": rows["relative_bias"],
    },
    "sparsity": {"l0": rows["l0"], "l1": rows["l1"]},
    "token_stats": {
      "total_tokens_eval_reconstruction": model.get("tokens"),
      "total_tokens_eval_sparsity_variance": rows["rows"],
    },
    "misc_metrics": {
      "freq_over_1_percent": rows["dense_1"],
      "freq_over_10_percent": rows["dense_10"],
      "normalized_freq_over_1_percent": rows["dense_1_activity"],
      "normalized_freq_over_10_percent": rows["dense_10_activity"],
      "frac_alive": rows["alive"],
      "average_max_encoder_cosine_sim": rows.get("max_encoder_cosine"),
      "average_max_decoder_cosine_sim": rows["max_decoder_cosine"],
    },
  }
  known = {
    category: {k: v for k, v in values.items() if v is not None}
    for category, values in names.items()
  }
  return latent_records.cleaned({k: v for k, v in known.items() if v})
