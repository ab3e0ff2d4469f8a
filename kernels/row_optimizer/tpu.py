"""One step of Adam on unit rows, in one pass over them, for TPUs.

The two sums over a row, of the gradient along it and of its new norm, need no
pass of their own where the row is in VMEM: 28 bytes per parameter are moved (W,
m, v and g read; W, m and v written over the old) and none are held, against 48
and 4 of the same in XLA.

Tiling: grid (n / rows); blocks of whole rows in VMEM, updated a strip of 8 rows
at a time, so that what is between fits registers. Memory: VMEM holds seven
blocks twice. Blocks divide n; where none does there is no kernel, as padding
would copy all four matrices.

Compiled and counted, not timed (benchmarks/tpu_bundles.py): a strip takes a
third of the cycles that its bytes take on v5e, and less than half on v6e. No
recipe reaches it yet: the norm by which a step's gradients are scaled has to be
known first, and the step holds the projected gradients for it.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from saejax.kernels.row_optimizer.ref import NORM_EPS

LANES, STRIP = 128, 8
LEAST_ROWS = 32  # per block; fewer would spend their time on starting copies
VMEM_BYTES = 32 << 20
ARRAYS = 7  # four read and three written


def rows(n: int, d: int, dtype: Any) -> int | None:
  """Rows per block, None where there is no kernel for this shape.

  Args:
    n: number of rows on this device.
    d: their width.
    dtype: dtype of all four matrices.
  """
  if jnp.dtype(dtype) != jnp.float32:
    return None
  row = 2 * ARRAYS * 4 * (-(-d // LANES) * LANES)
  most = min(256, VMEM_BYTES // row, n)
  fitting = range(most // STRIP * STRIP, LEAST_ROWS - 1, -STRIP)
  return next((block for block in fitting if n % block == 0), None)


def update(
  W: Float[Array, "n d"],
  g: Float[Array, "n d"],
  m: Float[Array, "n d"],
  v: Float[Array, "n d"],
  scalars: Float[Array, "5"],
  *,
  b1: float,
  b2: float,
  eps: float,
  block: int,
  interpret: Any = False,
) -> tuple[Float[Array, "n d"], Float[Array, "n d"], Float[Array, "n d"]]:
  """The new W, m and v, in the memory of the old.

  Args:
    W, g, m, v, scalars, b1, b2, eps: see `ref.update`.
    block: rows per block, a multiple of 8 that divides n.
    interpret: see `dispatch.Setting`.
  """
  n, d = W.shape
  matrix = pl.BlockSpec((block, d), lambda i: (i, 0))
  return pl.pallas_call(
    partial(_update_block, b1=b1, b2=b2, eps=eps),
    grid=(n // block,),
    in_specs=[pl.BlockSpec(memory_space=pltpu.SMEM), *[matrix] * 4],
    out_specs=[matrix] * 3,
    out_shape=[jax.ShapeDtypeStruct((n, d), jnp.float32)] * 3,
    input_output_aliases={1: 0, 3: 1, 4: 2},
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel",),
      vmem_limit_bytes=VMEM_BYTES + (8 << 20),
    ),
    cost_estimate=pl.CostEstimate(
      flops=24 * n * d,
      transcendentals=2 * n * d,
      bytes_accessed=4 * ARRAYS * n * d,
    ),
    interpret=interpret,
    name="row_optimizer",
  )(scalars, W, g, m, v)


def _update_block(scalars, W, g, m, v, new_W, new_m, new_v, *, b1, b2, eps):
  """Updates the rows of a block, a strip at a time."""
  scale, rate = scalars[0], scalars[1]
  correct1, correct2, good = scalars[2], scalars[3], scalars[4] > 0

  def strip(i, _):
    at = pl.ds(pl.multiple_of(i * STRIP, STRIP), STRIP), slice(None)
    w, old_m, old_v, gradient = W[at], m[at], v[at], g[at]
    along = jnp.sum(gradient * w, axis=1, keepdims=True)
    gradient = scale * (gradient - along * w)
    first = b1 * old_m + (1 - b1) * gradient
    second = b2 * old_v + (1 - b2) * gradient * gradient
    step = (first / correct1) / (jnp.sqrt(second / correct2) + eps)
    moved = w - rate * step
    norm = jnp.sqrt(jnp.sum(moved * moved, axis=1, keepdims=True))
    moved = moved / jnp.maximum(norm, NORM_EPS)
    new_W[at] = jnp.where(good, moved, w)
    new_m[at] = jnp.where(good, first, old_m)
    new_v[at] = jnp.where(good, second, old_v)
    return _

  jax.lax.fori_loop(0, W.shape[0] // STRIP, strip, 0)
