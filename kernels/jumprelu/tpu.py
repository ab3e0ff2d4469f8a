"""JumpReLU forward with L0, and its straight-through backward, for TPUs.

Forward: a = x W_enc^T + b, z = a H(a - theta) and L0 in one pass. Tiling: grid
(B / rows, n / columns, rows / strip); a block of rows of x stays in VMEM while
W_enc streams through it, the innermost axis reuses a tile of it for several
strips, and L0 is accumulated over the tiles of latents.

Backward: dz = g W_dec^T, da, and dtheta and db summed over rows, in one pass.
Tiling: grid (n / columns, B / strip); a tile of W_dec stays in VMEM while g
streams through it, and dtheta and db are accumulated over the inner axis. dz is
never in HBM.

Pre-activations are saved in float32: bfloat16 ones may disagree with the
forward's mask and with the kernel's window. HBM holds a in float32 and z and da
in the dtype of the operands, [B, n] each; VMEM holds what `_forward_bytes` and
`_backward_bytes` count.

What it gains is not known: it was compiled, not timed. Counted in the compiled
step for v5e:2x2 (B 4096, d 768, n 32,768, bfloat16) it moves as many bytes per
entry of [B, n] as XLA's form, 24 and about 23: XLA keeps masks of one byte
instead of a.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from saejax.kernels.jumprelu import xla
from saejax.kernels.jumprelu.ref import Estimator

LANES = 128
VMEM_BYTES = 56 << 20  # of the 64 MiB of a v5p core
# Kernels of the estimator without a sine, which Mosaic does not have.
ESTIMATORS = (
  "rectangle",
  "triangular",
  "epanechnikov",
  "quartic",
  "gaussian",
  "cauchy",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Blocks:
  """Sizes of the blocks.

  Attributes:
    rows: rows of x in VMEM in the forward pass.
    strip: rows multiplied at once; divides `rows`.
    columns: latents per tile; a multiple of 128.
  """

  rows: int = 512
  strip: int = 256
  columns: int = 512


def blocks(
  rows: int, n: int, d: int, estimator: Estimator, dtype: Any
) -> Blocks | None:
  """Block sizes for a shape, None where there is no kernel for it.

  Args:
    rows: number of rows on this device.
    n: latents on this device.
    d: width, the larger one of x and x_hat.
    estimator: how derivatives in theta are estimated.
    dtype: dtype of the matmuls' operands.
  """
  if jnp.dtype(dtype) not in (jnp.float32, jnp.bfloat16):
    return None
  if estimator.kernel not in ESTIMATORS:
    return None
  strip = min(256, _up(rows, 16))
  columns = min(512, _up(n, LANES))
  for size in (1024, 512, 256, 128):
    size = min(size, _up(rows, strip))
    found = Blocks(rows=size, strip=min(strip, size), columns=columns)
    if max(
      _forward_bytes(found, d, dtype), _backward_bytes(found, d, dtype)
    ) <= (VMEM_BYTES):
      return found
  return None


def _up(size: int, multiple: int) -> int:
  return -(-size // multiple) * multiple


def _forward_bytes(sizes: Blocks, d: int, dtype: Any) -> int:
  """VMEM of the forward kernel: its blocks twice, and a tile of values."""
  operands = (sizes.rows + sizes.columns) * _up(d, LANES)
  tiles = 32 * sizes.strip * sizes.columns
  return 2 * operands * jnp.dtype(dtype).itemsize + tiles


def _backward_bytes(sizes: Blocks, d: int, dtype: Any) -> int:
  """VMEM of the backward kernel: its blocks twice, and tiles of values."""
  operands = (sizes.strip + sizes.columns) * _up(d, LANES)
  tiles = 40 * sizes.strip * sizes.columns
  return 2 * operands * jnp.dtype(dtype).itemsize + tiles


def _pad(a: Array, rows: int, columns: int, value: float = 0.0) -> Array:
  """A matrix padded to whole blocks."""
  more = (0, -a.shape[0] % rows), (0, -a.shape[1] % columns)
  return jnp.pad(a, more, constant_values=value)


# --- forward -----------------------------------------------------------------


def forward(
  x: Float[Array, "b d"],
  W: Float[Array, "n d"],
  b: Float[Array, "n"],
  theta: Float[Array, "n"],
  *,
  sizes: Blocks,
  interpret: Any = False,
) -> tuple[Float[Array, "b n"], Float[Array, "b n"], Float[Array, "b"]]:
  """a = x W^T + b, z = a H(a - theta) and L0 = sum_i H(a_i - theta_i).

  Args:
    x: rows, in the dtype of the matmuls' operands.
    W: encoder rows, in the same dtype.
    b: biases, float32.
    theta: thresholds, float32.
    sizes: block sizes.
    interpret: see `dispatch.Setting`.

  Returns:
    a and L0 in float32, and z in the dtype of the operands.
  """
  B, n = x.shape[0], W.shape[0]
  rows, strip, columns = sizes.rows, sizes.strip, sizes.columns
  x, W = _pad(x, rows, LANES), _pad(W, columns, LANES)
  b = _pad(b[None], 1, columns, -jnp.inf)  # never above a threshold
  theta = _pad(theta[None], 1, columns)
  (padded, d), width = x.shape, W.shape[0]
  line = pl.BlockSpec((1, columns), lambda i, j, s: (0, j))
  entries = pl.BlockSpec(
    (strip, columns), lambda i, j, s: (i * rows // strip + s, j)
  )
  a, z, l0 = pl.pallas_call(
    partial(_encode_tile, strip=strip),
    grid=(padded // rows, width // columns, rows // strip),
    in_specs=[
      pl.BlockSpec((rows, d), lambda i, j, s: (i, 0)),
      pl.BlockSpec((columns, d), lambda i, j, s: (j, 0)),
      line,
      line,
    ],
    out_specs=[
      entries,
      entries,
      pl.BlockSpec((rows, 1), lambda i, j, s: (i, 0)),
    ],
    out_shape=[
      jax.ShapeDtypeStruct((padded, width), jnp.float32),
      jax.ShapeDtypeStruct((padded, width), x.dtype),
      jax.ShapeDtypeStruct((padded, 1), jnp.float32),
    ],
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel", "arbitrary", "arbitrary"),
      vmem_limit_bytes=_forward_bytes(sizes, d, x.dtype) + (8 << 20),
    ),
    cost_estimate=pl.CostEstimate(
      flops=2 * padded * d * width,
      transcendentals=0,
      bytes_accessed=x.dtype.itemsize * d * (padded + width * padded // rows)
      + (4 + x.dtype.itemsize) * padded * width,
    ),
    interpret=interpret,
    name="jumprelu_forward",
  )(x, W, b, theta)
  return a[:B, :n], z[:B, :n], l0[:B, 0]


def _encode_tile(x, W, b, theta, a_out, z_out, l0, *, strip: int):
  """Pre-activations and latents of one strip of rows and one tile of latents."""
  s = pl.program_id(2)
  rows = pl.ds(pl.multiple_of(s * strip, strip), strip)

  @pl.when(pl.program_id(1) == 0)
  def _():
    l0[rows, :] = jnp.zeros((strip, 1), jnp.float32)

  a = jax.lax.dot_general(
    x[rows, :],
    W[...],
    (((1,), (1,)), ((), ())),
    preferred_element_type=jnp.float32,
  )
  a = a + b[...]
  on = a > theta[...]
  a_out[...], z_out[...] = a, jnp.where(on, a, 0.0).astype(z_out.dtype)
  l0[rows, :] += jnp.sum(jnp.where(on, 1.0, 0.0), axis=1, keepdims=True)


# --- backward ----------------------------------------------------------------


def backward(
  g: Float[Array, "b d"],
  W: Float[Array, "n d"],
  a: Float[Array, "b n"],
  g_l0: Float[Array, "b"],
  theta: Float[Array, "n"],
  *,
  estimator: Estimator,
  sizes: Blocks,
  interpret: Any = False,
) -> tuple[Float[Array, "b n"], Float[Array, "n"], Float[Array, "n"]]:
  """Gradients in a, theta and the biases, of a loss of z W and L0.

  Args:
    g: gradient in z W, in the dtype of the matmuls' operands.
    W: decoder rows, in the same dtype.
    a: pre-activations, float32.
    g_l0: gradient in L0, float32.
    theta: thresholds, float32.
    estimator: how derivatives in theta are estimated.
    sizes: block sizes.
    interpret: see `dispatch.Setting`.

  Returns:
    da [b, n] in the dtype of the operands, and the sums over rows dtheta [n]
    and db [n] in float32; see `xla.slopes`.
  """
  (B, n), rows, columns = a.shape, sizes.strip, sizes.columns
  g, W = _pad(g, rows, LANES), _pad(W, columns, LANES)
  a = _pad(a, rows, columns)
  g_l0 = _pad(g_l0[:, None], rows, 1)  # rows of zeros add nothing
  theta = _pad(theta[None], 1, columns)
  (padded, width), d = a.shape, g.shape[1]
  tile = pl.BlockSpec((rows, columns), lambda j, i: (i, j))
  line = pl.BlockSpec((1, columns), lambda j, i: (0, j))
  d_a, d_theta, d_b = pl.pallas_call(
    partial(_slopes_of_tile, estimator=estimator),
    grid=(width // columns, padded // rows),
    in_specs=[
      pl.BlockSpec((rows, d), lambda j, i: (i, 0)),
      pl.BlockSpec((columns, d), lambda j, i: (j, 0)),
      tile,
      pl.BlockSpec((rows, 1), lambda j, i: (i, 0)),
      line,
    ],
    out_specs=[tile, line, line],
    out_shape=[
      jax.ShapeDtypeStruct((padded, width), g.dtype),
      jax.ShapeDtypeStruct((1, width), jnp.float32),
      jax.ShapeDtypeStruct((1, width), jnp.float32),
    ],
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel", "arbitrary"),
      vmem_limit_bytes=_backward_bytes(sizes, d, g.dtype) + (8 << 20),
    ),
    cost_estimate=pl.CostEstimate(
      flops=2 * padded * d * width,
      transcendentals=0,
      bytes_accessed=g.dtype.itemsize * d * (width + padded * width // columns)
      + (4 + g.dtype.itemsize) * padded * width,
    ),
    interpret=interpret,
    name="jumprelu_backward",
  )(g, W, a, g_l0, theta)
  return d_a[:B, :n], d_theta[0, :n], d_b[0, :n]


def _slopes_of_tile(g, W, a, g_l0, theta, d_a, d_theta, d_b, *, estimator):
  """Gradients of one tile; those in theta and b are added to their sums."""

  @pl.when(pl.program_id(1) == 0)
  def _():
    d_theta[...] = jnp.zeros(d_theta.shape, jnp.float32)
    d_b[...] = jnp.zeros(d_b.shape, jnp.float32)

  g_z = jax.lax.dot_general(
    g[...],
    W[...],
    (((1,), (1,)), ((), ())),
    preferred_element_type=jnp.float32,
  )
  each, moved = xla.slopes(a[...], g_z, g_l0[...], theta[...], estimator)
  d_a[...] = each.astype(d_a.dtype)
  d_theta[...] += jnp.sum(moved, axis=0, keepdims=True)
  d_b[...] += jnp.sum(each, axis=0, keepdims=True)
