"""The SAE: prep, encoder, activation, decoder, in one frozen pytree.

"In the frame of the prep" means in the coordinates of prepared rows x', see
`sae.prep`; "in the units of the model" means those of the raw activations x.
"""

import sys
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from saejax.kernels.topk import op as topk
from saejax.sae import view
from saejax.sae.activations import Activation
from saejax.sae.context import Batch, Context, Pre, as_array, as_batch
from saejax.sae.decoders import Decoder
from saejax.sae.encoders import Encoder
from saejax.sae.latents import (
  DenseLatents,
  EntryLatents,
  Latents,
  SparseLatents,
)
from saejax.sae.prep import Prep


class Forward(flax.struct.PyTreeNode):
  """The intermediate values of one forward pass, in the frame of the prep.

  Attributes:
    ctx: context of the pass: `ctx.batch` the data, `ctx.x` its prepared rows.
    target: the reconstruction target, prepared: x, or a transcoder's own
      target [*b, d].
    x_hat: reconstruction [*b, d].
    latents: the active latents.
    pre: pre-activations, None in the sparse engine, which never holds them all.
    statistics: statistics per row that the prep's `undo` needs; None for linear
      preps.
    exact: whether the sparse engine held all latents of the batch; None where
      it always does, and in the dense engine.
  """

  ctx: Context
  target: Float[Array, "*b d"]
  x_hat: Float[Array, "*b d"]
  latents: Latents
  pre: Pre | None
  statistics: Any
  exact: Bool[Array, ""] | None = None

  @property
  def x(self) -> Float[Array, "*b d"]:
    """Prepared activations."""
    return self.ctx.x

  @property
  def W_dec(self) -> Float[Array, "n d"]:
    """The decoder's rows as used."""
    return self.ctx.W_dec


class SAE(flax.struct.PyTreeNode):
  """A sparse autoencoder.

      x'    = prep(x)
      a     = (x' - c) W_enc^T + b_enc,   c = b_dec, or 0 without pre-bias
      z     = activation(a)
      x_hat = prep^-1(z W_dec + b_dec)

  A pytree of float arrays (leaves) and static choices: it works with `jit`,
  `vmap` and `grad`, and every method takes any batch shape. An argument x is an
  array, nested lists, or a `Batch` with metadata of the rows. `sae(x)` is
  `sae.reconstruct(x)`.

  Attributes:
    prep: applied to x first, undone last; frozen unless it is trained.
    encoder: x' -> a.
    activation: a -> z.
    decoder: z -> x'.
    target_prep: prep of a transcoder's target; None where x is the target.
    pre_bias: whether b_dec is subtracted before encoding.
    dtype: dtype of matmul operands, "float32" or "bfloat16"; accumulation,
      selection and statistics are float32.
  """

  prep: Prep
  encoder: Encoder
  activation: Activation
  decoder: Decoder
  target_prep: Prep | None = None
  pre_bias: bool = flax.struct.field(pytree_node=False, default=True)
  dtype: str = flax.struct.field(pytree_node=False, default="float32")

  @property
  def W_enc(self) -> Float[Array, "n d"]:
    """Encoder rows. Raises: NotImplementedError, the encoder is not affine."""
    return self.encoder.affine(self.decoder)[0]

  @property
  def b_enc(self) -> Float[Array, "n"]:
    """Encoder biases. Raises: NotImplementedError, as `W_enc`."""
    return self.encoder.affine(self.decoder)[1]

  @property
  def W_dec(self) -> Float[Array, "n d"]:
    return self.decoder.rows()

  @property
  def b_dec(self) -> Float[Array, "d"]:
    return self.decoder.b

  @property
  def n(self) -> int:
    return self.decoder.n

  @property
  def d(self) -> int:
    """Width of the reconstruction."""
    return self.decoder.b.shape[-1]

  @property
  def has_sparse_engine(self) -> bool:
    """Whether it can run with only the active latents of each row."""
    encoder, bounded = self.encoder, self.activation.row_k is not None
    has = encoder.has_largest and (bounded or encoder.is_affine)
    return self.activation.fused and has

  def engine(self, name: str, *, train: bool = False) -> str:
    """The engine of a pass, "dense" or "sparse".

    Args:
      name: "dense", "sparse", or "auto": sparse where that is exact whatever
        the rows; in training, where it is the faster.
      train: whether the pass is one of training.

    Raises:
      ValueError: the name is unknown.
    """
    if name not in ("auto", "dense", "sparse"):
      raise ValueError(f"engine must be auto, dense or sparse, got {name!r}")
    if name != "auto":
      return name
    bounded = self.activation.row_k is not None
    pays = self.activation.pays_sparse(self.n) if train else bounded
    return "sparse" if self.has_sparse_engine and pays else "dense"

  @classmethod
  def from_pretrained(cls, name: str, sae_id: str | None = None) -> "SAE":
    """Loads published weights: `saejax.load(name)`, which lists the names.

    Args:
      name: the name; or a release of SAELens, with an id.
      sae_id: the id of the SAE in the release.
    """
    # What knows formats comes later on the road; the package has it by name.
    load = sys.modules[cls.__module__.partition(".")[0]].load
    return load(name if sae_id is None else f"sae-lens:{name}/{sae_id}")

  def __call__(self, x: Float[Array, "*b d"] | Batch) -> Float[Array, "*b d"]:
    """Reconstructs x; see `reconstruct`.

    Args:
      x: activations, or a batch.
    """
    return self.reconstruct(x)

  def __repr__(self) -> str:
    """Shapes and parts, one line each, without values."""
    return view.text(self)

  def _repr_html_(self) -> str:
    return view.html(self)

  def encode(self, x: Float[Array, "*b d"] | Batch) -> Float[Array, "*b n"]:
    """Encodes activations x to all latents z.

    Args:
      x: activations, or a batch.
    """
    ctx, _ = self._context(as_batch(x))
    return self.activation(self.encoder(ctx.x, ctx), ctx)

  def encode_sparse(self, x: Float[Array, "*b d"] | Batch) -> SparseLatents:
    """Encodes activations x to at most k latents per row, largest first.

    Args:
      x: activations, or a batch.

    Raises:
      ValueError: the activation does not bound the active latents per row.
    """
    k = self._row_k()
    if self.has_sparse_engine:
      ctx, _ = self._context(as_batch(x))
      found, _ = self.activation.sparse(self.encoder, ctx, self.n, ordered=True)
      assert isinstance(found, SparseLatents)
      return found
    z = self.encode(x)
    _, indices = topk.top_k(jnp.abs(z), k)
    values = jnp.take_along_axis(z, indices, axis=-1)
    return SparseLatents(values, indices, self.n)

  def decode(
    self,
    z: Float[Array, "*b n"] | SparseLatents | EntryLatents,
    statistics: Any = None,
  ) -> Float[Array, "*b d"]:
    """Decodes latents, to the units of x (of the target, for a transcoder).

    Args:
      z: latents.
      statistics: those of the rows, from a forward pass; for preps that need
        them.

    Raises:
      ValueError: the prep needs statistics and none are passed.
    """
    return self._output_prep.undo(self.decode_in_frame(z), statistics)

  def direction(self, latent: int | Int[Array, "*l"]) -> Float[Array, "*l d"]:
    """The change of the reconstruction per unit of a latent.

    In the units of the model: W_dec is in the frame of the prep, so that with a
    prep of scale s a unit row moves x by s.

    Args:
      latent: one or several, in [0, n); checked unless they are on a device.

    Raises:
      NotImplementedError: the prep depends on the row, and so does the change.
      IndexError: there is no such latent.
    """
    if not isinstance(latent, jax.Array):
      which = np.asarray(latent)
      if np.any((which < 0) | (which >= self.n)):
        raise IndexError(f"latent must be in [0, n={self.n}), got {latent}")
      latent = jnp.asarray(which)
    _, scale = self._output_prep.affine()
    return scale * self.W_dec[latent]

  def decode_in_frame(
    self, z: Float[Array, "*b n"] | SparseLatents | EntryLatents
  ) -> Float[Array, "*b d"]:
    """Computes z W_dec + b_dec, in the frame of the prep.

    Args:
      z: latents.
    """
    if isinstance(z, SparseLatents | EntryLatents):
      latents = z
    else:
      latents = DenseLatents(as_array(z))
      _check_width("z", latents.z, self.n)
    return latents.decode(self.W_dec, self.dtype) + self.b_dec

  def reconstruct(
    self, x: Float[Array, "*b d"] | Batch
  ) -> Float[Array, "*b d"]:
    """Encodes and decodes x; a transcoder gives the units of its target.

    Args:
      x: activations, or a batch.

    Raises:
      ValueError: the target's prep depends on the target, which is not given.
    """
    batch = as_batch(x)
    if self.target_prep is not None and batch.target is None:
      ctx, _ = self._context(batch)
      statistics = self.target_prep.without_target(batch)
      return self._output_prep.undo(self._decoded(ctx)[2], statistics)
    out = self.forward(batch)
    return self._output_prep.undo(out.x_hat, out.statistics)

  @property
  def _output_prep(self) -> Prep:
    """The prep of the reconstruction target."""
    return self.prep if self.target_prep is None else self.target_prep

  def forward(
    self,
    x: Float[Array, "*b d"] | Batch,
    *,
    engine: str = "auto",
    k: Int[Array, ""] | None = None,
    coefficient: Float[Array, ""] | None = None,
    stats: Mapping[str, Array] | None = None,
    step: Int[Array, ""] | None = None,
    key: PRNGKeyArray | None = None,
    part: Int[Array, ""] | None = None,
    train: bool = False,
  ) -> Forward:
    """Runs a forward pass and returns all that losses and metrics read.

    Args:
      x: activations, or a batch.
      engine: "dense" (plain autodiff), "sparse" (decodes only the active
        latents; raises where there is no such engine), or "auto": see
        `engine`. A selection over the batch may be found inexact in the sparse
        engine: see `Forward.exact`.
      k: traced k that overrides the activation's, at most as large.
      coefficient, stats, step, key, part, train: see `Context`.

    Raises:
      ValueError: the engine is unknown or does not support the activation, or
        a transcoder gets no target.
    """
    batch = as_batch(x)
    ctx, statistics = self._context(
      batch,
      k=k,
      coefficient=coefficient,
      stats=stats or {},
      step=step,
      key=key,
      part=part,
      train=train,
    )
    pre, latents, x_hat, exact = self._decoded(ctx, engine)
    target = ctx.x
    if self.target_prep is not None:
      if batch.target is None:
        raise ValueError("this SAE has a target: pass Batch(x=..., target=...)")
      _check_width("target", batch.target, self.d)
      target, statistics = self.target_prep.apply_target(batch)
    return Forward(
      ctx=ctx,
      target=target,
      x_hat=x_hat,
      latents=latents,
      pre=pre,
      statistics=statistics,
      exact=exact,
    )

  def _decoded(
    self, ctx: Context, engine: str = "auto"
  ) -> tuple[Pre | None, Latents, Float[Array, "*b d"], Array | None]:
    """Pre-activations (None where not all are computed), latents, x_hat, exact.

    See `Forward`.
    """
    if self.engine(engine, train=False) == "dense":
      pre, z, product = self.activation.autoencoded(self.encoder, ctx)
      return pre, DenseLatents(z), product + self.b_dec, None
    if not self.has_sparse_engine:
      if not self.activation.fused:
        self._row_k()
      raise ValueError(
        f"{type(self.encoder).__name__} with {type(self.activation).__name__} "
        'has no sparse engine; use engine="dense"'
      )
    # A smaller traced k drops the last ranks, so latents must be ordered.
    ordered = ctx.k is not None or self.activation.is_ordered
    latents, exact = self.activation.sparse(
      self.encoder, ctx, self.n, ordered=ordered
    )
    x_hat = latents.decode(ctx.W_dec, self.dtype) + self.b_dec
    return None, latents, x_hat, exact

  def _context(self, batch: Batch, **around) -> tuple[Context, Any]:
    _check_width("x", batch.x, self.encoder.width(self.decoder))
    frame, statistics = self.prep.apply(batch.x, batch.cond)
    b_pre = self.b_dec if self.pre_bias else jnp.zeros(frame.shape[-1:])
    ctx = Context(
      batch=batch,
      x=frame,
      decoder=self.decoder,
      W_dec=self.W_dec,
      b_pre=b_pre,
      dtype=self.dtype,
      **around,
    )
    return ctx, statistics

  def _row_k(self) -> int:
    row_k = self.activation.row_k
    if row_k is None:
      raise ValueError(
        f"{type(self.activation).__name__} does not bound the number of active "
        "latents per row; use encode, or the dense engine"
      )
    return row_k


def _check_width(name: str, a: Array, width: int) -> None:
  """Raises a ValueError for an array whose last axis has another size."""
  if a.shape[-1:] != (width,):
    last = ", ".join(["...", *map(str, a.shape[-1:])])
    got = f"[{last}]" if a.ndim else "a scalar"
    raise ValueError(f"{name} must be [..., {width}], got {got}")
