"""Encoders: map activations in the prep's frame to pre-activations."""

from functools import partial

import flax.struct
import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Bool, Float, Int

from saejax.kernels.fused_encode import batch
from saejax.kernels.fused_encode import op as fused_encode
from saejax.sae.context import Context, Pre
from saejax.sae.decoders import unit_rows
from saejax.sae.part import Part


class Encoder(Part):
  """Base class of encoders; a subclass defines at least `__call__`.

  A method that a subclass does not define raises a NotImplementedError that
  names the class.
  """

  def __call__(self, x: Float[Array, "*b d"], ctx: Context) -> Pre:
    """Maps prepared activations to all pre-activations.

    Args:
      x: prepared activations.
      ctx: context of the rows.
    """
    raise NotImplementedError(f"{type(self).__name__} has no __call__")

  def width(self, decoder) -> int:
    """Width of x; equals the decoder's unless this is a transcoder.

    Args:
      decoder: the decoder.
    """
    return decoder.b.shape[-1]

  @property
  def has_largest(self) -> bool:
    """Whether `largest` is defined, which the sparse engine needs."""
    return False

  @property
  def is_affine(self) -> bool:
    """Whether `affine` is defined: each latent has its own row of W."""
    return False

  def largest(
    self,
    x: Float[Array, "*b d"],
    ctx: Context,
    k: int,
    *,
    ordered: bool = True,
    magnitude: bool = False,
  ) -> tuple[Float[Array, "*b k"], Int[Array, "*b k"]]:
    """The k largest pre-activations of each row and their latents.

    Largest first if `ordered`, else in the order of latents, which is faster.
    With `magnitude`, largest in size; their values keep their signs.

    Args:
      x: prepared activations.
      ctx: context of the rows.
      k: number of pre-activations per row.
      ordered: whether the largest come first.
      magnitude: whether to select the largest in size.

    Raises:
      NotImplementedError: the encoder has no sparse engine.
    """
    raise NotImplementedError(f"{type(self).__name__} has no sparse engine")

  def largest_of_batch(
    self,
    x: Float[Array, "b d"],
    ctx: Context,
    count: Float[Array, ""],
    *,
    mean_k: float,
    magnitude: bool = False,
    use: Bool[Array, "b"] | None = None,
  ) -> batch.Largest:
    """The `count` largest pre-activations of the batch, as entries.

    Args:
      x: prepared activations.
      ctx: context of the rows.
      count: how many, at most mean_k per row.
      mean_k: most latents per row on average.
      magnitude: whether to select the largest in size.
      use: rows that take part; all by default.

    Raises:
      NotImplementedError: the encoder is not affine.
    """
    W, b = self.affine(ctx.decoder)
    return batch.encode_batch(
      x,
      ctx.b_pre,
      W,
      b,
      count,
      mean_k=mean_k,
      dtype=ctx.dtype,
      magnitude=magnitude,
      use=use,
    )

  def affine(self, decoder) -> tuple[Float[Array, "n d"], Float[Array, "n"]]:
    """W and b of an encoder a = (x - b_pre) W^T + b.

    Args:
      decoder: the decoder.

    Raises:
      NotImplementedError: the encoder is not affine.
    """
    raise NotImplementedError(
      f"{type(self).__name__} is not an affine encoder: it has no W and b with "
      "one row per latent"
    )

  def weights(self, decoder) -> tuple[Float[Array, "n d"], Float[Array, "n"]]:
    """W and b with one row per latent, as published files hold them.

    Args:
      decoder: the decoder.

    Raises:
      NotImplementedError: the encoder has none.
    """
    return self.affine(decoder)

  def threshold_form(
    self,
  ) -> tuple[Float[Array, "n d"], Float[Array, "n"], Float[Array, "n"]]:
    """W, b and thresholds on W x + b that are equivalent to the gate head.

    Raises:
      NotImplementedError: the encoder has no gate head.
    """
    raise NotImplementedError(f"{type(self).__name__} has no gate head")

  def folded(self, centre, scale, decoder, *, pre_bias: bool) -> "Encoder":
    """The encoder of raw x that equals this one on (x - centre) / scale.

    Args:
      centre, scale: centre and scale of the prep.
      decoder: decoder of the SAE, for tied encoders.
      pre_bias: whether b_dec is subtracted before encoding, which then holds
        the centre.
    """
    W, b = self.affine(decoder)
    W = W / scale
    return Affine(W=W, b=b - centre_shift(W, centre, pre_bias))


def centre_shift(
  W: Float[Array, "n d"], centre, pre_bias: bool
) -> Float[Array, "n"] | float:
  """The shift of W x by a centre; 0 where the pre-bias includes the centre.

  Args:
    W: encoder rows.
    centre: centre of the prep.
    pre_bias: whether b_dec is subtracted before encoding.
  """
  return 0.0 if pre_bias else jnp.sum(W * centre, axis=-1)


class Linear(Encoder):
  """Base class of encoders a = (x - b_pre) W^T + b.

  A subclass defines `affine`: W [n, d] and b [n].
  """

  @property
  def has_largest(self) -> bool:
    return True

  @property
  def is_affine(self) -> bool:
    return True

  def __call__(self, x: Float[Array, "*b d"], ctx: Context) -> Pre:
    """Maps prepared activations to all pre-activations, in float32."""
    W, b = self.affine(ctx.decoder)
    return Pre(a=centred_matmul(x, ctx.b_pre, W, ctx.dtype) + b)

  def largest(
    self,
    x: Float[Array, "*b d"],
    ctx: Context,
    k: int,
    *,
    ordered: bool = True,
    magnitude: bool = False,
    among: Bool[Array, "n"] | None = None,
    most: Int[Array, ""] | None = None,
  ) -> tuple[Float[Array, "*b k"], Int[Array, "*b k"]]:
    """The k largest pre-activations of each row and their latents.

    Largest first if `ordered`, else in the order of latents, which is faster.
    With `magnitude`, largest in size; their values keep their signs. Latents
    that are not `among` those given come after all others, with value -inf;
    with an upper bound of their number, `most`, few of them take less time.
    """
    W, b = self.affine(ctx.decoder)
    if among is not None:
      b = jnp.where(among, b, -jnp.inf)
    return fused_encode.encode_topk(
      x,
      ctx.b_pre,
      W,
      b,
      k,
      ctx.dtype,
      ordered=ordered,
      magnitude=magnitude,
      most=most,
    )


class Affine(Linear):
  """An encoder with its own W and b; row i of W is latent i."""

  W: Float[Array, "n d"]
  b: Float[Array, "n"]

  def width(self, decoder) -> int:
    """Width d of the rows of W.

    Args:
      decoder: the SAE's decoder; not read.
    """
    del decoder
    return self.W.shape[-1]

  def affine(self, decoder) -> tuple[Float[Array, "n d"], Float[Array, "n"]]:
    del decoder
    return self.W, self.b


class Tied(Linear):
  """An encoder with the decoder's W and its own b.

  Attributes:
    b: added to the pre-activations.
    raw: whether W is the decoder's stored array, before its class normalises
      or scales it, instead of the rows as used.
  """

  b: Float[Array, "n"]
  raw: bool = flax.struct.field(pytree_node=False, default=False)

  def affine(self, decoder) -> tuple[Float[Array, "n d"], Float[Array, "n"]]:
    return (decoder.W if self.raw else decoder.rows()), self.b


def tied(W: Float[Array, "n d"]) -> Tied:
  """An encoder tied to the decoder's rows as used, with biases 0.

  Args:
    W: the decoder's rows.
  """
  return Tied(b=jnp.zeros(W.shape[:1]))


class UnitRows(Linear):
  """An encoder that divides each row of W by its norm in every forward pass."""

  W: Float[Array, "n d"]
  b: Float[Array, "n"]

  def affine(self, decoder) -> tuple[Float[Array, "n d"], Float[Array, "n"]]:
    del decoder
    return unit_rows(self.W), self.b

  def width(self, decoder) -> int:
    del decoder
    return self.W.shape[-1]


def matmul(
  x: Float[Array, "*b d"], W: Float[Array, "n d"], dtype: str
) -> Float[Array, "*b n"]:
  """x W^T with operands cast to a dtype, accumulated in float32.

  Args:
    x: rows.
    W: encoder rows.
    dtype: dtype of the operands.
  """
  return jnp.matmul(
    x.astype(dtype), W.T.astype(dtype), preferred_element_type=jnp.float32
  )


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def centred_matmul(
  x: Float[Array, "*b d"],
  b_pre: Float[Array, "d"],
  W: Float[Array, "n d"],
  dtype: str,
) -> Float[Array, "*b n"]:
  """(x - b_pre) W^T, with a gradient of b_pre that costs one row.

      d_b_pre = -(sum_b d_a) W

  Plain autodiff multiplies the gradient of every row by W and sums afterwards:
  2Bnd operations, and a sum of [B, d] over devices where W's rows are split.

  Args:
    x: rows.
    b_pre: subtracted from each row.
    W: encoder rows.
    dtype: dtype of the operands.
  """
  return matmul(x - b_pre, W, dtype)


@partial(centred_matmul.defjvp, symbolic_zeros=True)
def _centred_matmul_jvp(dtype, primals, tangents):
  x, b_pre, W = primals
  d_x, d_b_pre, d_W = tangents
  out = matmul(x - b_pre, W, dtype)
  moved = []
  if not isinstance(d_x, SymbolicZero):
    moved.append(matmul(d_x, W, dtype))
  if not isinstance(d_b_pre, SymbolicZero):
    moved.append(-jnp.broadcast_to(matmul(d_b_pre, W, dtype), out.shape))
  if not isinstance(d_W, SymbolicZero):
    moved.append(matmul(x - b_pre, d_W, dtype))
  return out, sum(moved[1:], moved[0]) if moved else jnp.zeros_like(out)
