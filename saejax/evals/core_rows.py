"""Sums over rows of one SAE, and the measures of `core` that follow from them.

Rows are those of forward batches; the sums of batches are added on the host, in
float64 and int64, so that those of parts of the text merge to those of the whole.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from saejax.evals import latent_records, reconstruction
from saejax.evals.reconstruction import Value
from saejax.sae.context import Batch
from saejax.sae.sae import SAE


class RowSums(flax.struct.PyTreeNode):
  """Sums over finite rows x with target y (x itself, unless a transcoder's).

  Attributes:
    base: the sums of `evals.reconstruction`, about the mean of training rows.
    norm_in, norm_out: sums of |y| and |y_hat|.
    ratio: sum of |y_hat| / |y|.
    square_out: sum of |y_hat|^2.
    dot: sum of <y, y_hat>.
    l1: sum of |z|.
    windows: number of windows with a row on which each latent is active [n].
  """

  base: reconstruction.Sums
  norm_in: Value
  norm_out: Value
  ratio: Value
  square_out: Value
  dot: Value
  l1: Value
  windows: Value


def nothing(sae: SAE) -> RowSums:
  """Returns the sums over no rows.

  Args:
    sae: the SAE.
  """
  zero = np.float64(0)
  return RowSums(
    base=reconstruction.init(sae.n, sae.d),
    norm_in=zero,
    norm_out=zero,
    ratio=zero,
    square_out=zero,
    dot=zero,
    l1=zero,
    windows=np.zeros(sae.n, np.int64),
  )


@jax.jit
def batch(
  sae: SAE,
  x: Float[Array, "B T d"],
  target: Float[Array, "B T d_out"],
  rows: Bool[Array, "B T"],
  mean: Float[Array, "d_out"],
) -> RowSums:
  """Computes the sums of a forward batch on the device, float32 and int32.

  Args:
    sae: the SAE, in the inference form.
    x: activations that it reads.
    target: activations that it reconstructs.
    rows: which tokens are rows.
    mean: mean of the target's training rows.
  """
  finite = jnp.isfinite(x).all(axis=-1) & jnp.isfinite(target).all(axis=-1)
  base = reconstruction.batch_sums(
    sae,
    given(sae, x, target).flat,
    rows.reshape(-1),
    mean,
    frame="raw",
  )
  use = rows & finite

  def window(at):
    x, y, use = at
    x, y = (jnp.where(use[:, None], a, 0) for a in (x, y))
    out = sae.forward(given(sae, x, y))
    prep = sae.prep if sae.target_prep is None else sae.target_prep
    y_hat = prep.undo(out.x_hat, out.statistics).astype(jnp.float32)
    long, long_out = (jnp.linalg.norm(a, axis=-1) for a in (y, y_hat))
    of_row = {
      "norm_in": long,
      "norm_out": long_out,
      "ratio": long_out / jnp.where(use, long, 1),
      "square_out": jnp.square(long_out),
      "dot": jnp.sum(y * y_hat, axis=-1),
      "l1": out.latents.sum(),
    }
    active = (out.latents.dense() != 0) & use[:, None]
    total = {k: jnp.sum(jnp.where(use, v, 0)) for k, v in of_row.items()}
    return total, jnp.any(active, axis=0)

  sums, active = jax.lax.map(window, (x, target, use))
  sums = {name: jnp.sum(each) for name, each in sums.items()}
  windows = jnp.sum(active, axis=0, dtype=jnp.int32)
  return RowSums(base=base, windows=windows, **sums)


def given(sae: SAE, x: Any, target: Any) -> Batch:
  """Returns rows as an SAE reads them.

  Args:
    sae: the SAE.
    x: activations that it reads.
    target: activations that a transcoder reconstructs.
  """
  return Batch(x=x, target=None if sae.target_prep is None else target)


def measures(
  sae: SAE, sums: RowSums
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
  """Computes the measures of rows that `core` lists.

  Args:
    sae: the SAE.
    sums: sums over all rows.

  Returns:
    (measures; a record for each latent, see `latent_records`).

  Raises:
    InputError: there were no finite rows.
  """
  base = reconstruction.compute(sums.base)
  fired = np.asarray(sums.base.fired, np.float64)
  windows = np.asarray(sums.windows, np.float64)
  consistent = latent_records.ratio(fired, windows)
  latents = latent_records.of_weights(sae) | {
    latent_records.DENSITY: base.density,
    latent_records.CONSISTENT: consistent,
  }
  summary = latent_records.summary(latents)
  live = consistent[~np.isnan(consistent)]
  mean = lambda total: float(total) / base.rows
  dot = float(sums.dot)
  found = {
    "rows": base.rows,
    "fvu": base.nmse,
    "explained_variance": 1 - base.nmse,
    "mse": mean(sums.base.error) / sae.d,
    "cosine": base.cosine,
    "l2_norm_in": mean(sums.norm_in),
    "l2_norm_out": mean(sums.norm_out),
    "l2_ratio": mean(sums.ratio),
    "relative_bias": float(sums.square_out) / dot if dot else float("nan"),
    "l0": base.l0,
    "l1": mean(sums.l1),
    "alive": summary["frac_alive"],
    "consistent_activation": float(live.mean()) if len(live) else float("nan"),
    "density_histogram": base.histogram(),
  }
  for share in latent_records.SHARES:
    found[f"dense_{share}"] = summary[f"freq_over_{share}_percent"]
    activity = summary[f"normalized_freq_over_{share}_percent"]
    found[f"dense_{share}_activity"] = activity
  for side in ("encoder", "decoder"):
    if (name := f"average_max_{side}_cosine_sim") in summary:
      found[f"max_{side}_cosine"] = summary[name]
  return found, latent_records.details(latents)
