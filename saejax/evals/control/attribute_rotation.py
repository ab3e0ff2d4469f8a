"""Disentanglement with learnt directions: a ceiling for masks of latents (MDAS).

As `attribute_mask`, with a rotation R in place of the SAE,

  x' = ((1 - m) x_base R + m x_source R) R^T,   R^T R = 1

learnt together with the mask, and made orthonormal by QR after each step. The
temperature falls to 1e-2.

References:
  Huang et al., RAVEL, 2024, arXiv:2402.17700.
  Karvonen et al., SAEBench, 2025, arXiv:2503.09532.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from saejax.evals.control import attribute_mask, attribute_pairs

END = 1e-2  # of the temperature


class Rotation(flax.struct.PyTreeNode):
  """An orthonormal basis, whose coordinates are the latents.

  Attributes:
    R: its vectors, as columns.
  """

  R: Float[Array, "d d"]

  def encode(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """Returns coordinates.

    Args:
      x: activations.
    """
    return x @ self.R

  def decode(self, z: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """Returns activations.

    Args:
      z: coordinates.
    """
    return z @ self.R.T


def orthonormal(R: Float[Array, "d d"]) -> Float[Array, "d d"]:
  """Returns the Q of R by QR, with the signs that leave an orthonormal R as it is.

  Args:
    R: a matrix.
  """
  Q, triangle = jnp.linalg.qr(R)
  return Q * jnp.where(jnp.diag(triangle) < 0, -1.0, 1.0)[None]


def learn(
  answer: attribute_mask.Answer,
  x: Float[Array, "R d"],
  pairs: attribute_pairs.Pairs,
  *,
  context: Any = None,
  epochs: int = 10,
  batch: int = 32,
  rate: float = 1e-3,
  seed: int = 0,
) -> tuple[Rotation, attribute_mask.Learnt]:
  """Learns a rotation and a mask of its coordinates on pairs.

  Args:
    answer, x, pairs, context, epochs, batch, rate: as for `attribute_mask.learn`.
    seed: seed of the order of pairs and of the rotation at the start.

  Returns:
    (the rotation, for `attribute_mask.evaluate` in place of an SAE; the mask).

  Raises:
    InputError: there are fewer pairs than a batch has.
  """
  x = jnp.asarray(x)
  d = x.shape[-1]

  def loss_of(p, base, source, wanted, T):
    a, R = p
    m = jax.nn.sigmoid(a / T)
    new = attribute_mask.exchanged(Rotation(R), x[base], x[source], m)
    return attribute_mask.cross_entropy(answer, new, context, base, wanted)

  drawn = jax.random.normal(jax.random.key(seed), (d, d))
  (a, R), losses = attribute_mask.descend(
    loss_of,
    (jnp.zeros(d), orthonormal(drawn)),
    attribute_mask.schedule(
      pairs, batch=batch, epochs=epochs, end=END, seed=seed
    ),
    rate=rate,
    project=lambda p: (p[0], orthonormal(p[1])),
  )
  learnt = attribute_mask.Learnt(np.asarray(a), np.asarray(losses))
  return Rotation(R), learnt
