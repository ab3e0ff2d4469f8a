"""Mean and variance of rows, merged from the parts of a batch."""

from typing import Any

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Float

EPS = 1e-12


class Moments(flax.struct.PyTreeNode):
  """Weight, mean and squared deviation of some rows.

  Attributes:
    weight: sum of the rows' weights.
    mean: weighted mean of the rows [d].
    squares: weighted sum over rows of |x - mean|^2.
  """

  weight: Float[Array, ""]
  mean: Float[Array, "d"]
  squares: Float[Array, ""]

  @property
  def variance(self) -> Float[Array, ""]:
    """Weighted mean of |x - mean|^2; 0 within its rounding error.

    See `losses.variance`, which it equals.
    """
    spread = self.squares / jnp.maximum(self.weight, EPS)
    size = spread + jnp.sum(jnp.square(self.mean))
    return jnp.where(spread > EPS * size, spread, 0.0)

  def merged(self, other: "Moments") -> "Moments":
    """The moments of both sets of rows; zeros stand for no rows.

    Args:
      other: moments of the other rows.

    References:
      Chan, Golub and LeVeque, Updating formulae and a pairwise algorithm for
      computing sample variances, 1979.
    """
    weight = self.weight + other.weight
    part = other.weight / jnp.maximum(weight, EPS)
    apart = other.mean - self.mean
    between = self.weight * part * jnp.sum(jnp.square(apart))
    return Moments(
      weight=weight,
      mean=self.mean + part * apart,
      squares=self.squares + other.squares + between,
    )


def measured(
  x: Float[Array, "*b d"], weight: Float[Array, "*b"] | None = None
) -> Moments:
  """The moments of rows.

  Args:
    x: rows.
    weight: weight of each row, or None for 1.
  """
  rows = x.reshape(-1, x.shape[-1])
  each: Any = jnp.ones(rows.shape[:1]) if weight is None else weight.reshape(-1)
  total = jnp.sum(each)
  mean = jnp.sum(each[:, None] * rows, axis=0) / jnp.maximum(total, EPS)
  apart = jnp.sum(jnp.square(rows - mean), axis=-1)
  return Moments(weight=total, mean=mean, squares=jnp.sum(each * apart))


class Whole(flax.struct.PyTreeNode):
  """Moments over a whole batch, of which a pass sees a part.

  Attributes:
    target: of the reconstruction targets, in the prep's frame.
    residual: of y - x_hat; None where no term of the pass reads them.
  """

  target: Moments
  residual: Moments | None = None

  def merged(self, other: "Whole") -> "Whole":
    """The moments of both parts.

    Args:
      other: moments of the other part.
    """
    residual = self.residual
    if residual is not None and other.residual is not None:
      residual = residual.merged(other.residual)
    return Whole(target=self.target.merged(other.target), residual=residual)
