"""Encoder, JumpReLU and decoder, with the number of active latents of each row.

    a = x W_enc^T + b_enc,  z = a H(a - theta),  x_hat = z W_dec
    L0 = sum_i H(a_i - theta_i)

with the estimated derivatives in theta of `ref`. This is plain JAX and plain
autodiff unless the setting is "pallas" and there is a kernel for the dtype and
the shape: counted, the kernels move as many bytes as XLA's passes (24 against 23
per entry of [B, n]), and they have not been timed. With them a is saved in
float32 for an explicit backward pass, whose two halves choose their
form. The decoder's matmul and those of the gradients in x and in both W are left
to XLA.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from saejax.kernels import dispatch, mesh
from saejax.kernels.jumprelu import ref, tpu, xla
from saejax.kernels.jumprelu.ref import Estimator


def autoencode(
  x: Float[Array, "*b d"],
  W_enc: Float[Array, "n d"],
  b_enc: Float[Array, "n"],
  theta: Float[Array, "n"],
  W_dec: Float[Array, "n d_out"],
  estimator: Estimator,
  dtype: str = "float32",
) -> tuple[
  Float[Array, "*b d_out"],
  Float[Array, "*b n"],
  Float[Array, "*b n"],
  Float[Array, "*b"],
]:
  """Reconstructions, pre-activations, latents and L0, in float32.

  Args:
    x: activations, after the pre-bias.
    W_enc: encoder, row i is latent i.
    b_enc: added to the pre-activations.
    theta: thresholds.
    W_dec: decoder, row i is latent i.
    estimator: how derivatives in theta are estimated.
    dtype: dtype of the matmuls' operands; accumulation is in float32.

  Returns:
    (x_hat, a, z, l0), x_hat without the decoder's bias; the gradient of l0
    reaches theta, and a with `ste_to_input`.

  Raises:
    ValueError: an unknown kernel of the estimator.
  """
  if estimator.kernel not in ref.KERNELS:
    raise ValueError(
      f"kernel must be in {sorted(ref.KERNELS)}, got {estimator.kernel!r}"
    )
  sizes = _blocks(x, W_enc, W_dec, estimator, dtype)
  if sizes is None:
    how = dataclasses.astuple(estimator)
    a = _times(x, W_enc.T, dtype) + b_enc
    z = ref.jump(a, theta, *how)
    l0 = jnp.sum(ref.step(a, theta, *how), axis=-1)
    return _times(z, W_dec, dtype), a, z, l0
  flat = x.reshape(-1, x.shape[-1])
  out = _autoencode(flat, W_enc, b_enc, theta, W_dec, estimator, dtype, sizes)
  x_hat, a, z, l0 = (y.reshape(*x.shape[:-1], *y.shape[1:]) for y in out)
  return x_hat, a, z, l0


def _blocks(x, W_enc, W_dec, estimator: Estimator, dtype: str):
  """Block sizes on one shard, None where no kernel runs."""
  if dispatch.current().kernels != "pallas":
    return None
  rows, n = x.size // x.shape[-1], W_enc.shape[0]
  data, latent = _axes(rows, n)
  rows //= mesh.size(data) if data else 1
  n //= mesh.size(latent) if latent else 1
  width = max(W_enc.shape[1], W_dec.shape[1])
  return tpu.blocks(rows, n, width, estimator, dtype)


def _axes(rows: int, n: int) -> tuple[str | None, str | None]:
  return mesh.axis_or_none(mesh.DATA, rows), mesh.axis_or_none(mesh.LATENT, n)


def _times(x, W, dtype: str):
  """x W with operands of a dtype, summed in float32."""
  return jnp.matmul(
    x.astype(dtype), W.astype(dtype), preferred_element_type=jnp.float32
  )


@partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7))
def _autoencode(x, W_enc, b_enc, theta, W_dec, estimator, dtype, sizes):
  del estimator
  args = x, W_enc, b_enc, theta, W_dec
  return _forward(*args, dtype, sizes)[0]


def _forward(x, W_enc, b_enc, theta, W_dec, dtype, sizes):
  data, latent = _axes(x.shape[0], W_enc.shape[0])

  def kernel(x, W, b, theta, interpret=False):
    def body(*shard):
      a, z, l0 = tpu.forward(*shard, sizes=sizes, interpret=interpret)
      return a, z, mesh.psum(l0, latent)

    specs = (P(data), P(latent), P(latent), P(latent))
    entries = P(data, latent)
    return _shards(body, specs, (entries, entries, P(data)))(x, W, b, theta)

  a, z, l0 = dispatch.run(
    x.astype(dtype),
    W_enc.astype(dtype),
    b_enc,
    theta,
    xla=xla.forward,
    tpu=kernel,
  )
  out = _times(z, W_dec, dtype), a, jnp.where(a > theta, a, 0), l0
  return out, (x, W_enc, theta, W_dec, a, z)


def _autoencode_forward(x, W_enc, b_enc, theta, W_dec, estimator, dtype, sizes):
  del estimator
  args = [arg.value for arg in (x, W_enc, b_enc, theta, W_dec)]
  return _forward(*args, dtype, sizes)


def _autoencode_backward(estimator, dtype, sizes, saved, cotangents):
  x, W_enc, theta, W_dec, a, z = saved
  g, g_a, g_z, g_l0 = cotangents
  zeros = lambda c: isinstance(c, SymbolicZero)
  g, g_l0 = (jnp.zeros(c.shape, c.dtype) if zeros(c) else c for c in (g, g_l0))
  d_a, d_theta, d_b = _slopes(g, W_dec, a, g_l0, theta, estimator, dtype, sizes)
  # Losses of a or z itself; the gradients are linear in the cotangents.
  more = [] if zeros(g_a) else [g_a]
  if not zeros(g_z):
    each, moved = xla.slopes(a, g_z, 0.0, theta, estimator)
    d_theta += jnp.sum(moved, axis=0)
    more.append(each)
  if more:
    d_a = d_a.astype(jnp.float32) + sum(more)
    d_b += jnp.sum(sum(more), axis=0)
  product = lambda x, W: _times(x, W.T, dtype)
  d_x, d_W_enc = jax.vjp(product, x, W_enc)[1](d_a.astype(jnp.float32))
  (d_W_dec,) = jax.vjp(lambda W: _times(z, W, dtype), W_dec)[1](g)
  return d_x, d_W_enc, d_b, d_theta, d_W_dec


_autoencode.defvjp(
  _autoencode_forward, _autoencode_backward, symbolic_zeros=True
)


def _slopes(g, W_dec, a, g_l0, theta, estimator, dtype, sizes):
  """The backward half in the form that the setting chooses."""
  data, latent = _axes(*a.shape)

  def kernel(g, W, a, g_l0, theta, interpret=False):
    def body(*shard):
      how = {"estimator": estimator, "sizes": sizes, "interpret": interpret}
      d_a, *sums = tpu.backward(*shard, **how)
      return d_a, *(mesh.psum(each, data) for each in sums)

    entries = P(data, latent)
    specs = (P(data), P(latent), entries, P(data), P(latent))
    return _shards(body, specs, (entries, P(latent), P(latent)))(
      g, W, a, g_l0, theta
    )

  return dispatch.run(
    g.astype(dtype),
    W_dec.astype(dtype),
    a,
    g_l0,
    theta,
    xla=partial(xla.backward, estimator=estimator),
    tpu=kernel,
  )


def _shards(body, in_specs, out_specs):
  """`body` on each shard of the mesh, if rows or latents are split."""
  if all(axis is None for spec in in_specs for axis in spec):
    return body
  return mesh.per_shard(body, in_specs, out_specs)
