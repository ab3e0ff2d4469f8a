"""Preps: invertible transforms of activations around encoder and decoder.

A prep is stored with the SAE that was trained on its output: without it the SAE
would silently give wrong results. Its arrays are frozen: no gradient reaches
them.

    x', statistics = prep.apply(x, cond);   x = prep.undo(x', statistics)

x' is called prepared, or in the frame of the prep, that is in its coordinates
and units; latents, losses and W_dec are in that frame, x and reconstructions in
the units of the model. `statistics` holds the numbers per row that `undo`
needs, such as its mean (None for linear preps); `cond` is the condition of each
row, for preps that depend on one.
"""

from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from saejax.sae.context import Batch
from saejax.sae.part import Part

STD_EPS = 1e-5  # added to a row's standard deviation


class Prep(Part):
  """Base class of preps; a subclass defines at least `apply` and `undo`."""

  def apply(
    self, x: Float[Array, "*b d"], cond: Array | None = None
  ) -> tuple[Array, Any]:
    """Returns prepared rows, and the statistics of rows that `undo` needs.

    Args:
      x: rows in the units of the model.
      cond: condition of each row, for preps that depend on it.
    """
    raise NotImplementedError(f"{type(self).__name__} has no apply")

  def undo(self, x: Float[Array, "*b d"], statistics: Any = None) -> Array:
    """Converts prepared rows back to the units of the model.

    Args:
      x: rows in the frame of the prep.
      statistics: the statistics returned by `apply`.
    """
    raise NotImplementedError(f"{type(self).__name__} has no undo")

  def affine(self) -> tuple[Array | float, Array | float]:
    """Centre and scale of a prep x' = (x - centre) / scale.

    Raises:
      NotImplementedError: the prep depends on the row.
    """
    raise NotImplementedError(
      f"{type(self).__name__} depends on each row: it has no centre and scale "
      "for all rows, and cannot be folded into weights"
    )

  def apply_target(self, batch: Batch) -> tuple[Array, Any]:
    """Prepares a transcoder's target; the statistics are those of `apply`.

    Args:
      batch: rows with their target.
    """
    return self.apply(batch.target, batch.cond)

  def without_target(self, batch: Batch) -> Any:
    """The statistics of a target as far as the rows x give them.

    Args:
      batch: rows without a target.
    """
    del batch
    return None

  def split(self) -> tuple[tuple[Any, ...], "Prep"]:
    """Splits into SAEs whose residual is taken first, and the prep after."""
    return (), self


class Identity(Prep):
  """x' = x in float32."""

  def apply(
    self, x: Float[Array, "*b d"], cond: Array | None = None
  ) -> tuple[Array, None]:
    return x.astype(jnp.float32), None

  def undo(self, x: Float[Array, "*b d"], statistics: None = None) -> Array:
    return x

  def affine(self) -> tuple[float, float]:
    return 0.0, 1.0


class Affine(Prep):
  """x' = (x - centre) / scale, foldable into the SAE's weights.

  Attributes:
    centre: subtracted, in the units of x.
    scale: scalar divisor, in the units of x.
  """

  centre: Float[Array, "d"]
  scale: Float[Array, ""]

  def apply(
    self, x: Float[Array, "*b d"], cond: Array | None = None
  ) -> tuple[Array, None]:
    centre, scale = jax.lax.stop_gradient((self.centre, self.scale))
    return (x.astype(jnp.float32) - centre) / scale, None

  def undo(self, x: Float[Array, "*b d"], statistics: None = None) -> Array:
    centre, scale = jax.lax.stop_gradient((self.centre, self.scale))
    return x * scale + centre

  def affine(self) -> tuple[Array, Array]:
    return self.centre, self.scale


class RowLayerNorm(Prep):
  """x' = (x - mean) / (std + 1e-5), with each row's own mean and deviation.

  The deviation is the unbiased one (divisor d - 1), as in the code of OpenAI's
  released SAEs. Undoing needs the row's (mean, std).

  Attributes:
    undo_eps: added to the deviation when it is undone; 0 in OpenAI's and
      SAELens' code, which so are not exactly inverse.
  """

  undo_eps: float = flax.struct.field(pytree_node=False, default=STD_EPS)

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
    statistics: tuple[Array, Array] | None = None,
  ) -> Array:
    if statistics is None:
      raise ValueError(
        "a row layer norm cannot be undone without the rows' mean and std; "
        "use reconstruct(x), or decode_in_frame for normalised rows"
      )
    mean, std = statistics
    return x * (std + self.undo_eps) + mean


class RowNorm(Prep):
  """x' = x sqrt(d) / |x|, with each row's own norm, which undoing needs."""

  def apply(
    self, x: Float[Array, "*b d"], cond: Array | None = None
  ) -> tuple[Array, Array]:
    x = x.astype(jnp.float32)
    factor = x.shape[-1] ** 0.5 / jnp.linalg.norm(x, axis=-1, keepdims=True)
    return x * factor, factor

  def undo(
    self, x: Float[Array, "*b d"], statistics: Array | None = None
  ) -> Array:
    if statistics is None:
      raise ValueError(
        "a row norm cannot be undone without the rows' norms; use "
        "reconstruct(x), or decode_in_frame for normalised rows"
      )
    return x / statistics


class Skip(Prep):
  """A skip transcoder's target prep: target' = target - x W^T.

  The latents reconstruct what the linear map leaves of the target.

  Attributes:
    W: the map of raw rows x, frozen.
  """

  W: Float[Array, "d_out d"]

  def apply_target(self, batch: Batch) -> tuple[Array, Array]:
    mapped = self.without_target(batch)
    assert batch.target is not None  # `SAE.forward` refuses
    return batch.target.astype(jnp.float32) - mapped, mapped

  def without_target(self, batch: Batch) -> Array:
    W = jax.lax.stop_gradient(self.W)
    return batch.x.astype(jnp.float32) @ W.T

  def undo(
    self, x: Float[Array, "*b d"], statistics: Array | None = None
  ) -> Array:
    if statistics is None:
      raise ValueError(
        "a skip connection needs the rows x; use reconstruct(x), or "
        "decode_in_frame for the latents' part alone"
      )
    return x + statistics


KINDS = ("none", "centre_scale", "scale", "scale_sqrt_d", "row_layer_norm")


def from_stats(kind: str, stats: Mapping[str, Any]) -> Prep:
  """Builds a prep of some kind from the statistics of a store.

  Args:
    kind: "none"; "centre_scale", after which rows have mean 0 and mean square
      norm 1; "scale", mean square norm 1 and no centring; "scale_sqrt_d", mean
      square norm d (SAELens and Llama Scope bring the mean norm to sqrt(d));
      or "row_layer_norm".
    stats: "mean" [d], and "mean_square", the mean of |x|^2 over rows.

  Raises:
    ValueError: the kind is unknown, or the rows do not vary.
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
