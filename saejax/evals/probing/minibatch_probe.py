"""A logistic probe trained by AdamW on small batches, as SAEBench trains its own.

  loss = mean over the batch of log(1 + exp(-y s)) + 1e-3 |w|_1,  y = +-1

for 20 epochs of batches of 16 rows at the learning rate 1e-3 and the weight decay
1e-2 (the default of PyTorch). These settings are part of the definition of SCR: a
probe that is trained further relies less on a spurious label. Rows that do not fill
a batch are left out of an epoch.

References:
  Karvonen et al., SAEBench, 2025, arXiv:2503.09532.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from saejax.errors import InputError
from saejax.evals.probing import probe

BATCH_ROWS, EPOCHS = 16, 20
LEARNING_RATE, WEIGHT_DECAY, L1 = 1e-3, 1e-2, 1e-3


def fit(
  x: Float[np.ndarray, "N d"],
  y: Bool[np.ndarray, "N"],
  seed: int,
  *,
  epochs: int = EPOCHS,
  learning_rate: float = LEARNING_RATE,
) -> probe.Linear:
  """Trains a probe; weights start at uniform +-1/sqrt(d), as in PyTorch.

  Args:
    x: rows, at least 16.
    y: whether each row is positive.
    seed: seed of the weights and of the order of rows.
    epochs: passes over the rows.
    learning_rate: learning rate of AdamW.

  Raises:
    InputError: there are fewer rows than a batch has.
  """
  if len(x) < BATCH_ROWS:
    rule = f"must be at least {BATCH_ROWS}, the rows of a batch"
    raise InputError("x", f"{len(x)} rows", rule, "give more rows")
  N, rng = len(x), np.random.default_rng(seed)
  # Sizes are rounded up to powers of two, for few programs.
  size = 1 << (N - 1).bit_length()
  padded = np.zeros((size, x.shape[1]), np.float32)
  label, order = np.zeros(size, np.float32), np.zeros((epochs, size), np.int32)
  padded[:N], label[:N] = x, y
  for epoch in order:
    epoch[:N] = rng.permutation(N)
  limit = 1 / np.sqrt(x.shape[1])
  start = rng.uniform(-limit, limit, x.shape[1] + 1).astype(np.float32)
  w, b = _trained(
    padded,
    label,
    order,
    (start[:-1], start[-1]),
    np.int32(N // BATCH_ROWS),
    np.float32(learning_rate),
  )
  return probe.Linear(np.asarray(w, np.float64)[None], np.asarray(b)[None])


@jax.jit
def _trained(
  x: Float[Array, "S d"],
  y: Float[Array, "S"],
  order: Int[Array, "epochs S"],
  start: tuple[Float[Array, "d"], Float[Array, ""]],
  steps: Int[Array, ""],
  learning_rate: Float[Array, ""],
) -> tuple[Float[Array, "d"], Float[Array, ""]]:
  """Weights after some steps per epoch."""
  optimizer = optax.adamw(learning_rate, weight_decay=WEIGHT_DECAY)

  def loss(parameters, at):
    w, b = parameters
    s = x[at] @ w + b
    return jnp.mean(jnp.logaddexp(0, s) - y[at] * s) + L1 * jnp.sum(jnp.abs(w))

  def step(i, state):
    parameters, moments = state
    rows = order[i // steps]
    at = jax.lax.dynamic_slice(rows, (i % steps * BATCH_ROWS,), (BATCH_ROWS,))
    slope = jax.grad(loss)(parameters, at)
    # optax mixes int32 counts with floats, which strict promotion rejects.
    with jax.numpy_dtype_promotion("standard"):
      update, moments = optimizer.update(slope, moments, parameters)
    return optax.apply_updates(parameters, update), moments

  state = (start, optimizer.init(start))
  return jax.lax.fori_loop(0, len(order) * steps, step, state)[0]
