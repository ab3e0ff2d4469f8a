"""The definition: pre-activations, then the k largest of each row."""

import jax
import jax.numpy as jnp


def encode_topk(x, b_pre, W_enc, b_enc, k: int):
  """top_k((x - b_pre) W_enc^T + b_enc) by plain autodiff; x [b, d]."""
  a = jnp.matmul(x - b_pre, W_enc.T, precision="highest") + b_enc
  return jax.lax.top_k(a, k)
