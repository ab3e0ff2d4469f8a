"""Relations between the latents of one SAE: cosines and correlations."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from saejax.evals import matching
from saejax.sae.context import Batch
from saejax.sae.sae import SAE


def mean_max_cosine(W: Float[np.ndarray, "n d"]) -> float:
  """Computes the mean over rows of the largest cosine with another row.

  Args:
    W: rows.

  Raises:
    ValueError: there are fewer than two rows.

  >>> mean_max_cosine(np.eye(3))
  0.0
  """
  if len(W) < 2:
    raise ValueError(f"W must have at least 2 rows, got {W.shape}")
  unit = matching.unit(W)
  cosines = unit @ unit.T
  np.fill_diagonal(cosines, -np.inf)
  return float(cosines.max(axis=1).mean())


def dependence(
  sae: SAE, batch: Float[Array, "b d"] | Batch
) -> Mapping[str, float]:
  """Computes correlations of latents and the size of pre-activations.

  Args:
    sae: the SAE; latents are computed densely.
    batch: rows.

  Returns:
    "dependence", the mean of |correlation| over pairs of live latents, and
    "mean_square", the mean over rows of sum_i relu(a_i)^2, where a is the
    posterior mean for a variational SAE.
  """
  return {name: float(v) for name, v in _dependence(sae, batch).items()}


@jax.jit
def _dependence(sae, batch):
  out = sae.forward(batch, engine="dense")
  z = out.latents.dense()
  centred = z - jnp.mean(z, axis=0)
  spread = jnp.sqrt(jnp.mean(centred**2, axis=0))
  live = spread > 0
  unit = jnp.where(live, centred / jnp.where(live, spread, 1), 0)
  correlation = jnp.abs(unit.T @ unit) / z.shape[0]
  pairs = live[:, None] & live[None] & ~jnp.eye(z.shape[1], dtype=bool)
  return {
    "dependence": jnp.sum(jnp.where(pairs, correlation, 0))
    / jnp.maximum(jnp.sum(pairs, dtype=jnp.float32), 1),
    "mean_square": jnp.mean(jnp.sum(jax.nn.relu(out.pre.a) ** 2, axis=-1)),
  }
