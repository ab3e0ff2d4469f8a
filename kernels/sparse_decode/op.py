"""Products of a sparse code with a dense matrix, and their gradients.

    decode           x_hat_b = sum_j values_bj W[indices_bj]
    sampled_product  out_bj  = <g_b, W[indices_bj]>
    scatter_rows     out_i   = sum over (b, j) with indices_bj = i: values_bj y_b

The gradient of decode is one of each of the others, so a step costs 2Bkd per
product instead of 2Bnd. With W's rows sharded over `latent`, each shard adds
what its own rows give and the shards are summed once; with rows of the batch
sharded over `data`, the scattered gradient is.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from saejax.kernels import dispatch, mesh
from saejax.kernels.sparse_decode import native, ref, xla

IMPLEMENTATIONS = {"ref": ref, "xla": xla}


def decode(
  values: Float[Array, "*b k"],
  indices: Int[Array, "*b k"],
  W: Float[Array, "n d"],
  dtype: str = "float32",
) -> Float[Array, "*b d"]:
  """sum_j values[*b, j] W[indices[*b, j]], accumulated in float32.

  Entries of value 0 are absent, whatever their index and W's row hold.
  Differentiable in values and W; gradients are float32 whatever `dtype`, in
  which W's rows are read.

  Args:
    values: entries of the code; 0 where absent.
    indices: row of W of each entry.
    W: dense matrix, row i is latent i.
    dtype: dtype in which W's rows are read.
  """
  k = values.shape[-1]
  rows = _decode(values.reshape(-1, k), indices.reshape(-1, k), W, dtype)
  return rows.reshape(*values.shape[:-1], W.shape[-1])


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _decode(values, indices, W, dtype):
  return decode_rows(values, indices, W.astype(dtype))


def _decode_forward(values, indices, W, dtype):
  return _decode(values, indices, W, dtype), (values, indices, W)


def _decode_backward(dtype, saved, g):
  values, indices, W = saved
  d_values, d_W = gradients(values, indices, g, W, dtype)
  return d_values.astype(values.dtype), None, d_W.astype(W.dtype)


_decode.defvjp(_decode_forward, _decode_backward)


def gradients(values, indices, g, W, dtype: str):
  """The gradients of `decode` of flat rows in values and in W, in float32.

  Args:
    values: entries of the code [b, k]; 0 where absent, and so is its gradient.
    indices: row of W of each entry [b, k].
    g: gradient in the decoded rows [b, d].
    W: dense matrix [n, d].
    dtype: dtype in which g and W's rows are multiplied.
  """

  def apart(values, indices, g, W):
    d_values = sampled_product(g.astype(dtype), W.astype(dtype), indices)
    d_values = jnp.where(values != 0, d_values, 0)
    return d_values, scatter_rows(values, indices, g, W.shape[0])

  whole = not any(_axes(g.shape[0], W.shape[0]))
  float32 = g.dtype == W.dtype == jnp.dtype(dtype) == jnp.float32
  fits = native.fits(values)
  together = native.gradients if whole and float32 and fits else None
  return dispatch.run(values, indices, g, W, xla=apart, native=together)


def decode_rows(values, indices, W, implementation: str = "xla"):
  """`decode` of flat rows [b, k], without a gradient of its own.

  Args:
    values: entries of the code [b, k]; 0 where absent.
    indices: row of W of each entry [b, k].
    W: dense matrix [n, d], in the dtype to read it in.
    implementation: "ref" or "xla".

  Returns:
    The sums [b, d], in float32.
  """
  run = IMPLEMENTATIONS[implementation].decode
  data, latent = _axes(values.shape[0], W.shape[0])
  if not (data or latent):
    return run(values, indices, W)

  def body(values, indices, W):
    local, mine = mesh.own(indices, W.shape[0], latent)
    return mesh.psum(run(jnp.where(mine, values, 0), local, W), latent)

  specs = (P(data), P(data), P(latent))
  return mesh.per_shard(body, specs, P(data))(values, indices, W)


def sampled_product(g, W, indices, implementation: str = "xla"):
  """<g[b], W[indices[b, j]]> for flat rows, in float32.

  Args:
    g: rows [b, d].
    W: dense matrix [n, d], in the dtype of g.
    indices: rows of W to multiply with each row of g [b, k].
    implementation: "ref" or "xla".

  Returns:
    The products [b, k].
  """
  run = IMPLEMENTATIONS[implementation].sampled_product
  data, latent = _axes(g.shape[0], W.shape[0])
  if not (data or latent):
    return run(g, W, indices)

  def body(g, W, indices):
    local, mine = mesh.own(indices, W.shape[0], latent)
    return mesh.psum(jnp.where(mine, run(g, W, local), 0), latent)

  specs = (P(data), P(latent), P(data))
  return mesh.per_shard(body, specs, P(data))(g, W, indices)


def scatter_rows(values, indices, y, n: int, implementation: str | None = None):
  """Row i: the sum of values[b, j] y[b] where indices = i, in float32.

  Args:
    values: factors [b, k]; 0 where absent.
    indices: row of the result of each entry [b, k].
    y: rows to scatter [b, d].
    n: number of rows of the result.
    implementation: "ref" or "xla"; None lets the op choose.

  Returns:
    The sums [n, d].
  """
  run = _scatter
  if implementation is not None:
    run = IMPLEMENTATIONS[implementation].scatter_rows
  data, latent = _axes(values.shape[0], n)
  if not (data or latent):
    return run(values, indices, y, n)
  rows = n // mesh.size(mesh.LATENT) if latent else n

  def body(values, indices, y):
    local, mine = mesh.own(indices, rows, latent)
    values = jnp.where(mine, values, 0)
    return mesh.psum(run(values, local, y, rows), data)

  specs = (P(data), P(data), P(data))
  return mesh.per_shard(body, specs, P(latent))(values, indices, y)


def _scatter(values, indices, y, n: int):
  return dispatch.run(
    values,
    indices,
    y,
    xla=partial(xla.scatter_rows, n=n),
    native=partial(native.scatter_rows, n=n) if native.fits(values) else None,
  )


def _axes(rows: int, n: int) -> tuple[str | None, str | None]:
  return (
    mesh.axis_or_none(mesh.DATA, rows),
    mesh.axis_or_none(mesh.LATENT, n),
  )
