"""Lower bounds on a dictionary's coherence from the norms of its latents.

Let f be the h products of latents and norms of their decoder rows, with |b_dec|
appended, and eps the largest |cosine| between two of these directions. Since
|x_hat|^2 = sum_i f_i^2 + sum_{i != j} f_i f_j cos_ij,

    | |x_hat|^2 - |f|^2 | <= eps (h - 1) |f|^2

so that a comparison of |f| and |x| bounds the error of x_hat without decoding.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from saejax.sae.context import Batch
from saejax.sae.sae import SAE


class ZF(NamedTuple):
  """Points of a ZF plot.

  Attributes:
    x: |x| of each row, in the frame of the SAE's prep.
    f: |f| of each row.
    least: lower bound of eps if x were reconstructed exactly,
      | |x|^2 - |f|^2 | / ((h - 1) |f|^2).
  """

  x: Float[Array, "*b"]
  f: Float[Array, "*b"]
  least: Float[Array, "*b"]


def zf(
  sae: SAE, x: Float[Array, "*b d"] | Batch, *, active: bool = False
) -> ZF:
  """Computes norms of rows and of their latents, and the implied bound of eps.

  Args:
    sae: the SAE.
    x: rows.
    active: whether h is the number of non-zero entries of a row instead of n + 1,
      which gives a sharper bound with the same proof.

  References:
    Lee et al., Evaluating and Designing Sparse Autoencoders by Approximating
    Quasi-Orthogonality, 2025.
  """
  out = sae.forward(x)
  z, norms = out.latents.dense(), out.ctx.norms
  squares = jnp.sum(jnp.square(z * norms), axis=-1) + jnp.sum(sae.b_dec**2)
  target = jnp.sum(jnp.square(out.target), axis=-1)
  others = jnp.asarray(sae.n, jnp.float32)
  if active:
    bias = jnp.any(sae.b_dec != 0).astype(jnp.float32)
    others = jnp.maximum(out.latents.count() + bias - 1, 0)
  divisor = jnp.maximum(others * squares, 1e-12)
  return ZF(
    x=jnp.sqrt(target),
    f=jnp.sqrt(squares),
    least=jnp.abs(target - squares) / divisor,
  )


def coherence(directions: Float[Array, "m d"]) -> Float[Array, ""]:
  """Computes the largest |cosine| between two rows; rows of norm 0 are ignored.

  Args:
    directions: rows.
  """
  norms = jnp.linalg.norm(directions, axis=-1, keepdims=True)
  unit = directions / jnp.where(norms > 0, norms, 1)
  cosines = jnp.abs(unit @ unit.T)
  return jnp.max(cosines * (1 - jnp.eye(len(directions))))
