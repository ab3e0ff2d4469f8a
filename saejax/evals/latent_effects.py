"""What one latent does to the model: ablation, and gradient times activation.

On a window of text around a row where latent j is active, with x the activations
of the site and L the mean cross-entropy of the next token over the window, in nats,

  ablation      L(x with z_j = 0) - L(x)
  attribution   a_j(t) = z_j(t) dL/dz_j(t) = z_j(t) <dL/dx_t, d_j>

where d_j is what a unit of the latent adds to the reconstruction at token t. Both
keep the SAE's error: x' = x + decode(z') - decode(z), see `operators.without`. So
a_j(t) is the part of the loss that the latent adds at token t, to first order, and

  L(x with z_j = 0) - L(x) = - sum_t a_j(t) + O(z_j^2).

An embedding model has no loss; with e and e' its embeddings of the window the
ablation is 1 - <e, e'>. Its derivative at z is 0, so that it has no attribution.

A window is read by itself, after the special tokens of the harvest. Only tokens that
are rows of a harvest are edited, and only their predictions are counted. Several
windows, of different latents, are one batch; the gradient of a window serves all
latents that are shown on it.

References:
  Shrikumar et al., Not Just a Black Box, 2016, arXiv:1605.01713 (gradient times
  input).
  Marks et al., Sparse Feature Circuits, 2024, arXiv:2403.19647, section 3 (for
  latents of SAEs, with the error kept).
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int

from saejax.data.store.reader import Store
from saejax.data.text import neighbours, rules
from saejax.errors import InputError
from saejax.evals import embeddings
from saejax.interventions import operators
from saejax.models import edits as edits_lib
from saejax.models import family, stack, taps
from saejax.models.model import Model
from saejax.sae.latents import DenseLatents, SparseLatents
from saejax.sae.sae import SAE

TOKENS = 32  # of a window, special tokens apart
_PAIRS = (
  16  # pairs of a batch are padded to a multiple, so that few are compiled
)
Progress = Callable[[int, int], None]  # windows done, of how many


@dataclasses.dataclass(frozen=True, eq=False)
class Windows:
  """Windows of text, each around one row of a store, padded to one length.

  Attributes:
    ids: tokens with those around windows [W, T].
    mask: which tokens are real [W, T].
    keep: which tokens are rows [W, T].
    row: row number of each token in the store, -1 for others [W, T].
    limit: largest norm of a row.
  """

  ids: Int[np.ndarray, "W T"]
  mask: Bool[np.ndarray, "W T"]
  keep: Bool[np.ndarray, "W T"]
  row: Int[np.ndarray, "W T"]
  limit: float

  def __len__(self) -> int:
    return len(self.ids)


def windows(
  store: Store, rows: Sequence[int], *, before: int = 14, after: int = 10
) -> Windows:
  """Reads the windows around rows of a store, of at least 32 tokens.

  Tokens are those of the store: what a harvest dropped is missing in between.

  Args:
    store: store of text with the rules of its rows.
    rows: row numbers.
    before, after: least number of tokens around a row. The rest of the 32 are
      before it.

  Raises:
    InputError: the store is not of text.
  """
  chosen = rules.from_store(store)
  prefix, suffix = store.meta["prefix"], store.meta["suffix"]
  before = max(before, TOKENS - 1 - after)
  T = len(prefix) + before + 1 + after + len(suffix)
  ids = np.zeros((len(rows), T), np.int32)
  mask, own = np.zeros((2, len(rows), T), bool)
  row = np.full((len(rows), T), -1, np.int64)
  for i, number in enumerate(rows):
    near = neighbours.window(store, int(number), before, after)
    start, stop = len(prefix), len(prefix) + len(near.tokens)
    ids[i, :start], ids[i, start:stop] = prefix, near.tokens
    ids[i, stop : stop + len(suffix)] = suffix
    mask[i, : stop + len(suffix)] = own[i, start:stop] = True
    row[i, start:stop] = near.rows
  dropped = chosen.dropped(ids, own, np.arange(T)[None])
  keep = own & ~np.any(list(dropped.values()), axis=0)
  return Windows(ids, mask, keep, row, chosen.limits[0])


@dataclasses.dataclass(frozen=True, eq=False)
class Ablation:
  """The effect of each latent on its window, P pairs of both.

  Attributes:
    change: of the loss in nats per token, or 1 - cosine of the embedding [P].
    value: largest value of the latent on the window [P].
  """

  change: Float[np.ndarray, "P"]
  value: Float[np.ndarray, "P"]


def ablate(
  model: Model,
  sae: SAE,
  site: str,
  found: Windows,
  latents: Int[np.ndarray, "P"],
  which: Int[np.ndarray, "P"],
  *,
  batch_windows: int = 16,
  progress: Progress | None = None,
) -> Ablation:
  """Measures what becomes of the output where a latent is 0.

  Each pair costs two forward passes of its window.

  Args:
    model: the model.
    sae: the SAE of the site, in the inference form.
    site: name of the site, in any of the forms of `models.taps`.
    found: the windows.
    latents: latent of each pair.
    which: window of each pair.
    batch_windows: windows in a forward pass.
    progress: called after each batch.

  Raises:
    InputError: there is no such site, the model is causal without a head, or
      the SAE is a transcoder.
  """
  site = _checked(model, sae, site)
  change, value = [], []
  for some in _blocks(len(which), batch_windows):
    w = which[some]
    arrays = (found.ids[w], found.mask[w], found.keep[w])
    limit = np.float32(found.limit)
    parts = _ablated(model, sae, site, latents[some], *arrays, limit)
    for total, part in zip((change, value), parts, strict=True):
      total.append(np.asarray(part))
    if progress is not None:
      progress(min(len(which), batch_windows * len(change)), len(which))
  joined = [np.concatenate(a)[: len(which)] if a else np.zeros(0) for a in
            (change, value)]  # fmt: skip
  return Ablation(*joined)


@partial(jax.jit, static_argnames="site")
def _ablated(
  model: Model,
  sae: SAE,
  site: str,
  latents: Int[Array, "B"],
  ids: Int[Array, "B T"],
  mask: Bool[Array, "B T"],
  keep: Bool[Array, "B T"],
  limit: Float[Array, ""],
) -> tuple[Float[Array, "B"], Float[Array, "B"]]:
  """Change and largest value of the latent of each window."""
  at = {}

  def read(h: Array) -> Array:
    at["h"] = h
    return h

  clean = model.hidden(ids, mask, tap=stack.Edits({site: read}))
  x = _rows(at["h"])
  each = jnp.broadcast_to(latents[:, None], ids.shape)
  z = operators.values(sae.forward(x).latents, each)
  z = jnp.where(keep & (jnp.linalg.norm(x, axis=-1) <= limit), z, 0)
  edit = edits_lib.prepared(operators.without(sae, latents))
  kept = edit.replace(function=Partial(edits_lib.at_rows, edit, keep, limit))
  changed = taps.hidden(model, ids, mask, {site: kept})
  if model.causal:
    before, after = (_loss(model, ids, mask, keep, h) for h in (clean, changed))
    return after - before, z.max(axis=1)
  pair = (embeddings.pooled(h, mask) for h in (clean, changed))
  # 1 - <e, e'> of unit vectors, without the loss of digits near 1.
  e, other = pair
  return jnp.sum(jnp.square(e - other), axis=-1) / 2, z.max(axis=1)


def attribute(
  model: Model,
  sae: SAE,
  site: str,
  found: Windows,
  latents: Int[np.ndarray, "P"],
  which: Int[np.ndarray, "P"],
  *,
  batch_windows: int = 16,
  progress: Progress | None = None,
) -> Float[np.ndarray, "P T"]:
  """Computes gradient times activation, a_j(t), of latents on windows.

  Each window costs one forward and one backward pass, whatever the number of
  its latents. Tokens that are no rows have 0.

  Args:
    model: a causal language model.
    sae, site, found, batch_windows, progress: as for `ablate`.
    latents: latent of each pair.
    which: window of each pair, ascending.

  Raises:
    InputError: as `ablate`, or the model is an encoder.
  """
  if not model.causal:
    raise InputError(
      "attribution",
      model.name,
      "must be of a model that predicts the next token; the cosine with the own "
      "embedding has the derivative 0",
      "leave attribution out, or ablate",
    )
  site = _checked(model, sae, site)
  total = np.zeros((len(which), found.ids.shape[1]), np.float32)
  for some in _blocks(len(found), batch_windows):
    first, last = some[0], min(some[0] + batch_windows, len(found))
    start, stop = np.searchsorted(which, [first, last])
    pad = -(stop - start) % _PAIRS
    j = np.pad(latents[start:stop], (0, pad))
    w = np.pad(which[start:stop] - first, (0, pad))
    arrays = (found.ids[some], found.mask[some], found.keep[some])
    limit = np.float32(found.limit)
    a = _attributed(model, sae, site, j, w, *arrays, limit)
    total[start:stop] = np.asarray(a)[: stop - start]
    if progress is not None:
      progress(last, len(found))
  return total


@partial(jax.jit, static_argnames="site")
def _attributed(
  model: Model,
  sae: SAE,
  site: str,
  latents: Int[Array, "P"],
  which: Int[Array, "P"],
  ids: Int[Array, "B T"],
  mask: Bool[Array, "B T"],
  keep: Bool[Array, "B T"],
  limit: Float[Array, ""],
) -> Float[Array, "P T"]:
  """a_j(t) of pairs of a window of the batch and a latent."""
  shape = family.shape(model.config, taps.parse(site, model.family)[1])

  def total(shift: Array) -> tuple[Array, Array]:
    at = {}

    def moved(h: Array, context: edits_lib.Context) -> Array:
      at["h"] = h
      return h + shift.astype(h.dtype)

    h = taps.hidden(model, ids, mask, {site: edits_lib.Edit(moved)})
    # The loss of a window has no gradient at another.
    return jnp.sum(_loss(model, ids, mask, keep, h)), at["h"]

  zeros = jnp.zeros((*ids.shape, *shape), jnp.float32)
  slope, h = jax.grad(total, has_aux=True)(zeros)
  x = _rows(h)
  rows = keep & (jnp.linalg.norm(x, axis=-1) <= limit)
  out = sae.forward(x)
  undo = lambda y: sae.prep.undo(y, out.statistics)
  _, back = jax.vjp(undo, jnp.zeros_like(out.x_hat))
  (slope,) = back(_rows(slope))
  z, W = out.latents, sae.W_dec
  z = z if isinstance(z, SparseLatents) else DenseLatents(z.dense())

  def one(pair: tuple[Array, Array]) -> Array:
    w, j = pair
    mine = jax.tree.map(lambda a: a[w], z)
    value = operators.values(mine, jnp.broadcast_to(j, ids.shape[1:]))
    return jnp.where(rows[w], value * (slope[w] @ W[j]), 0)

  return jax.lax.map(one, (which, latents))


def _checked(model: Model, sae: SAE, site: str) -> str:
  """The name of the site; refuses what cannot be edited there."""
  operators.splice(sae)  # refuses a transcoder
  if model.causal:
    _ = model.head
  layer, point = taps.parse(site, model.family)
  width = int(np.prod(family.shape(model.config, point)))
  if width != sae.d:
    raise InputError(
      "model",
      model.name,
      f"must have activations of the width of the SAE, {sae.d}, at {site}, not "
      f"{width}",
      "give the model of the SAE",
    )
  return taps.resolve(model, layer, point).name


def _blocks(count: int, size: int) -> Iterator[np.ndarray]:
  """Indices of batches of one size; the last repeats its first entry."""
  for start in range(0, count, size):
    some = np.arange(start, start + size)
    yield np.where(some < count, some, start)


def _rows(h: Float[Array, "B T ..."]) -> Float[Array, "B T d"]:
  return h.reshape(*h.shape[:2], -1).astype(jnp.float32)


def _loss(
  model: Model,
  ids: Int[Array, "B T"],
  mask: Bool[Array, "B T"],
  keep: Bool[Array, "B T"],
  h: Float[Array, "B T d"],
) -> Float[Array, "B"]:
  """Mean cross-entropy of the next token after rows; logits of one at a time."""

  @jax.checkpoint
  def window(at: tuple[Array, Array, Array]) -> Array:
    ids, counted, h = at
    logits = model.logits(h[None, :-1]).astype(jnp.float32)[0]
    log_p = jax.nn.log_softmax(logits, axis=-1)
    of_next = jnp.take_along_axis(log_p, ids[1:, None], axis=1)[:, 0]
    count = jnp.maximum(jnp.sum(counted, dtype=jnp.float32), 1)
    return -jnp.sum(jnp.where(counted, of_next, 0)) / count

  return jax.lax.map(window, (ids, keep[:, :-1] & mask[:, 1:], h))
