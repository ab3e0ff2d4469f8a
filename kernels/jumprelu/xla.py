"""The two halves of JumpReLU in plain JAX, with explicit gradients."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from saejax.kernels.jumprelu.ref import KERNELS, Estimator


def forward(
  x: Float[Array, "b d"],
  W: Float[Array, "n d"],
  b: Float[Array, "n"],
  theta: Float[Array, "n"],
) -> tuple[Float[Array, "b n"], Float[Array, "b n"], Float[Array, "b"]]:
  """a = x W^T + b, z = a H(a - theta) and L0 = sum_i H(a_i - theta_i).

  Args:
    x: rows, in the dtype of the matmuls' operands.
    W: encoder rows, in the same dtype.
    b: biases, float32.
    theta: thresholds, float32.

  Returns:
    a and L0 in float32, and z in the dtype of the operands.
  """
  a = jnp.matmul(x, W.T, preferred_element_type=jnp.float32) + b
  z = jnp.where(a > theta, a, 0).astype(x.dtype)
  return a, z, jnp.sum((a > theta).astype(jnp.float32), axis=-1)


def backward(
  g: Float[Array, "b d"],
  W: Float[Array, "n d"],
  a: Float[Array, "b n"],
  g_l0: Float[Array, "b"],
  theta: Float[Array, "n"],
  *,
  estimator: Estimator,
) -> tuple[Float[Array, "b n"], Float[Array, "n"], Float[Array, "n"]]:
  """Gradients in a, theta and the biases, of a loss of z W and L0.

  Args:
    g: gradient in z W, in the dtype of the matmuls' operands.
    W: decoder rows, in the same dtype.
    a: pre-activations, float32.
    g_l0: gradient in L0.
    theta: thresholds.
    estimator: how derivatives in theta are estimated.

  Returns:
    da [b, n] in the dtype of the operands, and the sums over rows dtheta [n]
    and db [n] in float32.
  """
  g_z = jnp.matmul(g, W.T, preferred_element_type=jnp.float32)
  d_a, d_theta = slopes(a, g_z, g_l0[:, None], theta, estimator)
  return d_a.astype(g.dtype), jnp.sum(d_theta, axis=0), jnp.sum(d_a, axis=0)


def slopes(a, g_z, g_l0, theta, estimator: Estimator):
  """The straight-through gradients of each entry, in a and in theta.

  da = H(a - theta) g_z  [+ K (theta g_z + g_l0) with ste_to_input]
  dtheta = -K (theta g_z + g_l0),  K = K((a - theta) / eps) / eps

  Args:
    a: pre-activations [b, n].
    g_z: gradient in z, of the shape of a.
    g_l0: gradient in L0, broadcastable to a.
    theta: thresholds, broadcastable to a.
    estimator: how derivatives in theta are estimated.

  Returns:
    da and dtheta, both of the shape of a and not summed over rows.
  """
  near = KERNELS[estimator.kernel](a - theta, estimator.eps)
  moved = near * (theta * g_z + g_l0)
  d_a = jnp.where(a > theta, g_z, 0.0)
  return d_a + moved if estimator.ste_to_input else d_a, -moved
