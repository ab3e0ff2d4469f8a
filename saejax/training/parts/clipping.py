"""Clipping: what the norm of all gradients of an SAE does to their scale."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from saejax.errors import InputError

TINY = 1e-30  # least norm divided by: gradients of zero stay zero
Norm = float | Literal["unit"] | None


@dataclasses.dataclass(frozen=True)
class Clip:
  """No clipping: g as it is. Base of the others."""

  def scale(self, norm: Float[Array, ""]) -> Array:
    """Factor of all gradients.

    Args:
      norm: global norm of the gradients.
    """
    return jnp.ones_like(norm)

  def metrics(self, norm: Float[Array, ""]) -> Mapping[str, Array]:
    """Metrics of a step, none but of a limit that may never act.

    Args:
      norm: global norm of the gradients.
    """
    del norm
    return {}


@dataclasses.dataclass(frozen=True)
class Unit(Clip):
  """g / |g|: every step weighs alike, however large the loss and its gradient.

  Adam forgets a gradient only after 1 / (1 - b2) steps. Gradients are largest
  at the start, so that without this the first steps keep all later ones small,
  in short runs to the end. A limit far below all norms does the same, as 1.0 in
  libraries that sum squared errors over d.
  """

  def scale(self, norm: Float[Array, ""]) -> Array:
    return 1 / jnp.maximum(norm, TINY)


@dataclasses.dataclass(frozen=True)
class Limit(Clip):
  """g min(1, c / |g|), a limit in the units of the method's own loss.

  Attributes:
    norm: c, largest global norm.
  """

  norm: float

  def scale(self, norm: Float[Array, ""]) -> Array:
    return jnp.minimum(1.0, self.norm / jnp.maximum(norm, TINY))

  def metrics(self, norm: Float[Array, ""]) -> Mapping[str, Array]:
    """clipped: 1 where the gradients were scaled down, else 0."""
    return {"clipped": (norm > self.norm).astype(jnp.float32)}


def by_norm(norm: Norm) -> Clip:
  """The clip that an option names.

  Args:
    norm: "unit", a limit, or None for no clipping.

  Raises:
    InputError: it is neither, or the limit is not above 0.
  """
  if norm is None:
    return Clip()
  if norm == "unit":
    return Unit()
  if isinstance(norm, str) or not norm > 0:
    raise InputError(
      "clip_norm", norm, "must be above 0, or unit", "None for no clipping"
    )
  return Limit(norm)
