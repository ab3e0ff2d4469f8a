"""Sparsity penalties on the number of active latents, beside those of `losses`.

All but `gate_path` are sums over latents. Row terms return [*b] and are
averaged over rows by the recipe; batch terms say so.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from saejax.errors import InputError
from saejax.training.parts import losses
from saejax.training.recipe import Record, mean

Penalty = Callable[[Record], Array]


def l0(record: Record) -> Float[Array, "*b"]:
  """sum_i H(a_i - theta_i) of each row, with a gradient in theta alone.

  For activations with `l0`, such as `sae.jumprelu.JumpReLU`.

  Args:
    record: the record of the batch.

  References:
    Rajamanoharan et al., Jumping Ahead, 2024, arXiv:2407.14435.
  """
  activation: Any = record.sae.activation
  return activation.l0(*_encoded(record))


def l0_target(target: float, scope: str = "batch") -> Penalty:
  """(L0 / target - 1)^2, with L0 as `l0` counts it.

  A member's own k takes the place of the target, so that one program serves
  several.

  Args:
    target: active latents per row.
    scope: "batch" compares the mean over the rows of the global batch and
      returns a scalar, as dictionary_learning does: its gradient changes sign at
      the target. "row" compares every row and returns [*b], which also
      penalises the variance between rows, so that the mean settles elsewhere;
      SAELens' term, (2 / target) (L0 - target)^2, is 2 target times this one.

  Raises:
    InputError: the target is not positive, or the scope is unknown.

  References:
    Rajamanoharan et al., Jumping Ahead, 2024, arXiv:2407.14435, appendix.
  """
  if target <= 0:
    raise InputError("target", target, "must be above 0", "such as 32")
  if scope not in ("batch", "row"):
    raise InputError("scope", scope, "must be batch or row", "such as batch")

  def penalty(record: Record) -> Array:
    ctx = record.forward.ctx
    wanted = jnp.asarray(target if ctx.k is None else ctx.k, jnp.float32)
    count = l0(record)
    if scope == "batch":
      count = mean(count, record.batch.weight)
    return jnp.square(count / wanted - 1)

  return penalty


def tanh(c: float = 4.0) -> Penalty:
  """sum_i tanh(c |z_i| |w_i|) of each row, w_i the decoder's row.

  Between L0 and L1; its gradient reaches every weight. Under JumpReLU the
  gradient in theta is an estimate: exact for c theta |w| far below 1, up to
  twice too large at 4.

  Args:
    c: factor in the tanh.

  References:
    Anthropic, Circuits Updates, January 2025, Transformer Circuits.
  """
  return lambda record: jnp.sum(jnp.tanh(c * _sizes(record)), axis=-1)


def tanh_quadratic(c: float = 4.0, rate: float = 0.01) -> Penalty:
  """sum_i f_i (1 + f_i / rate), f_i = mean_B tanh(c |z_i| |w_i|): a scalar.

  Penalises latents that are active on more than a fraction `rate` of the rows.
  The form is that of OpenMOSS' Language-Model-SAEs.

  Args:
    c: factor in the tanh.
    rate: share of rows above which latents are penalised.
  """

  def penalty(record: Record) -> Float[Array, ""]:
    on = jnp.tanh(c * _sizes(record))
    weight = record.batch.weight
    weight = jnp.ones(on.shape[:-1]) if weight is None else weight
    total = jnp.maximum(jnp.sum(weight), 1e-12)
    f = jnp.tensordot(weight, on, axes=weight.ndim) / total
    return jnp.sum(f * (1 + f / rate))

  return penalty


def power(p: float) -> Penalty:
  """sum_i (|z_i| |w_i|)^p of each row over its active latents.

  Args:
    p: exponent.

  Raises:
    InputError: p is not positive.
  """
  if p <= 0:
    raise InputError("p", p, "must be above 0", "such as 0.5")

  def penalty(record: Record) -> Float[Array, "*b"]:
    size = _sizes(record)
    on = size > 0
    # A second where: a power below 1 has an infinite gradient at 0, and 0 times
    # infinity would be NaN.
    powers = jnp.where(on, size, 1.0) ** p
    return jnp.sum(jnp.where(on, powers, 0.0), axis=-1)

  return penalty


def below_threshold(record: Record) -> Float[Array, "*b"]:
  """sum_i max(theta_i - a_i, 0) |w_i| of each row: revives inactive latents.

  The pre-activation loss that accompanies `tanh`. SAELens sums over dead
  latents only; this sums over all, as in the source.

  Args:
    record: the record of the batch.

  References:
    Anthropic, Circuits Updates, January 2025, Transformer Circuits.
  """
  activation: Any = record.sae.activation
  pre, ctx = _encoded(record)
  missing = jax.nn.relu(activation.theta - pre.a)
  return jnp.sum(missing * ctx.norms, axis=-1)


def gate_l1(record: Record) -> Float[Array, "*b"]:
  """sum_i max(gate_i, 0) of each row, for gated encoders.

  Args:
    record: the record of the batch.

  References:
    Rajamanoharan et al., Gated Sparse Autoencoders, 2024, arXiv:2404.16014.
  """
  return jnp.sum(_gate(record), axis=-1)


def gate_path(record: Record) -> Float[Array, "*b"]:
  """|y - (max(gate, 0) W_dec + b_dec)|^2 of each row, with a fixed decoder.

  It trains the gate to select the latents that a row needs. No gradient reaches
  W_dec, and b_dec only through the pre-bias.

  Args:
    record: the record of the batch.

  References:
    Rajamanoharan et al., Gated Sparse Autoencoders, 2024, arXiv:2404.16014.
  """
  fixed = jax.lax.stop_gradient(record.sae)
  x_hat = fixed.decode_in_frame(_gate(record))
  return losses.squares(record.forward.target - x_hat)


def _gate(record: Record) -> Float[Array, "*b n"]:
  return jax.nn.relu(_encoded(record)[0].gate)


def _encoded(record: Record):
  """Pre-activations and the context of the pass."""
  if record.forward.pre is None:
    raise ValueError("this penalty reads all pre-activations: dense engine")
  return record.forward.pre, record.forward.ctx


def _sizes(record: Record) -> Float[Array, "*b n"]:
  """|z_i| |w_i|: the norm of each latent's contribution."""
  return jnp.abs(record.forward.latents.dense()) * record.forward.ctx.norms
