"""The latents of two SAEs on the same rows, in one pass over a store.

For each latent of one SAE only its nearest c latents of the other are observed,
those of the largest cosines of decoder rows. With z the latents of a row:

  dot      sum over rows of z_i z_j, from which the correlation follows
  pattern  rows where latent i is not 0, by which of its nearest latents j are not 0
           on them too: 2^c numbers, from which the rows of any union follow

so that no array is [rows, n] or [n_a, n_b]. Both SAEs take 16 c + 8 2^c bytes per
latent (2.2 KB with c = 8), beside a batch, its active latents, and 32 bytes per
document. Cosines before the pass are computed for blocks of 2^24 pairs.

Decoder rows are `SAE.direction` scaled to unit norm: directions in the units of x,
whatever the prep. A prep that divides each row by a number of its own (a row layer
norm) leaves the direction of a latent the same for all rows, which is used.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from saejax.data.store.reader import Store
from saejax.evals import comparison, matching
from saejax.evals.comparison import Difference
from saejax.features import parts, reading, summary
from saejax.features.summary import Active, Summary
from saejax.sae import files, prep
from saejax.sae.latents import Latents
from saejax.sae.sae import SAE

NEAR = 8  # latents of the other SAE that are observed with each latent
MOST_NEAR = 12  # 2^12 numbers per latent
_COSINES = 2**24  # cosines in memory at once
_ENTRIES = 2**18  # active latents that are looked up at once


@dataclasses.dataclass(frozen=True, eq=False)
class Near:
  """The nearest latents of the other SAE, and joint activity with them.

  Attributes:
    latent: their numbers, by descending cosine.
    cosine: cosine of the decoder rows.
    dot: sum over rows of z_i z_j.
    pattern: rows where latent i is not 0; bit j of the column's number is set
      where nearest latent j is not 0 either.
  """

  latent: Int[np.ndarray, "n c"]
  cosine: Float[np.ndarray, "n c"]
  dot: Float[np.ndarray, "n c"]
  pattern: Int[np.ndarray, "n p"]

  def both(self) -> Int[np.ndarray, "n c"]:
    """Rows where a latent and each of its nearest are not 0."""
    bits = np.arange(self.pattern.shape[1])[:, None] >> np.arange(self.c) & 1
    return self.pattern @ bits

  def any_of(self, i: int, places: list[int]) -> int:
    """Rows where latent i and any of some of its nearest are not 0.

    Args:
      i: the latent.
      places: places among its nearest.
    """
    mask = sum(1 << j for j in places)
    hit = (np.arange(self.pattern.shape[1]) & mask) != 0
    return int(self.pattern[i, hit].sum())

  def merged(self, other: "Near") -> "Near":
    """Joint activity on the rows of both.

    Args:
      other: of other rows and the same latents.
    """
    return dataclasses.replace(
      self, dot=self.dot + other.dot, pattern=self.pattern + other.pattern
    )

  @property
  def c(self) -> int:
    """Number of nearest latents."""
    return self.latent.shape[1]


@dataclasses.dataclass(frozen=True, eq=False)
class Pairs:
  """Two SAEs on the same rows; index 0 is SAE a, and 1 SAE b.

  Attributes:
    directions: decoder rows in units of x, of unit norm [n, d] each.
    summaries: counts, sums and top rows of all latents of each.
    near: the latents of a with their nearest of b, and those of b.
    documents: numbers of the documents [D].
    error: sum over the rows of each document of |x - x_hat|^2 [2, D].
    about_mean: that of |x - mean|^2, with the mean of the rows [D].
  """

  directions: tuple[np.ndarray, np.ndarray]
  summaries: tuple[Summary, Summary]
  near: tuple[Near, Near]
  documents: Int[np.ndarray, "D"]
  error: Float[np.ndarray, "2 D"]
  about_mean: Float[np.ndarray, "D"]

  @property
  def live(self) -> tuple[np.ndarray, np.ndarray]:
    """Masks of the latents that are not 0 on any row, of each SAE."""
    a, b = self.summaries
    return a.count > 0, b.count > 0

  def fvu(self, side: int) -> float:
    """sum |x - x_hat|^2 / sum |x - mean|^2, in units of x.

    Args:
      side: 0 or 1.
    """
    return float(self.error[side].sum() / self.about_mean.sum())

  def fvu_difference(self) -> Difference:
    """FVU of a - FVU of b, with the bootstrap interval over documents."""
    return comparison.resampled(self.error[0] - self.error[1], self.about_mean)

  def correlation(self, side: int) -> Float[np.ndarray, "n c"]:
    """Pearson correlation over rows of each latent with its nearest.

    NaN where one of both is constant.

    Args:
      side: 0 for the latents of a, 1 for those of b.
    """
    mine, other, near = (
      self.summaries[side],
      self.summaries[1 - side],
      self.near[side],
    )
    rows = max(mine.rows, 1)
    mean, spread = _moments(mine, rows)
    means, spreads = (of[near.latent] for of in _moments(other, rows))
    with np.errstate(divide="ignore", invalid="ignore"):
      return (near.dot / rows - mean[:, None] * means) / (
        spread[:, None] * spreads
      )


def _moments(found: Summary, rows: int) -> tuple[np.ndarray, np.ndarray]:
  """Mean and standard deviation of each latent over rows."""
  mean = found.sum / rows
  return mean, np.sqrt(np.maximum(found.square / rows - mean**2, 0))


def directions(sae: SAE) -> Float[np.ndarray, "n d"]:
  """Decoder rows in the units of x, scaled to unit norm; see the module.

  Args:
    sae: the SAE.

  Raises:
    NotImplementedError: the prep turns directions row by row.
  """
  if isinstance(sae.prep, prep.RowLayerNorm | prep.RowNorm):
    return matching.unit(np.asarray(sae.W_dec))
  return matching.unit(np.asarray(sae.direction(np.arange(sae.n))))


def nearest(
  a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m d"], count: int
) -> tuple[Int[np.ndarray, "n c"], Float[np.ndarray, "n c"]]:
  """The rows of b of the largest cosines with each row of a.

  Args:
    a, b: rows of unit norm.
    count: number of rows; at most those of b are found.

  Returns:
    (their numbers by descending cosine, the cosines).
  """
  count = min(count, len(b))
  found, cosines = [], []
  block = max(1, _COSINES // len(b))
  for start in range(0, len(a), block):
    cosine = a[start : start + block] @ b.T
    some = np.argpartition(-cosine, count - 1, axis=1)[:, :count]
    value = np.take_along_axis(cosine, some, 1)
    order = np.lexsort((some, -value), axis=1)
    found.append(np.take_along_axis(some, order, 1))
    cosines.append(np.take_along_axis(value, order, 1))
  return np.concatenate(found), np.concatenate(cosines)


def observe(
  a: SAE,
  b: SAE,
  store: Store,
  *,
  near: int = NEAR,
  top: int = 5,
  batch_rows: int = 4096,
  progress: Callable[[int], None] = lambda rows: None,
  kept: parts.Pass | None = None,
) -> Pairs:
  """Observes two SAEs over a store, which is read once, in order.

  Args:
    a, b: SAEs of the site of the store, in the inference form.
    store: the rows, with the column doc.
    near: latents of the other SAE observed with each latent, at most 12.
    top: number of rows kept for each latent.
    batch_rows: largest number of rows on the device at once.
    progress: called with the number of rows read.
    kept: folder in which a stopped pass is resumed; None for none.

  Raises:
    NotImplementedError: as `directions`.
    ValueError: near is not in [1, 12].
    InputError: as `parts.total`.
    parts.Unfinished: other processes are not done.
  """
  if not 1 <= near <= MOST_NEAR:
    raise ValueError(f"near must be in [1, {MOST_NEAR}], got {near}")
  batch_rows = min(summary.most_rows(sae, batch_rows) for sae in (a, b))
  settings = {"near": near, "top": top, "batch_rows": batch_rows}
  rows = directions(a), directions(b)
  intervals = reading.intervals(store, batch_rows)
  total = parts.total(
    kept,
    _Observing((a, b), store, rows, **settings),
    intervals,
    lambda: reading.identity(
      "pairs", a, store, **settings, b=files.checksum(b)
    ),
    lambda number: progress(intervals[number][0]),
  )
  progress(store.rows)
  return Pairs(
    directions=rows,
    summaries=(total.a, total.b),
    near=(total.near_a, total.near_b),
    documents=total.doc,
    error=total.sums[:, :2].T,
    about_mean=total.sums[:, 2],
  )


@dataclasses.dataclass(frozen=True, eq=False)
class _Sums:
  """The sums of a pass: of each SAE, and of each document."""

  a: Summary
  b: Summary
  near_a: Near
  near_b: Near
  doc: Int[np.ndarray, "D"]
  sums: Float[np.ndarray, "D 3"]


@dataclasses.dataclass(frozen=True, eq=False)
class _Observing(parts.Work[_Sums, tuple[int, int]]):
  """Two SAEs over intervals of rows."""

  saes: tuple[SAE, SAE]
  store: Store
  directions: tuple[np.ndarray, np.ndarray]
  near: int
  top: int
  batch_rows: int

  def nothing(self) -> _Sums:
    (a, b), (rows_a, rows_b) = self.saes, self.directions
    none = lambda n: summary.of_entries(np.arange(n), 0, summary.NONE, self.top)
    return _Sums(
      a=none(a.n),
      b=none(b.n),
      near_a=_empty(*nearest(rows_a, rows_b, self.near), a.n),
      near_b=_empty(*nearest(rows_b, rows_a, self.near), b.n),
      doc=np.zeros(0, np.int64),
      sums=np.zeros((0, 3)),
    )

  @functools.cached_property
  def _mean(self) -> Array:
    return jnp.asarray(self.store.stats["mean"], jnp.float32)

  def added(self, total: _Sums, batch: tuple[int, int]) -> _Sums:
    numbers, x = np.arange(*batch), self.store.read(*batch)
    padded, _ = reading.pad(x, self.batch_rows)
    found, errors, use = _forward(*self.saes, padded, self._mean)
    use = np.asarray(use)[: len(x)]
    in_a, in_b = (summary.of_latents(z, use, numbers) for z in found)
    _add(total.near_a, in_a, in_b, self.saes[1].n)
    _add(total.near_b, in_b, in_a, self.saes[0].n)
    own = self.store.read(*batch, "doc")[use]
    more = np.asarray(errors, np.float64)[: len(x)][use]
    doc, sums = _by_document(
      np.concatenate([total.doc, own]), np.concatenate([total.sums, more])
    )
    return dataclasses.replace(
      total,
      a=self._with(total.a, in_a),
      b=self._with(total.b, in_b),
      doc=doc,
      sums=sums,
    )

  def _with(self, total: Summary, part: Active) -> Summary:
    entries = part.latent, part.value, part.row
    more = summary.of_entries(total.latents, part.rows, entries, self.top)
    return total.merged(more)

  def merged(self, total: _Sums, other: _Sums) -> _Sums:
    doc, sums = _by_document(
      np.concatenate([total.doc, other.doc]),
      np.concatenate([total.sums, other.sums]),
    )
    return _Sums(
      total.a.merged(other.a),
      total.b.merged(other.b),
      total.near_a.merged(other.near_a),
      total.near_b.merged(other.near_b),
      doc,
      sums,
    )

  def arrays(self, total: _Sums) -> dict[str, np.ndarray]:
    return parts.flat(total)

  def restored(self, arrays: dict[str, np.ndarray]) -> _Sums:
    return parts.filled(self.nothing(), arrays)


def _empty(latent: np.ndarray, cosine: np.ndarray, n: int) -> Near:
  c = latent.shape[1]
  return Near(latent, cosine, np.zeros((n, c)), np.zeros((n, 2**c), np.int64))


@jax.jit
def _forward(
  a: SAE, b: SAE, x: Float[Array, "B d"], mean: Float[Array, "d"]
) -> tuple[tuple[Latents, Latents], Float[Array, "B 3"], Array]:
  """Latents of both; their errors and |x - mean|^2; which rows are finite."""
  finite = jnp.all(jnp.isfinite(x), axis=-1)
  clean = jnp.where(finite[:, None], x, 0).astype(jnp.float32)
  outs = a.forward(clean), b.forward(clean)
  targets = [
    sae.prep.undo(out.x_hat, out.statistics).astype(jnp.float32)
    for sae, out in zip((a, b), outs, strict=True)
  ]
  square = lambda y: jnp.sum((clean - y) ** 2, axis=-1)
  errors = jnp.stack([*map(square, targets), square(mean[None])], axis=-1)
  return (outs[0].latents, outs[1].latents), errors, finite


def _by_document(
  doc: Int[np.ndarray, "R"], sums: Float[np.ndarray, "R 3"]
) -> tuple[np.ndarray, np.ndarray]:
  """Documents, ascending, with the sums over their rows."""
  found, at = np.unique(doc, return_inverse=True)
  columns = [np.bincount(at, column, len(found)) for column in sums.T]
  return found, np.stack(columns, axis=-1)


def _add(near: Near, mine: Active, other: Active, n: int) -> None:
  """Adds rows in place: a copy for each part would take the time."""
  keys = other.row * n + other.latent
  order = np.argsort(keys)
  keys, values = keys[order], other.value[order].astype(np.float64)
  place = np.arange(near.c)
  for start in range(0, len(mine.latent), _ENTRIES):
    part = slice(start, start + _ENTRIES)
    latent, value = mine.latent[part], mine.value[part]
    wanted = mine.row[part, None] * n + near.latent[latent]
    at = np.minimum(np.searchsorted(keys, wanted), max(len(keys) - 1, 0))
    hit = keys[at] == wanted if len(keys) else np.zeros(wanted.shape, bool)
    np.add.at(near.pattern, (latent, (hit << place).sum(axis=1)), 1)
    entry, j = np.nonzero(hit)
    product = value[entry] * values[at[entry, j]]
    np.add.at(near.dot, (latent[entry], j), product)
