"""Relations between the latents of one SAE: cosines and correlations."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from saejax.evals import matching
from saejax.sae.context import Batch
from saejax.sae.sae import SAE

BLOCK_ROWS = 1024


def max_cosines(W: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n"]:
  """Computes the largest cosine of each row with another row.

  Args:
    W: rows; a row of norm 0 has the cosine 0 with any.

  Raises:
    ValueError: there are fewer than two rows.

  >>> max_cosines(np.array([[1.0, 0.0], [0.0, 2.0], [0.0, 1.0]])).tolist()
  [0.0, 1.0, 1.0]
  """
  if len(W) < 2:
    raise ValueError(f"W must have at least 2 rows, got {W.shape}")
  unit = matching.unit(W)
  found = np.empty(len(unit), np.float32)
  for start in range(0, len(unit), BLOCK_ROWS):
    cosines = unit[start : start + BLOCK_ROWS] @ unit.T
    own = np.arange(len(cosines))
    cosines[own, start + own] = -np.inf
    found[start : start + len(cosines)] = cosines.max(axis=1)
  return found


def mean_max_cosine(W: Float[np.ndarray, "n d"]) -> float:
  """Computes the mean of `max_cosines`.

  Args:
    W: rows.

  Raises:
    ValueError: as `max_cosines`.

  >>> mean_max_cosine(np.eye(3))
  0.0
  """
  return float(max_cosines(W).mean(dtype=np.float64))


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
