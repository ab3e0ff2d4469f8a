"""Operators: activations at a site, rewritten through an SAE.

With z = encode(x), x_hat = decode(z) and an edit z' = change(z),

  splice    x' = x_hat                          the SAE in place of the site
  transcode y' = y_hat of x at an earlier site  a transcoder in place of its target
  edited    x' = x + (decode(z') - decode(z))   the error is kept
            x' = decode(z')                     keep_error=False
  without   x' = x - z_j d_j                    one latent per sequence is 0
  zero      x' = 0                              ablation of the site
  constant  x' = v                              such as the mean of the rows
  projection  x' = m + (x - m) V^T V            on orthonormal directions V

Each is an edit of `models.edits`, so that it works in a whole forward pass, inside
jit and in cached generation, and is compiled once for all SAEs of one shape. Where
change gives z back, `edited` is exactly the identity. An edit must leave alone the
rows that the SAE has never seen: `data.text.rules`.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int

from saejax.errors import InputError
from saejax.models.edits import Context, Edit
from saejax.sae.context import Batch
from saejax.sae.latents import Latents, SparseLatents
from saejax.sae.sae import SAE

Change = Callable[[Float[Array, "*b n"]], Float[Array, "*b n"]]


def splice(sae: SAE) -> Edit:
  """The reconstruction in place of the activations.

  Args:
    sae: the SAE of the site, in the inference form.

  Raises:
    InputError: it is a transcoder, see `transcode`; or, where the edit is
      applied, it needs a condition of each row.
  """
  return Edit(Partial(_splice, _of_rows(sae)))


def transcode(sae: SAE, source: str, target: str) -> dict[str, Edit]:
  """The output of a transcoder in place of the activations of its target.

  It reads the source in the same forward pass, so that an edit of an earlier
  site changes its output too.

  Args:
    sae: the transcoder, or an SAE that reconstructs its own site.
    source: name in saejax of the site that it reads, such as `layers.3.mlp_in`.
    target: name of the site that it writes, after the source.

  Returns:
    An edit of each site, for `taps.write` and `generate`.
  """
  width = sae.encoder.width(sae.decoder)
  return {source: remember(width), target: transcoded(sae, source)}


def remember(width: int) -> Edit:
  """Activations as they are, which edits of later sites can read.

  Args:
    width: width of the rows; heads are joined.
  """
  return Edit(Partial(_remember), jnp.zeros((width,)), each=True)


def transcoded(sae: SAE, source: str) -> Edit:
  """The edit of the target in `transcode`; the source has `remember`.

  Args:
    sae: the transcoder.
    source: name in saejax of the site that it reads.
  """
  return Edit(Partial(_Transcoded(source), sae))


def edited(sae: SAE, change: Change, *, keep_error: bool = True) -> Edit:
  """Activations with changed latents.

  Args:
    sae: the SAE of the site, in the inference form.
    change: new latents of all latents, [..., n] -> [..., n]; a
      `jax.tree_util.Partial` where it holds arrays.
    keep_error: whether what the SAE does not reconstruct stays as it is.

  Raises:
    InputError: as `splice`.
  """
  function = _delta if keep_error else _decoded
  return Edit(Partial(function, _of_rows(sae), Partial(change)))


def without(sae: SAE, latents: Int[Array, "B"]) -> Edit:
  """Activations with one latent of each sequence set to 0; the error is kept.

  x' = x - z_j d_j with d_j what a unit of latent j adds to the reconstruction.
  It is `edited` with z_j = 0, without an array of all latents where the SAE has
  a sparse engine, so that one pass ablates as many latents as it has sequences.

  Args:
    sae: the SAE of the site, in the inference form.
    latents: latent of each sequence, by the number of the sequence.

  Raises:
    InputError: as `splice`.
  """
  return Edit(Partial(_without, _of_rows(sae), jnp.asarray(latents)))


def values(latents: Latents, which: Int[Array, "*b"]) -> Float[Array, "*b"]:
  """The value of one latent per row, 0 where it is not active.

  Args:
    latents: latents of rows.
    which: number of a latent, per row.
  """
  if isinstance(latents, SparseLatents):
    hits = latents.indices == which[..., None]
    return jnp.sum(jnp.where(hits, latents.values, 0), axis=-1)
  z = latents.dense()
  return jnp.take_along_axis(z, which[..., None], axis=-1)[..., 0]


def zero() -> Edit:
  """Zeros in place of the activations."""
  return constant(jnp.zeros(()))


def constant(value: Float[Array, "d"]) -> Edit:
  """One vector in place of the activations.

  Args:
    value: the vector, or a number for each of its values.
  """
  return Edit(Partial(_constant, jnp.asarray(value)))


def projection(
  centre: Float[Array, "d"], directions: Float[Array, "k d"]
) -> Edit:
  """The projection on a subspace around a point.

  Args:
    centre: the point.
    directions: orthonormal rows.
  """
  return Edit(Partial(_projection, centre, directions))


def _of_rows(sae: SAE) -> SAE:
  """Refuses an SAE that needs more than the activations of the site."""
  if sae.target_prep is not None:
    raise InputError(
      "sae",
      "a transcoder",
      "must reconstruct its input, and this one has a target at another site",
      "write its output at the target's site: operators.transcode",
    )
  return sae


def _splice(sae: SAE, h: Array, context: Context) -> Array:
  return sae.reconstruct(_rows(h)).reshape(h.shape).astype(h.dtype)


class _Transcoded(NamedTuple):
  """Function of the target's edit; equal for equal sources, so compiled once."""

  source: str

  def __call__(self, sae: SAE, h: Array, context: Context) -> Array:
    x = Batch(x=context.after(self.source).astype(jnp.float32))
    return sae.reconstruct(x).reshape(h.shape).astype(h.dtype)


def _remember(h: Array, context: Context, state: Array) -> tuple[Array, Array]:
  x = h.reshape(*h.shape[:2], math.prod(h.shape[2:])).astype(jnp.float32)
  return h, jnp.where(context.mask[..., None], x, state[:, None])


def _delta(sae: SAE, change: Change, h: Array, context: Context) -> Array:
  out = sae.forward(_rows(h))
  z = out.latents.dense()
  return h + _moved(sae, (change(z) - z) @ sae.W_dec, out.statistics, h)


def _without(sae: SAE, latents: Array, h: Array, context: Context) -> Array:
  out = sae.forward(_rows(h))
  which = latents[context.sequence]
  which = jnp.broadcast_to(which[:, None], h.shape[:2])
  delta = -values(out.latents, which)[..., None] * sae.W_dec[which]
  return h + _moved(sae, delta, out.statistics, h)


def _moved(sae: SAE, delta: Array, statistics: Any, h: Array) -> Array:
  """A change in the frame of the prep as one of the activations."""
  zeros = jnp.zeros_like(delta)
  moved = sae.prep.undo(delta, statistics) - sae.prep.undo(zeros, statistics)
  return moved.reshape(h.shape).astype(h.dtype)


def _decoded(sae: SAE, change: Change, h: Array, context: Context) -> Array:
  out = sae.forward(_rows(h))
  x = sae.decode(change(out.latents.dense()), out.statistics)
  return x.reshape(h.shape).astype(h.dtype)


def _projection(centre: Array, V: Array, h: Array, context: Context) -> Array:
  x = _rows(h).x - centre
  return (centre + (x @ V.T) @ V).reshape(h.shape).astype(h.dtype)


def _constant(value: Array, h: Array, context: Context) -> Array:
  flat = h.reshape(*h.shape[:2], -1)
  return jnp.broadcast_to(value, flat.shape).reshape(h.shape).astype(h.dtype)


def _rows(h: Float[Array, "B T ..."]) -> Batch:
  """Rows of the site; heads are joined, as in a harvest."""
  return Batch(x=h.reshape(*h.shape[:2], -1).astype(jnp.float32))
