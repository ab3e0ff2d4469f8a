"""The errors of every prefix of a sparse code, weighted and summed.

    loss_b = sum_j c_j |r_b - sum_{t<=j} values_bt W[indices_bt]|^2

over ranks j = 1..k in the order of the entries, r the residual of a code that
holds nothing (target minus bias). Costs about one decode forward and two
backward, and memory that does not grow with k; autodiff of a cumulative sum
holds [b, k, d]. With W's rows sharded over `latent`, the errors are summed over
columns of d instead: shards exchange rows of W for columns once, each takes all
entries on its columns, and the gradient of W is exchanged back. Summing the rows
of each rank over the shards moves 2 k b d entries, the exchange 2 n d / T of
each shard. With rows of the batch over `data`, the gradient of W is summed.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from saejax.kernels import mesh
from saejax.kernels.nested_decode import xla


def squares(
  values: Float[Array, "*b k"],
  indices: Int[Array, "*b k"],
  W: Float[Array, "n d"],
  residual: Float[Array, "*b d"],
  weights: Float[Array, "k"],
  dtype: str = "float32",
) -> Float[Array, "*b"]:
  """sum_j weights_j |residual - sum_{t<=j} values_t W[indices_t]|^2 per row.

  Entries of value 0 are absent, whatever their index and W's row hold.
  Differentiable in values, W and residual, not in weights; gradients are
  float32 whatever `dtype`, in which W's rows are read.

  Args:
    values: entries of the code, in the order of their ranks.
    indices: row of W of each entry.
    W: decoder, row i is latent i.
    residual: target minus bias.
    weights: weight of the prefix that ends at each rank.
    dtype: dtype in which W's rows are read; sums are in float32.

  Raises:
    ValueError: the number of weights is not k.
  """
  k = values.shape[-1]
  if weights.shape != (k,):
    raise ValueError(f"weights must be [k={k}], got {weights.shape}")
  rows: Any = _squares(
    values.reshape(-1, k),
    indices.reshape(-1, k),
    W,
    residual.reshape(-1, residual.shape[-1]),
    weights,
    dtype,
  )
  return rows.reshape(values.shape[:-1])


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def _squares(values, indices, W, residual, weights, dtype):
  return _forward(values, indices, W, residual, weights, dtype)[0]


def _squares_forward(values, indices, W, residual, weights, dtype):
  loss, rest = _forward(values, indices, W, residual, weights, dtype)
  return loss, (values, indices, W, rest, weights)


def _squares_backward(dtype, saved, g):
  values, indices, W, rest, weights = saved
  d_values, d_W, d_residual = _backward(
    values, indices, W, rest, weights, g, dtype
  )
  d_values, d_W = d_values.astype(values.dtype), d_W.astype(W.dtype)
  return d_values, None, d_W, d_residual, jnp.zeros_like(weights)


_squares.defvjp(_squares_forward, _squares_backward)


def _forward(values, indices, W, residual, weights, dtype):
  data, latent = _axes(values.shape[0], *W.shape)

  def body(values, indices, W, residual, weights):
    W = _columns(W, latent)
    # Sliced here: compilers would split all that the residual comes from.
    residual = _own_columns(residual, W.shape[1], latent)
    take = partial(_take, W)
    loss, rest = xla.forward(values, indices, take, residual, weights)
    return mesh.psum(loss, latent), rest

  specs = (P(data), P(data), P(latent), P(data), P())
  run = _run(body, data, latent, specs, (P(data), P(data, latent)))
  return run(values, indices, W.astype(dtype), residual, weights)


def _backward(values, indices, W, rest, weights, g, dtype):
  data, latent = _axes(values.shape[0], *W.shape)

  def body(values, indices, W, rest, weights, g):
    W = _columns(W, latent)
    d_values, d_W, d_residual = xla.backward(
      values,
      indices,
      partial(_take, W),
      _add,
      jnp.zeros(W.shape),
      rest,
      weights,
      g,
    )
    d_W = _rows(mesh.psum(d_W, data), latent)
    return mesh.psum(d_values, latent), d_W, d_residual

  rows = P(data, latent)
  specs = (P(data), P(data), P(latent), rows, P(), P(data))
  run = _run(body, data, latent, specs, (P(data), P(latent), rows))
  return run(values, indices, W.astype(dtype), rest, weights, g)


def _run(body, data, latent, in_specs, out_specs):
  """Runs the body, on each shard if there are several."""
  if not (data or latent):
    return body
  return mesh.per_shard(body, in_specs, out_specs)


def _columns(W, axis: str | None):
  """This shard's columns of all rows of W, from its rows of all columns."""
  if axis is None:
    return W
  return jax.lax.all_to_all(W, axis, split_axis=1, concat_axis=0, tiled=True)


def _own_columns(x, width: int, axis: str | None):
  """This shard's columns of an array that every shard holds."""
  if axis is None:
    return x
  start = jax.lax.axis_index(axis) * width
  return jax.lax.dynamic_slice_in_dim(x, start, width, axis=1)


def _rows(W, axis: str | None):
  """The inverse of `_columns`."""
  if axis is None:
    return W
  return jax.lax.all_to_all(W, axis, split_axis=0, concat_axis=1, tiled=True)


def _take(W, indices):
  return jnp.take(W, indices, axis=0, mode="clip").astype(jnp.float32)


def _add(total, indices, rows):
  return total.at[indices].add(rows, mode="drop")


def _axes(rows: int, n: int, d: int) -> tuple[str | None, str | None]:
  """Mesh axes of the rows of the batch, and of the rows of W and columns.

  The latents are split only where their axis divides d too.
  """
  latent = mesh.axis_or_none(mesh.LATENT, n)
  return mesh.axis_or_none(mesh.DATA, rows), (
    mesh.axis_or_none(latent, d) if latent else None
  )
