"""Activations of published SAEs, as a `Record` holds them.

Each kind knows its form in saejax, and itself after pre-activations were
multiplied by a positive factor per latent:

    Relu        z = max(a, 0)
    Threshold   z = max(a, 0) where a > theta (or >=: `strict`)
    Gate        z = max(a, 0) where p + b_gate > 0,  a = exp(r_mag) p + b_enc
    TopK        the k highest a, |a| or a |w| of a row; then max(a, 0), or a
    GroupMax    max(a, 0) of the highest a in each of k groups of n / k latents
    Pursuit     matching pursuit: one latent at a time, of what is left of x
"""

import dataclasses
from typing import Any, NoReturn, Protocol

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from saejax.errors import InputError
from saejax.sae import activations, encoders, gated, pursuit


class Kind(Protocol):
  """An activation of a record."""

  def parts(
    self, W: Float[np.ndarray, "n d"], b: Float[np.ndarray, "n"]
  ) -> tuple[encoders.Encoder, activations.Activation]:
    """Returns the encoder and the activation in saejax.

    Args:
      W: encoder rows.
      b: encoder biases.
    """
    ...

  def scaled(self, a: Float[np.ndarray, "n"]) -> "Kind":
    """Returns the activation of pre-activations times a factor per latent.

    Args:
      a: positive factors, float64.

    Raises:
      InputError: other latents would be active.
    """
    ...


def _affine(W: np.ndarray, b: np.ndarray) -> encoders.Affine:
  return encoders.Affine(W=jnp.asarray(W), b=jnp.asarray(b))


@dataclasses.dataclass(frozen=True)
class Relu:
  """z = max(a, 0)."""

  def parts(self, W, b):
    return _affine(W, b), activations.ReLU()

  def scaled(self, a) -> "Relu":
    del a
    return self


@dataclasses.dataclass(frozen=True, eq=False)
class Threshold:
  """z = max(a, 0) where a > theta.

  Attributes:
    theta: thresholds [n], in the units of a.
    strict: whether a latent at its threshold is off.
    k: active latents per row in training, where that chose theta.
    groups: sizes of the groups of a Matryoshka SAE.
  """

  theta: Float[np.ndarray, "n"]
  strict: bool = True
  k: int | None = None
  groups: tuple[int, ...] = ()

  def parts(self, W, b):
    theta = jnp.asarray(self.strictly().theta)
    return _affine(W, b), activations.Threshold(theta)

  def scaled(self, a) -> "Threshold":
    return dataclasses.replace(self, theta=float32(self.theta * a))

  def strictly(self) -> "Threshold":
    """The strict form: a >= theta is a > the float32 before theta."""
    if self.strict:
      return self
    theta = np.nextafter(self.theta, np.float32(-np.inf))
    return dataclasses.replace(self, theta=theta, strict=True)


@dataclasses.dataclass(frozen=True, eq=False)
class Gate:
  """The gate of a gated SAE; b_mag is the record's b_enc.

  Attributes:
    b_gate: bias of the gate [n].
    r_mag: logarithm of the magnitude's scale [n].
  """

  b_gate: Float[np.ndarray, "n"]
  r_mag: Float[np.ndarray, "n"]

  def parts(self, W, b):
    encoder = gated.Gated(
      W=jnp.asarray(W),
      b_gate=jnp.asarray(self.b_gate),
      b_mag=jnp.asarray(b),
      r_mag=jnp.asarray(self.r_mag),
    )
    return encoder, gated.Gate()

  def scaled(self, a) -> "Gate":
    return dataclasses.replace(self, b_gate=float32(self.b_gate * a))


@dataclasses.dataclass(frozen=True)
class TopK:
  """The k latents of the highest rank in each row.

  Attributes:
    k: active latents per row.
    rank: what is ranked: "value" a, "magnitude" |a| or "norm" a |w|.
    signed: whether z = a instead of max(a, 0).
  """

  k: int
  rank: str = "value"
  signed: bool = False

  def parts(self, W, b):
    keep = "signed" if self.signed else "relu"
    return _affine(W, b), activations.TopK(self.k, self.rank, keep)

  def scaled(self, a) -> "TopK":
    if np.ptp(a) > 1e-6 * np.max(a):
      _refuse_scaling("TopK")
    return self


@dataclasses.dataclass(frozen=True)
class GroupMax:
  """The highest a of each of k contiguous groups, then max(a, 0)."""

  k: int

  def parts(self, W, b):
    return _affine(W, b), activations.BlockTopK(1, self.k)

  def scaled(self, a) -> "GroupMax":
    if np.ptp(a) > 1e-6 * np.max(a):
      _refuse_scaling("GroupMax")
    return self


@dataclasses.dataclass(frozen=True)
class Pursuit:
  """Matching pursuit with the decoder's rows; see `sae.pursuit`.

  Attributes:
    residual: stops a row where the norm of what is left is below it; 0: never.
    steps: most latents per row.
    stop_on_repeat: whether a row stops when a step adds no new latent.
  """

  residual: float
  steps: int
  stop_on_repeat: bool = True

  def parts(self, W, b):
    if np.any(b):
      _refuse_scaling("a matching pursuit with b_enc")
    activation = pursuit.Pursuit(self.residual, self.steps, self.stop_on_repeat)
    return encoders.tied(jnp.asarray(W)), activation

  def scaled(self, a) -> "Pursuit":
    if np.ptp(a) or a[0] != 1:
      _refuse_scaling("matching pursuit")
    return self


def _refuse_scaling(what: str) -> NoReturn:
  raise InputError(
    "fold",
    what,
    "would keep other latents once each pre-activation has a factor of its own",
    "choose a format that ranks as it does, such as saelens",
  )


def float32(values: Any) -> Float[np.ndarray, "..."]:
  return np.asarray(values, np.float32)
