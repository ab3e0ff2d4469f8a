"""The base of activations, and their inference form, thresholds.

What is ranked (the score) and what is kept (the value) are chosen apart, by
name; see `activations`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from saejax.sae.context import Context, Pre
from saejax.sae.latents import DenseLatents, Latents, SparseLatents
from saejax.sae.part import Part

SCORES: dict[str, Callable[[Pre, Context], Array]] = {
  "value": lambda pre, ctx: pre.a,
  "magnitude": lambda pre, ctx: jnp.abs(pre.a),
  "norm": lambda pre, ctx: pre.a * jax.lax.stop_gradient(ctx.norms),
}
KEEPS: dict[str, Callable[[Array], Array]] = {
  "relu": jax.nn.relu,
  "signed": lambda a: a,
}
SCOPES = ("row", "batch", "column")


class Activation(Part):
  """Base class of activations; a subclass defines at least `__call__`.

  A method that a subclass does not define raises a NotImplementedError that
  names the class.
  """

  @property
  def row_k(self) -> int | None:
    """Maximum number of latents kept per row; None where it is unbounded."""
    return None

  @property
  def mean_k(self) -> float | None:
    """Mean number of latents kept per row; None where nothing sets it."""
    return self.row_k

  @property
  def by_row(self) -> bool:
    """Whether the latents of a row depend on no other row of the batch."""
    return True

  @property
  def fused(self) -> bool:
    """Whether the sparse engine supports it, given an encoder that has one."""
    return False

  def pays_sparse(self, n: int) -> bool:
    """Whether training is faster in the sparse engine, where `fused`.

    Args:
      n: number of latents.
    """
    del n
    return True

  @property
  def by_magnitude(self) -> bool:
    """Whether pre-activations are ranked by |a|."""
    return False

  @property
  def by_norm(self) -> bool:
    """Whether the norms of decoder rows influence the selection."""
    return False

  @property
  def is_ordered(self) -> bool:
    """Whether sparse latents must come largest first."""
    return False

  def with_k(self, k: int) -> "Activation":
    """Returns a copy with another static k; itself where it has no k.

    Args:
      k: active latents per row.
    """
    del k
    return self

  def autoencoded(
    self, encoder, ctx: Context
  ) -> tuple[Pre, Float[Array, "*b n"], Float[Array, "*b d_out"]]:
    """Pre-activations of the context's rows, latents z, and z W_dec.

    Args:
      encoder: the encoder.
      ctx: context of the rows.
    """
    pre = encoder(ctx.x, ctx)
    z = self(pre, ctx)
    return pre, z, DenseLatents(z).decode(ctx.W_dec, ctx.dtype)

  def sparse(
    self, encoder, ctx: Context, n: int, *, ordered: bool
  ) -> tuple[Latents, Bool[Array, ""] | None]:
    """Latents without all pre-activations, where `fused`.

    Args:
      encoder: the encoder.
      ctx: context of the rows.
      n: number of latents.
      ordered: whether sparse latents must come largest first.

    Returns:
      The latents, and whether they are all there; None where they always are.
    """
    k = self.row_k
    if k is None:
      raise NotImplementedError(self._without("a sparse engine"))
    values, indices = encoder.largest(
      ctx.x, ctx, k, ordered=ordered, magnitude=self.by_magnitude
    )
    return SparseLatents(self.keep_largest(values, ctx), indices, n), None

  def __call__(self, pre: Pre, ctx: Context) -> Float[Array, "*b n"]:
    """Maps pre-activations to latents.

    Args:
      pre: pre-activations.
      ctx: context of the rows.
    """
    raise NotImplementedError

  def keep_largest(
    self, values: Float[Array, "*b k"], ctx: Context
  ) -> Float[Array, "*b k"]:
    """Values of a row's `row_k` largest pre-activations, where `fused`.

    Args:
      values: the largest pre-activations of each row.
      ctx: context of the rows.

    Raises:
      NotImplementedError: the activation has no sparse engine.
    """
    raise NotImplementedError(self._without("a sparse engine"))

  def threshold_form(self, encoder: Any) -> tuple[Any, "Activation"]:
    """The encoder and activation for inference, exactly.

    Learned thresholds and gates become plain thresholds; others stay.

    Args:
      encoder: the encoder.
    """
    return encoder, self

  def threshold(self, theta: Float[Array, "n"] | Float[Array, ""]):
    """The `Threshold` at theta with this activation's score and kept value.

    Args:
      theta: threshold, per latent or common to all.
    """
    return Threshold(theta)

  def unit_norms(self, norms: Float[Array, "n"]) -> "Activation":
    """The activation once decoder norms are folded into pre-activations.

    Args:
      norms: norms of the decoder's rows; pre-activations are multiplied by
        them, and the rows divided.

    Raises:
      NotImplementedError: the selection would change.
    """
    raise NotImplementedError(
      f"{type(self).__name__} would keep other latents once decoder norms are "
      "folded; rank by score 'norm', or convert to thresholds first"
    )

  def rescaled(self, scale: Float[Array, ""] | float) -> "Activation":
    """The activation once decoder rows are multiplied by a scale.

    Args:
      scale: factor of the decoder rows.

    Raises:
      NotImplementedError: the activation has no such form.
    """
    if self.by_norm:
      raise NotImplementedError(self._without("a form for scaled decoder rows"))
    return self

  def flattened(
    self, members: Sequence["Activation"], alphas: Sequence[float], n: int
  ) -> "Activation":
    """The activation of all members' latents, concatenated member by member.

    Args:
      members: activations that differ from this one in their arrays alone.
      alphas: factor of the pre-activations, per member.
      n: latents per member.

    Raises:
      NotImplementedError: the activation has no such form.
    """
    raise NotImplementedError(self._without("a form for several members"))

  def _without(self, what: str) -> str:
    return f"{type(self).__name__} does not define {what}"


class Threshold(Activation):
  """Keeps values whose score is strictly above a threshold: the inference form.

  Attributes:
    theta: frozen thresholds in the units of the score, [n], or one for all [].
    score, keep: see the module.
  """

  theta: Float[Array, "n"] | Float[Array, ""]
  score: str = flax.struct.field(pytree_node=False, default="value")
  keep: str = flax.struct.field(pytree_node=False, default="relu")

  def __call__(self, pre: Pre, ctx: Context) -> Float[Array, "*b n"]:
    score = SCORES[self.score](pre, ctx)
    above = score > jax.lax.stop_gradient(self.theta)
    return jnp.where(above, KEEPS[self.keep](pre.a), 0)

  @property
  def by_norm(self) -> bool:
    return self.score == "norm"

  def threshold(self, theta) -> "Threshold":
    return self.replace(theta=theta)

  def unit_norms(self, norms: Float[Array, "n"]) -> "Threshold":
    if self.by_norm:
      return self.replace(score="value")
    return self.replace(theta=self.theta * norms)

  def rescaled(self, scale) -> "Threshold":
    return self.replace(theta=self.theta * scale) if self.by_norm else self

  def flattened(self, members, alphas, n) -> "Threshold":
    return self.replace(theta=scaled_thetas(members, alphas, n))


def scaled_thetas(
  members: Sequence[Any], alphas: Sequence[float], n: int
) -> Float[Array, "n_all"]:
  """Concatenated thresholds of members of n latents, each times its factor.

  Args:
    members: activations with thresholds.
    alphas: factor per member.
    n: latents per member.
  """
  return jnp.concatenate(
    [
      alpha * jnp.broadcast_to(member.theta, (n,))
      for alpha, member in zip(alphas, members, strict=True)
    ]
  )
