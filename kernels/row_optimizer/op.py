"""One step of Adam on a matrix of unit rows, and its constraint.

    g <- s (g - <g, w> w)            the gradient along a row, and clipping
    m <- b1 m + (1 - b1) g
    v <- b2 v + (1 - b2) g^2
    w <- w - rate (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)
    w <- w / |w|

for each row w of W. On a TPU this is one pass over the rows (`tpu.py`).
"""

from functools import partial

import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from saejax.kernels import dispatch, mesh
from saejax.kernels.row_optimizer import ref, tpu


def update(
  W: Float[Array, "n d"],
  g: Float[Array, "n d"],
  m: Float[Array, "n d"],
  v: Float[Array, "n d"],
  *,
  count: Int[Array, ""],
  rate: Float[Array, ""],
  scale: Float[Array, ""],
  good: Bool[Array, ""],
  b1: float,
  b2: float,
  eps: float,
) -> tuple[Float[Array, "n d"], Float[Array, "n d"], Float[Array, "n d"]]:
  """The new W, m and v; the old ones where the step is not good.

  Args:
    W: rows of unit norm, float32.
    g: gradient of W.
    m, v: first and second moments of the projected gradient.
    count: number of this step, t, from 1.
    rate: learning rate.
    scale: factor of the projected gradient.
    good: whether to do the step.
    b1, b2, eps: settings of Adam.
  """
  n, d = W.shape
  decay = lambda b: 1 - b ** count.astype(jnp.float32)
  scalars = jnp.stack(
    [scale, rate, decay(b1), decay(b2), good.astype(jnp.float32)]
  )
  latent = mesh.axis_or_none(mesh.LATENT, n)
  how = {"b1": b1, "b2": b2, "eps": eps}
  rows = n // mesh.size(mesh.LATENT) if latent else n
  kernel = None
  if block := tpu.rows(rows, d, W.dtype):
    kernel = partial(_on_shards, latent=latent, block=block, **how)
  return dispatch.run(
    W, g, m, v, scalars, xla=partial(ref.update, **how), tpu=kernel
  )


def _on_shards(*arrays, latent, interpret=False, **how):
  """The kernel on each shard of rows."""
  body = partial(tpu.update, interpret=interpret, **how)
  if latent is None:
    return body(*arrays)
  matrix = P(latent)
  specs = (matrix,) * 4 + (P(),)
  return mesh.per_shard(body, specs, (matrix,) * 3)(*arrays)
