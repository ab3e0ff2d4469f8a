"""Latents of SAEs of attention outputs, attributed to heads and source tokens.

The SAE reads the outputs of all heads before W_O, joined: z = [z^1 ... z^H]. Its
pre-activations are linear in z and, with the attention patterns A^k held fixed, in
the values v^k (direct feature attribution, DFA):

  a_i[t] - c_i = sum_k <z^k[t], w_i^k>
               = sum_s sum_k A^k[t, s] <v^k[s], w_i^k>,  c_i = b_enc_i - <b_dec, w_i>

with w_i^k the part of latent i's encoder row at head k, and c_i = b_enc_i where the
SAE has no pre-bias. The bias of the value map is in v. Heads that share values
(grouped queries) each take those of their group. A linear prep is folded into the
rows first, so that all is in the units of the model.

By weights alone, the share of head k in latent i is |d_i^k| / sum_k |d_i^k|, with
d_i^k the part of the decoder row at head k.

Where an SAE reads another site these functions do not apply; where a norm follows
W_O (Gemma 2 and 3) they do, since z is before it. `head_paths` goes on to earlier
layers, `induction` scores heads.

References:
  Kissane et al., Interpreting Attention Layer Outputs with Sparse Autoencoders,
  2024, arXiv:2406.17759.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int

from saejax.errors import InputError
from saejax.evals.heads import indices
from saejax.interventions import operators
from saejax.models import edits, taps
from saejax.models.model import Model
from saejax.sae import folding
from saejax.sae.sae import SAE

_matmul = partial(jnp.matmul, precision="highest")
_einsum = partial(jnp.einsum, precision="highest")


class HeadRows(NamedTuple):
  """Encoder rows by head: a = c + sum_k z^k W^k."""

  W: Float[Array, "n H h"]
  c: Float[Array, "n"]


def head_rows(sae: SAE, heads: int) -> HeadRows:
  """Divides an SAE's encoder rows into heads, in the units of the model.

  Args:
    sae: SAE of the joined outputs of all heads, with an affine encoder.
    heads: number of heads.

  Raises:
    InputError: the heads do not divide the width.
    NotImplementedError: the encoder or the prep is not linear.
  """
  check_heads(sae, heads)
  sae = folding.fold_prep(sae)
  W = sae.W_enc
  c = sae.b_enc - (_matmul(W, sae.b_dec) if sae.pre_bias else 0)
  return HeadRows(W.reshape(sae.n, heads, -1), c)


def head_shares(sae: SAE, heads: int) -> Float[np.ndarray, "n H"]:
  """Computes the share of each head in the decoder row of each latent.

  Args:
    sae: SAE of the joined outputs of all heads.
    heads: number of heads.

  Returns:
    Shares that sum to 1 per latent; 0 where its row is 0.

  Raises:
    InputError: the heads do not divide the width.
  """
  check_heads(sae, heads)
  parts = np.asarray(sae.W_dec, np.float64).reshape(sae.n, heads, -1)
  norm = np.linalg.norm(parts, axis=-1)
  total = norm.sum(axis=-1, keepdims=True)
  return norm / np.where(total > 0, total, 1)


def survey(
  shares: Float[np.ndarray, "n H"],
  *,
  count: int = 10,
  alive: Bool[np.ndarray, "n"] | None = None,
) -> Int[np.ndarray, "H count"]:
  """Returns the latents with the largest share of each head, largest first.

  Reading these latents is how the paper estimates what a head does.

  Args:
    shares: from `head_shares`.
    count: number of latents per head; fewer where fewer are alive.
    alive: which latents are considered; all by default.
  """
  kept = np.arange(len(shares)) if alive is None else np.flatnonzero(alive)
  order = np.argsort(-shares[kept], axis=0, kind="stable")[:count]
  return kept[order].T


# --- direct feature attribution ------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Attribution:
  """Pre-activations of some latents, divided among heads and source tokens.

  Attributes:
    latents: the latents.
    a: pre-activations.
    c: their constants: a - c is the sum of either division.
    by_head: contribution of each head at each destination t.
    by_source: contribution of each source s to each destination t.
  """

  latents: Int[np.ndarray, "l"]
  a: Float[np.ndarray, "B T l"]
  c: Float[np.ndarray, "l"]
  by_head: Float[np.ndarray, "B T H l"]
  by_source: Float[np.ndarray, "B T S l"]

  @property
  def gap(self) -> float:
    """Largest difference of either sum and a - c, over the largest |a - c|."""
    linear = self.a - self.c
    gaps = [
      np.abs(part.sum(axis=2) - linear).max()
      for part in (self.by_head, self.by_source)
    ]
    return float(max(gaps) / max(np.abs(linear).max(), 1e-30))


def by_head(
  rows: HeadRows, z: Float[Array, "*b H h"], latents: Int[Array, "l"]
) -> Float[Array, "*b H l"]:
  """Computes <z^k, w_i^k>, the contribution of each head to each latent.

  Args:
    rows: encoder rows.
    z: outputs of the heads.
    latents: the latents.
  """
  return _einsum("...kh,ikh->...ki", z, rows.W[jnp.asarray(latents)])


def by_source(
  rows: HeadRows,
  pattern: Float[Array, "B H T S"],
  v: Float[Array, "B S K h"],
  latents: Int[Array, "l"],
) -> Float[Array, "B T S l"]:
  """Computes sum_k A^k[t, s] <v^k[s], w_i^k>, the contribution of each source.

  Memory is B T S l numbers: slice the destinations of the pattern for long texts.

  Args:
    rows: encoder rows.
    pattern: attention patterns, of all destinations or some.
    v: values; heads that share them are adjacent.
    latents: the latents.
  """
  own = jnp.repeat(v, pattern.shape[1] // v.shape[2], axis=2)
  given = by_head(rows, own, latents)
  return _einsum("bkts,bski->btsi", pattern, given)


def attribution(
  model: Model,
  sae: SAE,
  layer: int,
  ids: Int[Array, "B T"],
  mask: Bool[Array, "B T"],
  latents: Int[Array, "l"],
) -> Attribution:
  """Attributes latents of a layer on texts to heads and source tokens.

  Args:
    model: the model.
    sae: SAE of the layer's site z.
    layer: number of the layer.
    ids: token ids.
    mask: which tokens are real.
    latents: the latents.

  Raises:
    InputError: the SAE is of another width, there is no such layer, or an id is
      outside the vocabulary.
  """
  rows = head_rows(sae, model.config.heads)
  _check_width(sae, model)
  indices.check("latents", latents, sae.n)
  z, v = taps.read(
    model, ids, mask, [f"layers.{layer}.z", f"layers.{layer}.v"]
  ).values()
  (pattern,) = taps.patterns(model, ids, mask, [layer])
  z, v = (h.astype(jnp.float32) for h in (z, v))
  latents = jnp.asarray(latents)
  heads = by_head(rows, z, latents)
  flat = z.reshape(*z.shape[:2], -1)
  W = rows.W[latents].reshape(len(latents), -1)
  a = _matmul(flat, W.T) + rows.c[latents]
  return Attribution(
    latents=np.asarray(latents),
    a=np.asarray(a),
    c=np.asarray(rows.c[latents]),
    by_head=np.asarray(heads),
    by_source=np.asarray(by_source(rows, pattern, v, latents)),
  )


# --- ablation at positions ------------------------------------------------------


def zeroed(sae: SAE, latents: Int[Array, "l"], rows: Bool[Array, "B T"]):
  """Returns the edit that sets latents to 0 at some tokens; the error is kept.

  Args:
    sae: the SAE of the site.
    latents: the latents; those of number n or more are none.
    rows: at which tokens.
  """
  on = jnp.zeros(sae.n, bool).at[jnp.asarray(latents)].set(True, mode="drop")
  edit = operators.edited(sae, Partial(_without, on))
  return edits.Edit(Partial(edits.at_rows, edit, jnp.asarray(rows), jnp.inf))


def _without(on: Bool[Array, "n"], z: Float[Array, "*b n"]) -> Array:
  return jnp.where(on, 0, z)


def ablation_effects(
  model: Model,
  sae: SAE,
  site: str,
  ids: Int[Array, "B T"],
  mask: Bool[Array, "B T"],
  *,
  rows: Bool[Array, "B T"],
  latents: Int[Array, "l"],
  measure: Callable[[Float[Array, "B T V"]], Float[Array, "B"]],
) -> Float[np.ndarray, "l B"]:
  """Computes how much of a measure is lost where each latent is set to 0.

  Args:
    model: the model.
    sae: the SAE of the site.
    site: name of the site.
    ids: token ids.
    mask: which tokens are real.
    rows: tokens at which latents are ablated, such as the second subject.
    latents: the latents, each ablated by itself.
    measure: a number per text of the logits, such as a logit difference.

  Returns:
    measure of the model - measure with the latent at 0.
  """

  def run(model, sae, latent):
    edit = zeroed(sae, latent[None], rows)
    return measure(taps.write(model, ids, mask, {site: edit}))

  @jax.jit
  def all_of_them(model, sae, latents):
    clean = run(model, sae, jnp.asarray(sae.n))
    return clean - jax.lax.map(lambda j: run(model, sae, j), latents)

  return np.asarray(all_of_them(model, sae, jnp.asarray(latents)))


def check_heads(sae: SAE, heads: int) -> None:
  """Refuses a number of heads that does not divide the width of an SAE.

  Args:
    sae: the SAE.
    heads: number of heads.

  Raises:
    InputError: see above.
  """
  if sae.d % heads:
    raise InputError(
      "heads",
      heads,
      f"must divide the width of the SAE, {sae.d}",
      "give the model's number of heads, and an SAE of the site z",
    )


def _check_width(sae: SAE, model: Model) -> None:
  width = model.config.heads * model.config.head
  if sae.d != width:
    raise InputError(
      "sae",
      sae.d,
      f"must have the width of all heads of {model.name}, {width}",
      "give an SAE of the site z",
    )
