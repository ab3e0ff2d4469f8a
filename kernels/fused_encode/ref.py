"""The definition: pre-activations, then the k largest of each row."""

import jax
import jax.numpy as jnp


def encode_topk(x, b_pre, W_enc, b_enc, k: int, *, magnitude: bool = False):
  """top_k((x - b_pre) W_enc^T + b_enc) by plain autodiff; x [b, d].

  See `op.encode_topk` for the arguments.
  """
  a = jnp.matmul(x - b_pre, W_enc.T, precision="highest") + b_enc
  _, indices = jax.lax.top_k(jnp.abs(a) if magnitude else a, k)
  return jnp.take_along_axis(a, indices, axis=-1), indices
