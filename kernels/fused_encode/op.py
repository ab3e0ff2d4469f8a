"""The k largest pre-activations of each row, and their sparse gradient.

    a = (x - b_pre) W_enc^T + b_enc;  values, indices = top_k(a)

or those that are largest in magnitude, with their signs.

Only x and the indices are kept for the backward pass, which touches the k
chosen rows alone. The gradient of b_pre is summed over the batch before the one
product with W_enc (2nd instead of 2Bnd operations). No [B, n] array outlives a
chunk of rows; on a TPU the Pallas form (`tpu.py`) makes none except of the rows
that it cannot certify.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from saejax.kernels import dispatch, mesh
from saejax.kernels.fused_encode import tpu, xla
from saejax.kernels.sparse_decode import op as sparse
from saejax.kernels.sparse_decode import xla as sparse_xla
from saejax.kernels.topk import op as topk


def encode_topk(
  x: Float[Array, "*b d"],
  b_pre: Float[Array, "d"],
  W_enc: Float[Array, "n d"],
  b_enc: Float[Array, "n"],
  k: int,
  dtype: str = "float32",
  *,
  ordered: bool = True,
  magnitude: bool = False,
  most: Int[Array, ""] | None = None,
) -> tuple[Float[Array, "*b k"], Int[Array, "*b k"]]:
  """The k largest pre-activations of each row, in float32, with indices.

  Args:
    x: activations.
    b_pre: subtracted from x; zeros where there is no pre-bias.
    W_enc: encoder, row i is latent i.
    b_enc: added to the pre-activations; -inf for latents that do not compete,
      which come after all others.
    k: entries kept, in [1, n].
    dtype: dtype of the matmul's operands; accumulation is in float32.
    ordered: whether entries come largest first; else in index order, which is
      faster.
    magnitude: whether entries are ranked by |a|; values keep their signs.
    most: upper bound of the number of latents that compete. Plain JAX encodes
      them alone where they are few and lie on one device.

  Raises:
    ValueError: k outside [1, n].
  """
  return encode_topk_counted(
    x,
    b_pre,
    W_enc,
    b_enc,
    k,
    dtype,
    ordered=ordered,
    magnitude=magnitude,
    most=most,
  )[:2]


def encode_topk_counted(
  x: Float[Array, "*b d"],
  b_pre: Float[Array, "d"],
  W_enc: Float[Array, "n d"],
  b_enc: Float[Array, "n"],
  k: int,
  dtype: str = "float32",
  *,
  ordered: bool = True,
  magnitude: bool = False,
  most: Int[Array, ""] | None = None,
) -> tuple[Float[Array, "*b k"], Int[Array, "*b k"], Int[Array, ""]]:
  """`encode_topk`, and how many rows its kernel redid densely.

  Args:
    x, b_pre, W_enc, b_enc, k, dtype, ordered, magnitude, most: see
      `encode_topk`.

  Returns:
    Values, indices, and the number of rows without a certificate, counted once
    per shard of latents; 0 in the XLA form.

  Raises:
    ValueError: k outside [1, n].
  """
  n, d = W_enc.shape
  if not 1 <= k <= n:
    raise ValueError(f"k must be in [1, n={n}], got {k}")
  values, indices, redone = _encode(
    x.reshape(-1, d), b_pre, W_enc, b_enc, most, k, dtype, ordered, magnitude
  )
  shape = (*x.shape[:-1], k)
  count = jnp.sum(redone.astype(jnp.int32))
  return values.reshape(shape), indices.reshape(shape), count


@partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7, 8))
def _encode(x, b_pre, W_enc, b_enc, most, k, dtype, ordered, magnitude):
  data = mesh.axis_or_none(mesh.DATA, x.shape[0])
  latent = mesh.axis_or_none(mesh.LATENT, W_enc.shape[0])
  body = partial(
    _on_shard,
    k=k,
    dtype=dtype,
    ordered=ordered,
    magnitude=magnitude,
    axis=latent,
  )
  args, specs = (x - b_pre, W_enc, b_enc), (P(data), P(latent), P(latent))
  if most is not None and not latent:
    args, specs = (*args, most), (*specs, P())
  if data or latent:
    outs = P(data), P(data), P(data, latent)
    body = mesh.per_shard(body, specs, outs)
  return body(*args)


def _on_shard(
  x, W_enc, b_enc, most=None, *, k, dtype, ordered, magnitude, axis
):
  """Selection on one shard's rows and latents, then among all shards."""
  x, W_enc = x.astype(dtype), W_enc.astype(dtype)
  (rows, d), n = x.shape, W_enc.shape[0]
  own = min(k, n)
  select = xla.selection(ordered=ordered, magnitude=magnitude)

  def plain(x, W, b):
    none = jnp.zeros(rows, bool)
    if most is None:
      return *xla.encode_select(x, W, b, own, select=select), none
    return *xla.encode_select_among(x, W, b, most, own, select=select), none

  kernel = None
  sizes = tpu.blocks(rows, n, d, own, dtype)
  if sizes and (dispatch.current().kernels == "pallas" or tpu.pays(n, sizes)):
    kernel = partial(
      tpu.encode_select,
      k=own,
      ordered=ordered,
      magnitude=magnitude,
      sizes=sizes,
    )
  values, indices, redone = dispatch.run(x, W_enc, b_enc, xla=plain, tpu=kernel)
  score = {"score": xla.magnitudes} if magnitude else {}
  values, indices = topk.of_all_shards(
    values, indices, n, select=select, k=k, axis=axis, **score
  )
  return values, indices, redone[:, None]


def _encode_forward(x, b_pre, W_enc, b_enc, most, k, dtype, ordered, magnitude):
  out = _encode(x, b_pre, W_enc, b_enc, most, k, dtype, ordered, magnitude)
  return out, (x, b_pre, W_enc, out[1])


def _encode_backward(k, dtype, ordered, magnitude, saved, cotangents):
  del k, dtype, ordered, magnitude
  x, b_pre, W_enc, indices = saved
  g = cotangents[0]
  d_W = sparse.scatter_rows(g, indices, x - b_pre, W_enc.shape[0])
  d_b = sparse_xla.scatter_scalars(g, indices, W_enc.shape[0])
  d_b_pre = -(d_b @ W_enc)
  d_x = sparse.decode_rows(g, indices, W_enc).astype(x.dtype)
  return d_x, d_b_pre.astype(b_pre.dtype), d_W.astype(W_enc.dtype), d_b, None


_encode.defvjp(_encode_forward, _encode_backward)
