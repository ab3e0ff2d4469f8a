"""Lower bounds on a dictionary's coherence from the norms of its latents.

With f the latents times the norms of their rows and |b_dec| appended, h entries
in all, and eps the largest |cosine| between two of those directions,

    | |x_hat|^2 - |f|^2 | <= eps (h - 1) |f|^2

from |x_hat|^2 = sum_i f_i^2 + sum_{i != j} f_i f_j cos_ij. So |f| next to |x|
shows an SAE whose reconstruction cannot be right, before it is decoded.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from saejax.sae.context import Batch
from saejax.sae.sae import SAE


class ZF(NamedTuple):
  """The points of a ZF plot.

  Attributes:
    x: |x| of each row, in the frame of the SAE's prep [*b].
    f: |f| [*b].
    least: eps that the dictionary has at least, were x reconstructed exactly:
      | |x|^2 - |f|^2 | / ((h - 1) |f|^2) [*b].
  """

  x: Float[Array, "*b"]
  f: Float[Array, "*b"]
  least: Float[Array, "*b"]


def zf(
  sae: SAE, x: Float[Array, "*b d"] | Batch, *, active: bool = False
) -> ZF:
  """Norms of rows and of their latents, and the eps these imply.

  Args:
    sae: whose latents.
    x: rows.
    active: h counts the entries of a row that are not 0, a sharper bound by the
      same proof, instead of all n + 1.

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
  """The largest |cosine| between two rows; rows of 0 have none."""
  norms = jnp.linalg.norm(directions, axis=-1, keepdims=True)
  unit = directions / jnp.where(norms > 0, norms, 1)
  cosines = jnp.abs(unit @ unit.T)
  return jnp.max(cosines * (1 - jnp.eye(len(directions))))
