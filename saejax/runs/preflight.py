"""What a run will take, said before it starts."""

import time

import jax
import jax.numpy as jnp

from saejax import terminal
from saejax.runs import grid
from saejax.runs.config import SAEConfig
from saejax.training import loop


def line(
  rows: int,
  d: int,
  sae: SAEConfig,
  train: loop.TrainConfig,
  *,
  harvest_layers: int = 0,
) -> str:
  """The line that says what a run will take, its rate timed on a matmul here.

  Args:
    rows: training rows.
    d: their width.
    sae: the grid.
    train: how it is trained.
    harvest_layers: transformer layers that each row is still to go through,
      taken as 12 d^2 parameters each; 0 where the rows are there.
  """
  count = len(grid.members(sae.n[0], sae, train))
  pairs = sum(2 * n * d for n in sae.n)
  # A sparse step costs about twice its encoder's matmul.
  flops = rows * (
    2 * 12 * d**2 * harvest_layers + train.epochs * 2 * count * pairs
  )
  largest = count * 2 * max(sae.n) * d
  return terminal.preflight(
    rows=rows,
    disk_bytes=rows * (2 * d + 16),
    parameters=count * sum(2 * n * d + n + d for n in sae.n),
    seconds=flops / _matmul_flops(),
    # Weights, two moments, gradients and a checkpoint's copy of the first
    # three; pre-activations of a batch; JAX itself and windows of rows.
    memory_bytes=7 * 4 * largest + 4 * train.batch_rows * max(sae.n) + 10**9,
  )


def _matmul_flops(size: int = 1024) -> float:
  """Operations a second of a float32 matmul on the default device."""
  a = jnp.ones((size, size))
  multiply = jax.jit(lambda a: a @ a)
  multiply(a).block_until_ready()
  best = float("inf")
  for _ in range(3):
    start = time.perf_counter()
    multiply(a).block_until_ready()
    best = min(best, time.perf_counter() - start)
  return 2 * size**3 / best
