"""Meta-structure: whether decoder rows are sparse sums of fewer directions.

A BatchTopK SAE with n / 4 latents and k = 4 is trained on the decoder rows at unit
norm. With w_i the rows and w_hat_i their reconstructions,

  explained = 1 - sum_i |w_i - w_hat_i|^2 / sum_i |w_i - mean|^2

The rows are those that it was trained on: compare with the value of a random
dictionary of equal shape, which is above 0 too.

References:
  Karvonen et al., SAEBench, 2025, arXiv:2503.09532.
  Bussmann et al., Showing SAE Latents Are Not Atomic Using Meta-SAEs, 2024.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from saejax.errors import InputError
from saejax.evals import matching
from saejax.recipes import batch_sparse
from saejax.sae.sae import SAE
from saejax.training import fit

RATIO, K, STEPS, BATCH_ROWS, LEARNING_RATE = 0.25, 4, 1500, 1024, 5e-4
DEAD_AFTER_STEPS = 50


def explained(
  W: Float[np.ndarray, "n d"],
  *,
  ratio: float = RATIO,
  k: int = K,
  steps: int = STEPS,
  batch_rows: int = BATCH_ROWS,
  learning_rate: float = LEARNING_RATE,
  seed: int = 0,
) -> tuple[float, SAE]:
  """Trains a meta-SAE and computes the share of variance that it explains.

  Args:
    W: decoder rows, of any norms; rows of norm 0 are left out.
    ratio: meta-latents per row.
    k: active meta-latents per row.
    steps: training steps.
    batch_rows: rows per step, drawn with replacement.
    learning_rate: peak learning rate.
    seed: seed of the weights and of the batches.

  Returns:
    (share of variance explained, the meta-SAE in the inference form).

  Raises:
    InputError: there are fewer meta-latents than k.
  """
  W = matching.unit(W)
  W = W[np.linalg.norm(W, axis=1) > 0]
  n = int(ratio * len(W))
  if n < max(k, 1):
    raise InputError(
      "ratio",
      ratio,
      f"gives {n} meta-latents for {len(W)} rows, fewer than k={k}",
      "raise it, or lower k",
    )
  # Arguments of the program, not constants: it is compiled once per shape.
  draw = jax.tree_util.Partial(
    _Draw(batch_rows), jnp.asarray(W), jax.random.key(seed)
  )
  (meta,), _, _ = fit.fit(
    batch_sparse.batchtopk(
      W.shape[1], n, k, dead_after_tokens=DEAD_AFTER_STEPS * batch_rows
    ),
    draw,
    steps=steps,
    members=[fit.member(seed, learning_rate=learning_rate)],
    sample=jnp.asarray(W),
  )
  left = np.asarray(W - meta.reconstruct(W), np.float64)
  centred = W - W.mean(axis=0, dtype=np.float64)
  return 1 - float((left**2).sum() / (centred**2).sum()), meta


class _Draw(NamedTuple):
  """Random rows of a step; equal for equal sizes, so compiled once."""

  batch_rows: int

  def __call__(self, W, key, step) -> Float[Array, "b d"]:
    key, shape = jax.random.fold_in(key, step), (self.batch_rows,)
    return W[jax.random.randint(key, shape, 0, len(W))]
