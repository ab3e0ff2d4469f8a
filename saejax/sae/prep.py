"""What is done to an activation before the encoder, and undone after decoding.

A prep belongs to the SAE that was trained behind it and is stored with it: an
SAE applied without its prep is wrong in silence. Losses live in the prep's
frame. Its arrays are frozen: no gradient reaches them.

    x' , memo = prep.apply(x, cond);   x = prep.undo(x', memo)

`memo` holds what undoing needs of each row (None for linear preps); `cond` is
the condition of each row, for the preps that have one.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from saejax.sae.part import Part

STD_EPS = 1e-5  # added to a row's standard deviation


class Prep(Protocol):
  """The interface of a prep; see the module docstring."""

  def apply(
    self, x: Float[Array, "*b d"], cond: Array | None = None
  ) -> tuple[Array, Any]: ...

  def undo(self, x: Float[Array, "*b d"], memo: Any = None) -> Array: ...


class Identity(Part):
  """x' = x in float32."""

  def apply(
    self, x: Float[Array, "*b d"], cond: Array | None = None
  ) -> tuple[Array, None]:
    return x.astype(jnp.float32), None

  def undo(self, x: Float[Array, "*b d"], memo: None = None) -> Array:
    return x


class Affine(Part):
  """x' = (x - centre) / scale, foldable into the SAE's weights.

  Attributes:
    centre: subtracted, in the units of x.
    scale: divided by, one number, in the units of x.
  """

  centre: Float[Array, "d"]
  scale: Float[Array, ""]

  def apply(
    self, x: Float[Array, "*b d"], cond: Array | None = None
  ) -> tuple[Array, None]:
    centre, scale = jax.lax.stop_gradient((self.centre, self.scale))
    return (x.astype(jnp.float32) - centre) / scale, None

  def undo(self, x: Float[Array, "*b d"], memo: None = None) -> Array:
    centre, scale = jax.lax.stop_gradient((self.centre, self.scale))
    return x * scale + centre


class RowLayerNorm(Part):
  """x' = (x - mean) / (std + 1e-5), each row by its own mean and deviation.

  The deviation is the unbiased one (divisor d - 1), as in the code of OpenAI's
  released SAEs. Undoing needs the row's (mean, std).
  """

  def apply(
    self, x: Float[Array, "*b d"], cond: Array | None = None
  ) -> tuple[Array, tuple[Array, Array]]:
    x = x.astype(jnp.float32)
    mean = jnp.mean(x, axis=-1, keepdims=True)
    std = jnp.std(x, axis=-1, keepdims=True, ddof=1)
    return (x - mean) / (std + STD_EPS), (mean, std)

  def undo(
    self,
    x: Float[Array, "*b d"],
    memo: tuple[Array, Array] | None = None,
  ) -> Array:
    if memo is None:
      raise ValueError(
        "a row layer norm cannot be undone without the rows' mean and std; "
        "use reconstruct(x), or decode_in_frame for normalised rows"
      )
    mean, std = memo
    return x * (std + STD_EPS) + mean


KINDS = ("none", "centre_scale", "scale", "scale_sqrt_d", "row_layer_norm")


def from_stats(kind: str, stats: Mapping[str, Any]) -> Prep:
  """The prep of that kind, its numbers taken from a store's statistics.

  Args:
    kind: "none"; "centre_scale", after which rows have mean 0 and mean square
      norm 1; "scale", mean square norm 1 and no centring; "scale_sqrt_d", mean
      square norm d (SAELens and Llama Scope bring the mean norm to sqrt(d));
      or "row_layer_norm".
    stats: "mean" [d], and "mean_square", the mean of |x|^2 over rows.

  Raises:
    ValueError: unknown kind, or rows that do not vary.
  """
  if kind == "none":
    return Identity()
  if kind == "row_layer_norm":
    return RowLayerNorm()
  if kind not in KINDS:
    raise ValueError(f"prep must be one of {', '.join(KINDS)}, got {kind!r}")
  mean = np.asarray(stats["mean"], np.float64)
  if kind != "centre_scale":
    mean = np.zeros_like(mean)
  spread = float(stats["mean_square"]) - float(np.sum(mean**2))
  if not spread > 0:
    raise ValueError(f"rows do not vary: mean square minus |mean|^2 = {spread}")
  if kind == "scale_sqrt_d":
    spread /= len(mean)
  return Affine(
    centre=jnp.asarray(mean, jnp.float32),
    scale=jnp.asarray(np.sqrt(spread), jnp.float32),
  )
