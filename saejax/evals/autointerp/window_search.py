"""Finds the windows of a store on which latents are active, in one pass.

Of each latent two sets of windows are kept: the strongest, and a uniform sample of all
by a hash of their place, so that memory is the same for any number of tokens. A window
is cut at multiples of T tokens of a document, and has the latent's largest value on
them, whatever the order of the rows.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int

from saejax.data.store.reader import Store
from saejax.errors import InputError
from saejax.evals.autointerp.windows import LENGTH
from saejax.features import activity, parts, reading, summary
from saejax.sae.sae import SAE

_CUTS = 2**24  # windows of a document at most, in the hash of a window's place


@dataclasses.dataclass(frozen=True, eq=False)
class Found:
  """Windows on which some latents are active; all arrays [e].

  Attributes:
    place: place of the latent among those asked for, ascending.
    doc: document.
    cut: number of the window in it, position // T.
    pos: position of the token where the latent is largest.
    row: its row number.
    value: the latent there.
    draw: hash of the window, by which the sample is taken.
    sampled: whether the window is in the uniform sample, or only strong.
  """

  place: Int[np.ndarray, "e"]
  doc: Int[np.ndarray, "e"]
  cut: Int[np.ndarray, "e"]
  pos: Int[np.ndarray, "e"]
  row: Int[np.ndarray, "e"]
  value: Float[np.ndarray, "e"]
  draw: Int[np.ndarray, "e"]
  sampled: Bool[np.ndarray, "e"]

  def only(self, place: int) -> "Found":
    """Those of one latent, the strongest first.

    Args:
      place: its place.
    """
    (at,) = np.nonzero(self.place == place)
    return self.chosen(at[np.lexsort((self.row[at], -self.value[at]))])

  def chosen(self, which: np.ndarray) -> "Found":
    """Those at some places of the arrays.

    Args:
      which: places, or a mask.
    """
    return Found(*(getattr(self, f.name)[which] for f in _FIELDS))

  def apart(self, length: int = LENGTH) -> "Found":
    """Without those nearer than a window to a stronger one of the same latent.

    Centred windows of the rest do not overlap.

    Args:
      length: tokens of a window.
    """
    order = np.lexsort((self.row, -self.value))
    kept: dict[tuple[int, int], list[int]] = {}
    use = np.zeros(len(order), bool)
    for i in order:
      taken = kept.setdefault((int(self.place[i]), int(self.doc[i])), [])
      if all(abs(int(self.pos[i]) - pos) >= length for pos in taken):
        taken.append(int(self.pos[i]))
        use[i] = True
    return self.chosen(use)


_FIELDS = dataclasses.fields(Found)


def find(
  sae: SAE,
  store: Store,
  latents: Int[np.ndarray, "L"],
  *,
  length: int = LENGTH,
  most: int = 2000,
  top: int = 100,
  seed: int = 0,
  batch_rows: int = 4096,
  kept: parts.Pass | None = None,
) -> Found:
  """Finds the windows on which latents are active; the store is read once.

  Args:
    sae: the SAE, in the inference form.
    store: store with the columns doc and pos.
    latents: numbers of the latents, ascending.
    length: tokens of a window.
    most: size of the uniform sample of each latent's active windows; all of them
      where they are fewer.
    top: number of strongest windows that are kept besides.
    seed: of the sample.
    batch_rows: largest number of rows on the device at once.
    kept: folder in which a stopped pass is resumed; None for none.

  Raises:
    InputError: there is no such latent, or they are not ascending; or as
      `parts.total`.
    parts.Unfinished: other processes are not done.
  """
  latents = np.asarray(latents, np.int64)
  valid = len(latents) and latents[0] >= 0 and latents[-1] < sae.n
  if not valid or np.any(np.diff(latents) <= 0):
    rule = f"must be ascending numbers in [0, {sae.n})"
    raise InputError("latents", latents.tolist(), rule, "sort them")
  settings = {"length": length, "most": most, "top": top, "seed": seed}
  return parts.total(
    kept,
    _Finding(sae, store, latents, batch_rows, **settings),
    reading.intervals(store, batch_rows),
    lambda: reading.identity(
      "windows",
      sae,
      store,
      latents=latents.tolist(),
      batch_rows=batch_rows,
      **settings,
    ),
  )


@dataclasses.dataclass(frozen=True, eq=False)
class _Finding(parts.Work[Found, tuple[int, int]]):
  """Active windows over intervals of rows."""

  sae: SAE
  store: Store
  latents: Int[np.ndarray, "L"]
  batch_rows: int
  length: int
  most: int
  top: int
  seed: int

  def nothing(self) -> Found:
    whole, real = np.zeros(0, np.int64), np.zeros(0, np.float32)
    return Found(
      *(whole, whole, whole, whole, whole, real, whole), np.zeros(0, bool)
    )

  def added(self, total: Found, batch: tuple[int, int]) -> Found:
    numbers, x = np.arange(*batch), self.store.read(*batch)
    where = self.store.take(numbers, "doc", "pos")
    for part in summary.active(self.sae, numbers, x, self.batch_rows):
      place, value, row = part.among(self.latents)
      up = value > 0
      at = row[up] - batch[0]
      doc = where["doc"][at].astype(np.int64)
      pos = where["pos"][at].astype(np.int64)
      cut = pos // self.length
      # Equal windows have equal draws, whatever row of theirs was seen.
      draw = activity.draws(self.seed, doc * _CUTS + cut) >> np.uint64(1)
      more = Found(
        *(place[up], doc, cut, pos, row[up], value[up]),
        *(draw.astype(np.int64), np.zeros(len(doc), bool)),
      )
      total = self.merged(total, more)
    return total

  def merged(self, total: Found, other: Found) -> Found:
    both = Found(
      *(
        np.concatenate([getattr(a, f.name) for a in (total, other)])
        for f in _FIELDS
      )
    )
    # One entry per window, that of its largest value.
    order = (both.row, -both.value, both.cut, both.doc, both.place)
    both = both.chosen(np.lexsort(order))
    same = np.ones(len(both.row), bool)
    for name in ("place", "doc", "cut"):
      same &= np.diff(getattr(both, name), prepend=-1) == 0
    both = both.chosen(~same)
    # What leaves neither returns: a draw's rank only grows, and a window is seen
    # with its largest value where it is strong enough.
    strong = _rank(both.place, both.row, -both.value) < self.top
    sampled = _rank(both.place, both.cut, both.doc, both.draw) < self.most
    both = dataclasses.replace(both, sampled=sampled)
    return both.chosen(strong | sampled)

  def arrays(self, total: Found) -> dict[str, np.ndarray]:
    return parts.flat(total)

  def restored(self, arrays: dict[str, np.ndarray]) -> Found:
    return parts.filled(self.nothing(), arrays)


def _rank(place: np.ndarray, *keys: np.ndarray) -> Int[np.ndarray, "e"]:
  """The rank of each entry among those of its place, by the last key first."""
  order = np.lexsort((*keys, place))
  rank = np.empty(len(place), np.int64)
  own = place[order]
  rank[order] = np.arange(len(own)) - np.searchsorted(own, own)
  return rank


def draw_rows(
  store: Store, count: int, *, length: int = LENGTH, seed: int = 0
) -> Int[np.ndarray, "count"]:
  """Draws rows of different windows at random, as candidates of silent ones.

  Args:
    store: store with the columns doc and pos.
    count: number of windows; fewer where the store has fewer.
    length: tokens of a window.
    seed: of the draw.
  """
  rows = np.concatenate([np.arange(a, b) for a, b in store.intervals])
  order = np.random.default_rng(seed).permutation(len(rows))
  rows = np.sort(rows[order[: count * length]])
  where = store.take(rows, "doc", "pos")
  keys = np.stack([where["doc"], where["pos"] // length], axis=-1)
  _, first = np.unique(keys, axis=0, return_index=True)
  picked = np.random.default_rng(seed + 1).permutation(first)[:count]
  return rows[picked]
