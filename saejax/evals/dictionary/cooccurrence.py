"""How often latents are active in the same blocks of text, and affinities of it.

A latent is on in a block of tokens if z exceeds a threshold on any of them. Over N
blocks, latents i and j have the counts n11 (both are on), n10, n01 and n00, and

  jaccard  n11 / (n11 + n10 + n01)
  dice     2 n11 / (2 n11 + n10 + n01)
  overlap  n11 / min(n1., n.1)
  simple   (n11 + n00) / N
  phi      (n11 n00 - n10 n01) / sqrt(n1. n0. n.1 n.0)

phi is the Pearson correlation of the two 0/1 vectors; as an affinity, which must not
be negative, it is phi + 1. Where a denominator is 0, a value is 0.

One pass over a store whose rows are in the order of documents. Its memory is two
[n, n] arrays, whatever the number of tokens, and 24 bytes per row of provenance.

References:
  Li et al., The Geometry of Concepts: Sparse Autoencoder Feature Structure, 2024,
  arXiv:2410.19750. Their threshold of 1 is of the scale of Gemma Scope.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from saejax.data.store.reader import Store
from saejax.errors import InputError
from saejax.features import parts, reading, summary
from saejax.sae.sae import SAE

BLOCK = 256  # tokens
THRESHOLD = 1.0
LIMIT = 16384  # latents; n^2 counts of 4 bytes are 1 GiB
_LATER = 1024  # blocks that are multiplied together
_ROWS = 1024  # rows of an affinity that are computed together


@dataclasses.dataclass(frozen=True, eq=False)
class Counts:
  """In how many blocks pairs of latents are on.

  Attributes:
    latents: numbers of the latents, ascending.
    blocks: number of blocks N.
    both: n11 of each pair; on the diagonal, the blocks where a latent is on.
  """

  latents: Int[np.ndarray, "n"]
  blocks: int
  both: Int[np.ndarray, "n n"]

  @property
  def on(self) -> Int[np.ndarray, "n"]:
    """Number of blocks where each latent is on."""
    return np.diagonal(self.both)

  @property
  def live(self) -> "Counts":
    """The latents that are on in at least one block."""
    used = np.flatnonzero(self.on)
    return Counts(
      self.latents[used], self.blocks, self.both[np.ix_(used, used)]
    )


def count(
  on: Iterable[Bool[np.ndarray, "b n"]], latents: Sequence[int] | np.ndarray
) -> Counts:
  """Counts over blocks that are given in batches.

  Args:
    on: whether each latent is on in each block.
    latents: numbers of the latents, ascending.

  Raises:
    InputError: there are more than 16384 latents.

  >>> count([np.array([[True, True], [False, True]])], [0, 1]).both.tolist()
  [[1, 1], [1, 2]]
  """
  total = _nothing(_checked(latents))
  for batch in on:
    total = total.with_blocks(np.asarray(batch, bool))
  return total.counts()


def observe(
  sae: SAE,
  store: Store,
  *,
  latents: Sequence[int] | np.ndarray | None = None,
  threshold: float = THRESHOLD,
  block: int = BLOCK,
  batch_rows: int = 4096,
  kept: parts.Pass | None = None,
) -> Counts:
  """Counts over the blocks of a store, which is read once, in order.

  A block is `block` successive rows of a document; the rest of a document is left
  out.

  Args:
    sae: the SAE, in the inference form.
    store: rows in the order of documents, such as the held-out store of a
      harvest, with the column doc.
    latents: numbers of the latents; all by default.
    threshold: z above which a latent is on; of the scale of the SAE.
    block: tokens of a block.
    batch_rows: largest number of rows on the device at once.
    kept: folder in which a stopped pass is resumed; None for none.

  Raises:
    InputError: there are more than 16384 latents or no such latent, the rows are
      shuffled, or no document has a whole block; or as `parts.total`.
    parts.Unfinished: other processes are not done.
  """
  wanted = _checked(range(sae.n) if latents is None else latents)
  if len(wanted) and not 0 <= wanted[0] <= wanted[-1] < sae.n:
    rule = f"must be in [0, {sae.n})"
    raise InputError("latents", wanted, rule, f"use at most {sae.n - 1}")
  place = blocks(store.whole("doc")["doc"], block)
  settings = {"threshold": float(threshold), "batch_rows": batch_rows}
  return parts.total(
    kept,
    _Counting(sae, store, wanted, place, **settings),
    _batches(place, max(1, batch_rows // block)),
    lambda: reading.identity(
      "cooccurrence",
      sae,
      store,
      latents=wanted.tolist(),
      block=block,
      **settings,
    ),
  ).counts()


def blocks(
  doc: Int[np.ndarray, "rows"], block: int = BLOCK
) -> Int[np.ndarray, "rows"]:
  """The block of each row, from 0; -1 for rows of no whole block.

  Args:
    doc: document of each row, in the order of the text.
    block: tokens of a block.

  Raises:
    InputError: block is below 1, the rows of a document are not adjacent, or no
      document has a whole block.

  >>> blocks(np.array([7, 7, 7, 4, 4]), 2).tolist()
  [0, 0, -1, 1, 1]
  """
  if block < 1:
    raise InputError("block", block, "must be at least 1", "use 256")
  first = np.flatnonzero(np.diff(doc, prepend=doc[:1] - 1))
  if len(np.unique(doc[first])) < len(first):
    raise InputError(
      "store",
      f"{len(first):,} runs of rows of {len(np.unique(doc)):,} documents",
      "must have the rows of each document one after another",
      "use the held-out store of a harvest, or one without a shuffle",
    )
  size = np.diff(first, append=len(doc))
  rank = np.arange(len(doc)) - np.repeat(first, size)
  whole = np.repeat(size // block, size)
  if not whole.any():
    raise InputError(
      "block",
      block,
      f"must be at most the rows of a document, {size.max(initial=0)}",
      "use shorter blocks",
    )
  before = np.cumsum(size // block) - size // block
  found = np.repeat(before, size) + rank // block
  return np.where(rank // block < whole, found, -1)


def _batches(
  place: Int[np.ndarray, "rows"], count: int
) -> list[tuple[int, int]]:
  """(start, stop) of the places of rows of every `count` blocks."""
  inside = np.flatnonzero(place >= 0)
  number = place[inside] // count
  start = np.flatnonzero(np.diff(number, prepend=-1))
  stop = np.append(start[1:], len(inside)) - 1
  return [
    (int(a), int(b) + 1)
    for a, b in zip(inside[start], inside[stop], strict=True)
  ]


def _checked(latents: Any) -> Int[np.ndarray, "n"]:
  found = np.unique(np.asarray(latents, np.int64))
  if len(found) > LIMIT:
    raise InputError(
      "latents",
      f"{len(found):,}",
      f"must be at most {LIMIT:,}: counts are of pairs",
      "name some, such as those that are active the most often",
    )
  return found


@dataclasses.dataclass(frozen=True, eq=False)
class _Sums:
  """Counts, and the latest blocks, which are multiplied together."""

  latents: Int[np.ndarray, "n"]
  blocks: int
  both: Int[np.ndarray, "n n"]
  later: Bool[np.ndarray, "b n"]

  def with_blocks(self, on: Bool[np.ndarray, "b n"]) -> "_Sums":
    """With further blocks; `both` is not used again."""
    found = dataclasses.replace(
      self,
      blocks=self.blocks + len(on),
      later=np.concatenate([self.later, on]),
    )
    return found if len(found.later) < _LATER else found.joined()

  def joined(self) -> "_Sums":
    """With the latest blocks among the counts."""
    both = self.both
    for start in range(0, len(self.later), _LATER):
      part = self.later[start : start + _LATER].astype(np.float32)
      both += (part.T @ part).astype(np.int32)  # whole numbers, exact
    return dataclasses.replace(self, both=both, later=self.later[:0])

  def counts(self) -> Counts:
    """All counts."""
    return Counts(self.latents, self.blocks, self.joined().both)


def _nothing(latents: Int[np.ndarray, "n"]) -> _Sums:
  n = len(latents)
  return _Sums(latents, 0, np.zeros((n, n), np.int32), np.zeros((0, n), bool))


@dataclasses.dataclass(frozen=True, eq=False)
class _Counting(parts.Work[_Sums, tuple[int, int]]):
  """Counts over intervals of the places of rows, each of whole blocks."""

  sae: SAE
  store: Store
  latents: Int[np.ndarray, "n"]
  place: Int[np.ndarray, "rows"]
  threshold: float
  batch_rows: int

  def nothing(self) -> _Sums:
    return _nothing(self.latents)

  def added(self, total: _Sums, batch: tuple[int, int]) -> _Sums:
    x = np.concatenate(self.store.read_many(_rows(self.store, *batch)))
    own = self.place[slice(*batch)]
    x, own = x[own >= 0], own[own >= 0]
    on = np.zeros((own[-1] - own[0] + 1, len(self.latents)), bool)
    for part in summary.active(self.sae, own - own[0], x, self.batch_rows):
      latent, value, block = part.among(self.latents)
      high = value > self.threshold
      on[block[high], latent[high]] = True
    return total.with_blocks(on)

  def merged(self, total: _Sums, other: _Sums) -> _Sums:
    both = total.joined().both + other.joined().both
    blocks_ = total.blocks + other.blocks
    return dataclasses.replace(
      total, blocks=blocks_, both=both, later=total.later[:0]
    )

  def arrays(self, total: _Sums) -> dict[str, np.ndarray]:
    return parts.flat(total)

  def restored(self, arrays: dict[str, Any]) -> _Sums:
    return parts.filled(self.nothing(), arrays)


def _rows(store: Store, start: int, stop: int) -> list[tuple[int, int]]:
  """Intervals of row numbers of places among the rows; buckets may leave gaps."""
  found, before = [], 0
  for first, last in store.intervals:
    low, high = max(start - before, 0), min(stop - before, last - first)
    if low < high:
      found.append((first + low, first + high))
    before += last - first
  return found


# --- affinities --------------------------------------------------------------


def _jaccard(n11, a, b, N):
  return _ratio(n11, a + b - n11)


def _dice(n11, a, b, N):
  return _ratio(2 * n11, a + b)


def _overlap(n11, a, b, N):
  return _ratio(n11, np.minimum(a, b))


def _simple(n11, a, b, N):
  return _ratio(N - a - b + 2 * n11, N)


def _phi(n11, a, b, N):
  # n11 n00 - n10 n01 = N n11 - n1. n.1; float64 holds them below 2^53.
  return _ratio(N * n11 - a * b, np.sqrt(a * (N - a)) * np.sqrt(b * (N - b)))


def _ratio(above, below):
  return np.divide(
    above,
    below,
    out=np.zeros(np.broadcast_shapes(np.shape(above), np.shape(below))),
    where=below != 0,
  )


AFFINITIES: dict[str, Callable[..., np.ndarray]] = {
  "jaccard": _jaccard,
  "dice": _dice,
  "overlap": _overlap,
  "simple": _simple,
  "phi": lambda *counts: _phi(*counts) + 1,
}


def affinity(counts: Counts, kind: str = "phi") -> Float[np.ndarray, "n n"]:
  """Computes an affinity of all pairs of latents, at least 0, in float32.

  Args:
    counts: the counts.
    kind: jaccard, dice, overlap, simple or phi (plus 1); see the module.

  Raises:
    InputError: there is no such kind.
  """
  if kind not in AFFINITIES:
    rule = f"must be one of {', '.join(AFFINITIES)}"
    raise InputError("affinity", kind, rule, "use phi")
  return _pairs(counts, AFFINITIES[kind], np.float32)


def phi(counts: Counts) -> Float[np.ndarray, "n n"]:
  """Computes phi of all pairs of latents, in [-1, 1].

  Args:
    counts: the counts.
  """
  return _pairs(counts, _phi, np.float64)


def _pairs(counts: Counts, value: Callable[..., np.ndarray], dtype) -> Any:
  both, on = counts.both, counts.on.astype(np.float64)
  found = np.empty(both.shape, dtype)
  for start in range(0, len(both), _ROWS):
    part = slice(start, start + _ROWS)
    n11 = both[part].astype(np.float64)
    found[part] = value(n11, on[part, None], on[None], float(counts.blocks))
  return found
