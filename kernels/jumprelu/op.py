"""Encoder and JumpReLU, with the number of active latents of each row.

    a = x W^T + b,  z = a H(a - theta),  L0 = sum_i H(a_i - theta_i)

with the estimated derivatives in theta of `ref`. Where there is no kernel for
the dtype or the shape, this is plain JAX and plain autodiff. Elsewhere a is
saved in float32 for an explicit backward pass, whose two halves choose their
form; its matmuls, dW = da^T x and dx = da W, are left to XLA.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from saejax.kernels import dispatch, mesh
from saejax.kernels.jumprelu import ref, tpu, xla
from saejax.kernels.jumprelu.ref import Estimator


def encode(
  x: Float[Array, "*b d"],
  W: Float[Array, "n d"],
  b: Float[Array, "n"],
  theta: Float[Array, "n"],
  estimator: Estimator,
  dtype: str = "float32",
) -> tuple[Float[Array, "*b n"], Float[Array, "*b n"], Float[Array, "*b"]]:
  """Pre-activations, latents and L0, in float32.

  Args:
    x: activations, after the pre-bias.
    W: encoder, row i is latent i.
    b: added to the pre-activations.
    theta: thresholds.
    estimator: how derivatives in theta are estimated.
    dtype: dtype of the matmul's operands; accumulation is in float32.

  Returns:
    (a, z, l0); the gradient of l0 reaches theta, and a with `ste_to_input`.

  Raises:
    ValueError: an unknown kernel of the estimator.
  """
  if estimator.kernel not in ref.KERNELS:
    raise ValueError(
      f"kernel must be in {sorted(ref.KERNELS)}, got {estimator.kernel!r}"
    )
  sizes = _blocks(x, W, estimator, dtype)
  if sizes is None or dispatch.current().kernels == "xla":
    how = dataclasses.astuple(estimator)
    a = _matmul(x, W, dtype) + b
    l0 = jnp.sum(ref.step(a, theta, *how), axis=-1)
    return a, ref.jump(a, theta, *how), l0
  flat = x.reshape(-1, x.shape[-1])
  a, z, l0 = _encode(flat, W, b, theta, estimator, dtype, sizes)
  shape = (*x.shape[:-1], W.shape[0])
  return a.reshape(shape), z.reshape(shape), l0.reshape(shape[:-1])


def _blocks(x, W, estimator: Estimator, dtype: str) -> tpu.Blocks | None:
  """Block sizes on one shard, None where no kernel runs."""
  rows, n = x.size // x.shape[-1], W.shape[0]
  data, latent = _axes(rows, n)
  shape = (
    rows // (mesh.size(data) if data else 1),
    n // (mesh.size(latent) if latent else 1),
    W.shape[1],
  )
  sizes = tpu.blocks(*shape, estimator, dtype)
  if sizes is None or dispatch.current().kernels == "pallas":
    return sizes
  return sizes if tpu.fits(*shape, sizes) else None


def _axes(rows: int, n: int) -> tuple[str | None, str | None]:
  return mesh.axis_or_none(mesh.DATA, rows), mesh.axis_or_none(mesh.LATENT, n)


def _matmul(x, W, dtype: str):
  """x W^T with operands of a dtype, summed in float32."""
  return jnp.matmul(
    x.astype(dtype), W.T.astype(dtype), preferred_element_type=jnp.float32
  )


@partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _encode(x, W, b, theta, estimator, dtype, sizes):
  return _encode_forward(x, W, b, theta, estimator, dtype, sizes)[0]


def _encode_forward(x, W, b, theta, estimator, dtype, sizes):
  del estimator
  data, latent = _axes(x.shape[0], W.shape[0])

  def kernel(x, W, b, theta, interpret=False):
    def body(*shard):
      a, l0 = tpu.forward(*shard, sizes=sizes, interpret=interpret)
      return a, mesh.psum(l0, latent)

    specs = (P(data), P(latent), P(latent), P(latent))
    return _shards(body, specs, (P(data, latent), P(data)))(x, W, b, theta)

  a, l0 = dispatch.run(
    x.astype(dtype), W.astype(dtype), b, theta, xla=xla.forward, tpu=kernel
  )
  return (a, jnp.where(a > theta, a, 0), l0), (x, W, theta, a)


def _encode_backward(estimator, dtype, sizes, saved, cotangents):
  x, W, theta, a = saved
  g_a, g_z, g_l0 = cotangents
  data, latent = _axes(x.shape[0], W.shape[0])

  def kernel(a, g_z, g_l0, theta, interpret=False):
    def body(*shard):
      how = {"estimator": estimator, "sizes": sizes, "interpret": interpret}
      d_a, *sums = tpu.backward(*shard, **how)
      return d_a, *(mesh.psum(each, data) for each in sums)

    entries = P(data, latent)
    specs = (entries, entries, P(data), P(latent))
    return _shards(body, specs, (entries, P(latent), P(latent)))(
      a, g_z, g_l0, theta
    )

  plain = partial(xla.backward, estimator=estimator)
  d_a, d_theta, d_b = dispatch.run(a, g_z, g_l0, theta, xla=plain, tpu=kernel)
  # Zeros, which XLA drops, unless a loss reads a itself.
  d_a, d_b = d_a + g_a, d_b + jnp.sum(g_a, axis=0)
  _, transposed = jax.vjp(partial(_matmul, dtype=dtype), x, W)
  return *transposed(d_a), d_b, d_theta


_encode.defvjp(_encode_forward, _encode_backward)


def _shards(body, in_specs, out_specs):
  """`body` on each shard of the mesh, if rows or latents are split."""
  if all(axis is None for spec in in_specs for axis in spec):
    return body
  return mesh.per_shard(body, in_specs, out_specs)
