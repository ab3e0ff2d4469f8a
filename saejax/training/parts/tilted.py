"""Tilted reduction of a row loss, which gives large losses more weight.

References:
  Li et al., Tilted Empirical Risk Minimization, 2020, arXiv:2007.01162.
  Muhamed et al., Decoding Dark Matter: Specialized Sparse Autoencoders for
  Interpreting Rare Concepts in Foundation Models, 2024, arXiv:2411.00743.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from saejax.errors import InputError
from saejax.training.recipe import mean

EPS = 1e-12
LARGEST = 1e30  # larger tilts equal the extreme, and 1 / t would underflow


@dataclasses.dataclass(frozen=True)
class Tilted:
  """R_t = (1/t) log sum_b p_b exp(t l_b), with p the normalised row weights.

  t = 0 gives the mean, t to infinity the maximum, t < 0 tends to the minimum.
  The gradient weights row b by softmax(t l + log p)_b. For |t| range(l) < 1 it
  is computed around the mean, otherwise around the extreme, so that it is
  accurate in float32 for tiny and for huge t.

  Attributes:
    t: tilt, per unit of the row loss.
    relative: whether t is per the batch's mean row loss instead: l / mean(l) is
      tilted and multiplied by the mean again, without gradient.

  Raises:
    InputError: t is not finite.
  """

  t: float
  relative: bool = False

  def __post_init__(self):
    if not math.isfinite(self.t):
      raise InputError("t", self.t, "must be finite", "such as 500")

  def __call__(
    self, values: Float[Array, "*b"], weight: Float[Array, "*b"] | None
  ) -> Float[Array, ""]:
    centre = mean(values, weight)
    if self.t == 0:
      return centre
    t = jnp.float32(self.t)
    if self.relative:
      t = t / jnp.maximum(jnp.abs(jax.lax.stop_gradient(centre)), EPS)
    t = jnp.clip(t, -LARGEST, LARGEST)
    if weight is None:
      weight = jnp.ones_like(values)
    counted = weight > 0
    share = weight / jnp.maximum(jnp.sum(weight), EPS)
    # Rows of weight 0 take the value of a weighted row: no 0 times infinity.
    values = jnp.where(counted, values, centre)
    low, high = jnp.min(values), jnp.max(values)
    gentle = jnp.abs(t) * (high - low) < 1

    # Both branches of a select get a gradient: their inputs must be in range.
    small = jnp.where(gentle, t, 1.0)
    offset = jnp.where(gentle, values - centre, 0.0)
    inner = jnp.sum(share * jnp.expm1(small * offset))
    about_mean = centre + jnp.log1p(inner) / small

    large = jnp.where(gentle, 1.0, t)
    extreme = jax.lax.stop_gradient(jnp.where(t > 0, high, low))
    sums = jnp.sum(share * jnp.exp(large * (values - extreme)))
    about_extreme = extreme + jnp.log(jnp.where(gentle, 1.0, sums)) / large
    return jnp.where(gentle, about_mean, about_extreme)
