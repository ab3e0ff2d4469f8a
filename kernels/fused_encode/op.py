"""The k largest pre-activations of each row, and their sparse gradient.

    a = (x - b_pre) W_enc^T + b_enc;  values, indices = top_k(a)

or those that are largest in magnitude, with their signs.

Only x and the indices are kept for the backward pass, which touches the k
chosen rows alone. The gradient of b_pre is summed over the batch before the one
product with W_enc (2nd instead of 2Bnd operations). No [B, n] array outlives a
chunk of rows.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from saejax.kernels import mesh
from saejax.kernels.sparse_decode import op as sparse
from saejax.kernels.topk import op as topk
from saejax.kernels.topk import xla as topk_xla

# Pre-activations in memory at once, on each device. On CPU they should stay in
# cache between the matmul and the selection.
CHUNK_BYTES = 1 << 28
CPU_CHUNK_BYTES = 1 << 24


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

  Raises:
    ValueError: k outside [1, n].
  """
  n, d = W_enc.shape
  if not 1 <= k <= n:
    raise ValueError(f"k must be in [1, n={n}], got {k}")
  values, indices = _encode(
    x.reshape(-1, d), b_pre, W_enc, b_enc, k, dtype, ordered, magnitude
  )
  shape = (*x.shape[:-1], k)
  return values.reshape(shape), indices.reshape(shape)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6, 7))
def _encode(x, b_pre, W_enc, b_enc, k, dtype, ordered, magnitude):
  data = mesh.axis_or_none(mesh.DATA, x.shape[0])
  latent = mesh.axis_or_none(mesh.LATENT, W_enc.shape[0])
  select = topk_xla.top_k if ordered else topk_xla.top_k_set
  if magnitude:
    select = partial(_by_magnitude, select)
  body = partial(
    _select_in_chunks, select=select, k=k, dtype=dtype, axis=latent
  )
  if data or latent:
    body = mesh.per_shard(
      body, (P(data), P(latent), P(latent)), (P(data), P(data))
    )
  return body(x - b_pre, W_enc, b_enc)


def _by_magnitude(select, a, k: int):
  """A selection on |a|, with the signed values; -inf stays the smallest."""
  _, indices = select(jnp.where(a > -jnp.inf, jnp.abs(a), a), k)
  return jnp.take_along_axis(a, indices, axis=-1), indices


def _encode_forward(x, b_pre, W_enc, b_enc, k, dtype, ordered, magnitude):
  values, indices = _encode(
    x, b_pre, W_enc, b_enc, k, dtype, ordered, magnitude
  )
  return (values, indices), (x, b_pre, W_enc, indices)


def _encode_backward(k, dtype, ordered, magnitude, saved, cotangents):
  del k, dtype, ordered, magnitude
  x, b_pre, W_enc, indices = saved
  g = cotangents[0]
  d_W = sparse.scatter_rows(g, indices, x - b_pre, W_enc.shape[0])
  d_b = jnp.zeros(W_enc.shape[:1], g.dtype).at[indices].add(g)
  d_b_pre = -(d_b @ W_enc)
  d_x = sparse.decode_rows(g, indices, W_enc).astype(x.dtype)
  return d_x, d_b_pre.astype(b_pre.dtype), d_W.astype(W_enc.dtype), d_b


_encode.defvjp(_encode_forward, _encode_backward)


def _select_in_chunks(x, W_enc, b_enc, *, select, k, dtype, axis):
  """Selection on one shard's rows and latents, a chunk of rows at a time."""
  W_enc = W_enc.astype(dtype)

  def encode(x):
    a = jnp.matmul(x.astype(dtype), W_enc.T, preferred_element_type=jnp.float32)
    return topk.select_on_shard(a + b_enc, select=select, k=k, axis=axis)

  def in_chunks(chunk_bytes, x):
    rows = x.shape[0]
    chunks = -(-rows * W_enc.shape[0] * 4 // chunk_bytes)
    chunks = max(1, min(chunks, rows))  # one row may be larger than a chunk
    while rows % chunks:
      chunks += 1
    if chunks == 1:
      return encode(x)
    out = jax.lax.map(encode, x.reshape(chunks, rows // chunks, -1))
    return tuple(a.reshape(rows, k) for a in out)

  return jax.lax.platform_dependent(
    x,
    cpu=partial(in_chunks, CPU_CHUNK_BYTES),
    default=partial(in_chunks, CHUNK_BYTES),
  )
