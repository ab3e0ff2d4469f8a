"""JumpReLU and its step by plain autodiff, with estimated derivatives in theta.

    z = a H(a - theta)      H(t) = 1 where t > 0, else 0

Neither z nor H has a useful derivative in theta. The derivative of the expected
loss contains p(theta), the density of a at the threshold, which a kernel K of
unit mass and bandwidth eps estimates from the rows near it:

    dz/dtheta := -theta K(a - theta)      dz/da := H
    dH/dtheta := -K(a - theta)            dH/da := 0

The kernels are those of Kempner's overcomplete with their masses set to 1: its
Gaussian has mass 1/2, its Silverman kernel 2 and its cosine eps.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# Kernels map t = a - theta and the bandwidth eps to a density; h = eps/2 is the
# half width.
KERNELS: dict[str, Callable[[Array, float], Array]] = {
  "rectangle": lambda t, eps: _within(t, eps / 2, 1.0) / eps,
  "triangular": lambda t, eps: _bump(t, eps, lambda s: 1 - jnp.abs(s)),
  "epanechnikov": lambda t, eps: _bump(t, eps, lambda s: 0.75 * (1 - s**2)),
  "quartic": lambda t, eps: _bump(
    t, eps, lambda s: 15 / 16 * jnp.square(1 - s**2)
  ),
  "gaussian": lambda t, eps: (
    jax.scipy.stats.norm.pdf(t / (eps / 2)) / (eps / 2)
  ),
  "cosine": lambda t, eps: (
    _within(t, eps, 1 + jnp.cos(jnp.pi * t / eps)) / (2 * eps)
  ),
  "silverman": lambda t, eps: _silverman(jnp.abs(t) / (eps / 2)) / (eps / 2),
  "cauchy": lambda t, eps: (
    1 / (jnp.pi * (eps / 2) * (1 + jnp.square(t / (eps / 2))))
  ),
}


def _within(t, reach: float, value):
  """Returns value where |t| < reach, else 0."""
  return jnp.where(jnp.abs(t) < reach, value, 0.0)


def _bump(t, eps: float, shape: Callable[[Array], Array]):
  """shape(t / h) / h on |t| < h."""
  s = t / (eps / 2)
  return _within(s, 1.0, shape(s)) / (eps / 2)


def _silverman(s):
  """exp(-s / sqrt 2) sin(s / sqrt 2 + pi / 4) / 2 for s >= 0."""
  s = s / jnp.sqrt(jnp.float32(2))
  return jnp.exp(-s) * jnp.sin(s + jnp.pi / 4) / 2


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3, 4))
def jump(
  a: Float[Array, "*b n"],
  theta: Float[Array, "n"],
  eps: float,
  kernel: str = "rectangle",
  ste_to_input: bool = False,
) -> Float[Array, "*b n"]:
  """z = a where a > theta, else 0, with the estimated derivative in theta.

  Args:
    a: pre-activations.
    theta: thresholds.
    eps: bandwidth, in the units of a.
    kernel: name in `KERNELS`.
    ste_to_input: whether dz/da is H + theta K instead of H.
  """
  del eps, kernel, ste_to_input
  return jnp.where(a > theta, a, 0)


@jump.defjvp
def _jump_jvp(eps, kernel, ste_to_input, primals, tangents):
  (a, theta), (da, dtheta) = primals, tangents
  near = theta * KERNELS[kernel](a - theta, eps)
  dz = jnp.where(a > theta, da, 0) - near * dtheta
  return jump(a, theta, eps), dz + near * da if ste_to_input else dz


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3, 4))
def step(
  a: Float[Array, "*b n"],
  theta: Float[Array, "n"],
  eps: float,
  kernel: str = "rectangle",
  ste_to_input: bool = False,
) -> Float[Array, "*b n"]:
  """H(a - theta) with the estimated derivative in theta; see `jump`.

  With `ste_to_input` its derivative in a is K, otherwise 0.

  Args:
    a: pre-activations.
    theta: thresholds.
    eps: bandwidth of the kernel.
    kernel: name of the kernel.
    ste_to_input: whether the derivative in a is K instead of 0.
  """
  del eps, kernel, ste_to_input
  return (a > theta).astype(a.dtype)


@step.defjvp
def _step_jvp(eps, kernel, ste_to_input, primals, tangents):
  (a, theta), (da, dtheta) = primals, tangents
  moved = da - dtheta if ste_to_input else -dtheta
  return step(a, theta, eps), KERNELS[kernel](a - theta, eps) * moved


@dataclasses.dataclass(frozen=True)
class Estimator:
  """How derivatives in theta are estimated.

  Attributes:
    eps: bandwidth of the kernel, in the units of a.
    kernel: name in `KERNELS`.
    ste_to_input: whether the estimators reach a too; see `jump` and `step`.
  """

  eps: float
  kernel: str = "rectangle"
  ste_to_input: bool = False


def autoencode(x, W_enc, b_enc, theta, W_dec, estimator: Estimator):
  """x_hat = z W_dec, a = x W_enc^T + b_enc, z = jump(a), L0; x [b, d].

  See `op.autoencode` for the arguments.
  """
  how = dataclasses.astuple(estimator)
  a = jnp.matmul(x, W_enc.T, precision="highest") + b_enc
  z = jump(a, theta, *how)
  x_hat = jnp.matmul(z, W_dec, precision="highest")
  return x_hat, a, z, jnp.sum(step(a, theta, *how), axis=-1)
