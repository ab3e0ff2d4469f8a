"""The SAE: prep, encoder, activation, decoder, in one frozen pytree."""

from typing import Any

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from saejax.sae import encoders
from saejax.sae.activations import Activation
from saejax.sae.decoders import Decoder
from saejax.sae.latents import DenseLatents, SparseLatents
from saejax.sae.prep import Prep


class Forward(flax.struct.PyTreeNode):
  """One pass, in the frame of the prep.

  Attributes:
    x: prepared activations [*b, d].
    x_hat: their reconstruction [*b, d].
    latents: what was kept.
    a: pre-activations [*b, n], None where they were never held.
    W_dec: the decoder's rows as used [n, d].
    memo: what undoing the prep needs.
  """

  x: Float[Array, "*b d"]
  x_hat: Float[Array, "*b d"]
  latents: SparseLatents | DenseLatents
  a: Float[Array, "*b n"] | None
  W_dec: Float[Array, "n d"]
  memo: Any


class SAE(flax.struct.PyTreeNode):
  """A sparse autoencoder.

      x'    = prep(x)
      a     = (x' - c) W_enc^T + b_enc,   c = b_dec, or 0 without pre-bias
      z     = activation(a)
      x_hat = prep^-1(z W_dec + b_dec)

  A pytree of float arrays (leaves) and static choices: it goes through `jit`,
  `vmap` and `grad` as it is, and every method takes any batch shape.

  Attributes:
    prep: applied to x first, undone last; frozen.
    encoder: x' -> a.
    activation: a -> z.
    decoder: z -> x'.
    pre_bias: whether b_dec is subtracted before encoding.
    dtype: of the operands of matmuls, "float32" or "bfloat16"; accumulation,
      selection and statistics are float32.
  """

  prep: Prep
  encoder: encoders.Affine
  activation: Activation
  decoder: Decoder
  pre_bias: bool = flax.struct.field(pytree_node=False, default=True)
  dtype: str = flax.struct.field(pytree_node=False, default="float32")

  @property
  def W_enc(self) -> Float[Array, "n d"]:
    return self.encoder.W

  @property
  def b_enc(self) -> Float[Array, "n"]:
    return self.encoder.b

  @property
  def W_dec(self) -> Float[Array, "n d"]:
    return self.decoder.rows()

  @property
  def b_dec(self) -> Float[Array, "d"]:
    return self.decoder.b

  @property
  def n(self) -> int:
    return self.W_enc.shape[-2]

  @property
  def d(self) -> int:
    return self.W_enc.shape[-1]

  @property
  def b_pre(self) -> Float[Array, "d"]:
    """What is subtracted before encoding."""
    return self.b_dec if self.pre_bias else jnp.zeros_like(self.b_dec)

  def encode(self, x: Float[Array, "*b d"]) -> Float[Array, "*b n"]:
    """Latents z of activations x, every one of them."""
    x, _ = self.prep.apply(x)
    return self.activation(self.encoder(x, self.b_pre, self.dtype))

  def encode_sparse(self, x: Float[Array, "*b d"]) -> SparseLatents:
    """The at most k non-zero latents of each row, largest first.

    Raises:
      ValueError: the activation does not bound how many a row keeps.
    """
    return self._sparse_latents(self.prep.apply(x)[0], None, ordered=True)

  def decode(
    self, z: Float[Array, "*b n"] | SparseLatents
  ) -> Float[Array, "*b d"]:
    """Activations of latents, in the units of x.

    Raises:
      ValueError: the prep needs each row's own statistics to be undone.
    """
    return self.prep.undo(self.decode_in_frame(z))

  def decode_in_frame(
    self, z: Float[Array, "*b n"] | SparseLatents
  ) -> Float[Array, "*b d"]:
    """z W_dec + b_dec, in the frame of the prep."""
    latents = z if isinstance(z, SparseLatents) else DenseLatents(z)
    return latents.decode(self.W_dec, self.dtype) + self.b_dec

  def reconstruct(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """x encoded and decoded, in the units of x."""
    out = self.forward(x)
    return self.prep.undo(out.x_hat, out.memo)

  def forward(
    self,
    x: Float[Array, "*b d"],
    *,
    k: Int[Array, ""] | None = None,
    engine: str = "auto",
  ) -> Forward:
    """One pass with everything that losses and metrics read.

    Args:
      x: activations.
      k: overrides the activation's k by a traced one, at most as large.
      engine: "dense" (plain autodiff), "sparse" (only the kept latents are
        touched; refuses unbounded rows), or "auto": sparse where it can be.
    """
    frame, memo = self.prep.apply(x)
    W_dec = self.W_dec
    if engine == "auto":
      engine = "dense" if self.activation.row_k is None else "sparse"
    if engine == "sparse":
      # A k of its own drops ranks, which takes an order.
      ordered = k is not None
      a, latents = None, self._sparse_latents(frame, k, ordered=ordered)
    elif engine == "dense":
      a = self.encoder(frame, self.b_pre, self.dtype)
      latents = DenseLatents(self.activation(a, k))
    else:
      raise ValueError(f"engine must be auto, dense or sparse, got {engine!r}")
    x_hat = latents.decode(W_dec, self.dtype) + self.b_dec
    return Forward(
      x=frame, x_hat=x_hat, latents=latents, a=a, W_dec=W_dec, memo=memo
    )

  def _sparse_latents(self, frame, k, *, ordered: bool) -> SparseLatents:
    row_k = self.activation.row_k
    if row_k is None:
      raise ValueError(
        f"{type(self.activation).__name__} does not bound how many latents a "
        "row keeps; use encode, or the dense engine"
      )
    values, indices = self.encoder.largest(
      frame, self.b_pre, row_k, self.dtype, ordered=ordered
    )
    return SparseLatents(self.activation.keep(values, k), indices, self.n)
