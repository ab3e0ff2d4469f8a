"""Gradient pursuit: latents of a fixed decoder, found again at inference.

With r = x - b_dec, z = 0 and an empty support, each step

  adds   f = argmax_f <r, w_f>                 to the support (signed, not |.|)
  moves  z <- max(z + s g, 0),  g_f = <r, w_f> on the support,
         s = <v, r> / <v, v>,   v = g W_dec
  and    r = x - b_dec - z W_dec

Each row takes as many steps as the SAE has latents active on it, so that its L0 is
at most that of the SAE. What is lower than the SAE's error is the encoder's fault,
what remains is the dictionary's.

A latent that is clamped to 0 leaves the support, and f may be in it already: then
the final L0 is below the number of steps. Everything is in the frame of the prep.
Memory per row is that of the active decoder rows, L0 d, and of one pass of
pre-activations, n.

References:
  Blumensath and Davies, Gradient Pursuits, 2008.
  Engels et al., Decomposing The Dark Matter of Sparse Autoencoders, 2024,
  arXiv:2410.14670.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from saejax.errors import InputError
from saejax.features import reading
from saejax.sae.context import Batch
from saejax.sae.latents import SparseLatents
from saejax.sae.sae import SAE

BATCH_ROWS = 512


class Pursued(NamedTuple):
  """What a pursuit finds.

  Attributes:
    latents: values and indices [B, S]; unused places have the value 0.
    x_hat: reconstruction in the units of x [B, d].
  """

  latents: SparseLatents
  x_hat: Float[Array, "B d"]


def pursue(
  sae: SAE,
  x: Float[Array, "B d"],
  *,
  steps: Int[np.ndarray, "B"] | int | None = None,
) -> Pursued:
  """Finds latents of an SAE's decoder by gradient pursuit.

  Args:
    sae: the SAE, in the inference form.
    x: rows.
    steps: steps of each row; by default the number of its active latents.

  Raises:
    InputError: the SAE is a transcoder, or a number of steps is negative.
  """
  if sae.target_prep is not None:
    rule = "must reconstruct its input, and this one is a transcoder"
    raise InputError("sae", "a transcoder", rule, "give an SAE")
  target, active, statistics = _framed(sae, jnp.asarray(x))
  given = np.asarray(active) if steps is None else np.asarray(steps)
  given = np.broadcast_to(given, (len(x),)).astype(np.int32)
  if (given < 0).any():
    rule = "must be at least 0"
    raise InputError("steps", int(given.min()), rule, "give 0 or more")
  most = int(given.max(initial=1))
  slots = 1 << (most - 1).bit_length()  # few shapes, so that few are compiled
  return _pursued(sae, target, statistics, jnp.asarray(given), slots)


def reconstructor(sae: SAE, *, batch_rows: int = BATCH_ROWS):
  """Returns rows -> (reconstructions, L0), as `dark_matter.decompose` takes them.

  Args:
    sae: the SAE, in the inference form.
    batch_rows: rows on the device at once.
  """

  def reconstruct(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    found, l0 = [], []
    for start in range(0, len(x), batch_rows):
      part = x[start : start + batch_rows]
      pursued = pursue(sae, reading.pad(part, batch_rows)[0])
      found.append(np.asarray(pursued.x_hat)[: len(part)])
      l0.append(np.asarray(pursued.latents.count())[: len(part)])
    return np.concatenate(found), np.concatenate(l0)

  return reconstruct


@jax.jit
def _framed(sae: SAE, x: Array) -> tuple[Array, Array, Any]:
  """x' - b_dec, the number of active latents, and what undoes the prep."""
  out = sae.forward(Batch(x=x))
  target = (out.x - sae.b_dec).astype(jnp.float32)
  return target, out.latents.count(), out.statistics


@partial(jax.jit, static_argnames="slots")
def _pursued(
  sae: SAE,
  target: Float[Array, "B d"],
  statistics: Any,
  steps: Int[Array, "B"],
  slots: int,
) -> Pursued:
  """Step t puts its latent in place t."""
  B, d = target.shape
  W = sae.W_dec.astype(jnp.float32)

  def step(t, state):
    values, indices, rows, r = state
    best = jnp.argmax(r @ W.T, axis=-1)
    on = values != 0
    known = jnp.any((indices == best[:, None]) & on, axis=-1)
    indices = indices.at[:, t].set(best)
    rows = rows.at[:, t].set(W[best])
    on = on.at[:, t].set(~known)
    g = jnp.where(on, jnp.einsum("bsd,bd->bs", rows, r), 0)
    v = jnp.einsum("bs,bsd->bd", g, rows)
    square = jnp.sum(v * v, axis=-1)
    size = jnp.sum(v * r, axis=-1) / jnp.where(square > 0, square, 1)
    moved = jnp.maximum(values + size[:, None] * g, 0)
    values = jnp.where((t < steps)[:, None], moved, values)
    return (
      values,
      indices,
      rows,
      target - jnp.einsum("bs,bsd->bd", values, rows),
    )

  start = (
    jnp.zeros((B, slots), jnp.float32),
    jnp.zeros((B, slots), jnp.argmax(target, axis=-1).dtype),
    jnp.zeros((B, slots, d), jnp.float32),
    target,
  )
  last = jnp.minimum(jnp.max(steps, initial=0), slots)
  values, indices, *_ = jax.lax.fori_loop(0, last, step, start)
  latents = SparseLatents(values, indices, sae.n)
  return Pursued(latents, sae.decode(latents, statistics))
