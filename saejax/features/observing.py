"""Observes how strongly chosen latents are active, in one pass over a store.

Whatever the number of latents, the store is read once. A pass may be kept in a
folder, where it is resumed, and shared by several processes; see `parts`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import scipy.sparse
from jaxtyping import Int

from saejax.data.store.reader import Store
from saejax.features import activity, parts, reading, summary
from saejax.features.activity import Activity
from saejax.sae.sae import SAE


class Watch(Protocol):
  """Further sums over the rows of a pass.

  Attributes:
    sums: arrays that are added up; `add` changes them in place.
  """

  sums: dict[str, np.ndarray]

  def add(
    self, part: summary.Active, numbers: np.ndarray, x: np.ndarray
  ) -> None:
    """Adds what is active on some of the rows x, which have these numbers."""
    ...


def observe(
  sae: SAE,
  store: Store,
  choice: activity.Choice,
  *,
  top: int = 10,
  per_bin: int = 3,
  batch_rows: int = 4096,
  together: bool = True,
  watch: Watch | None = None,
  progress: Callable[[int, int], None] | None = None,
  kept: parts.Pass | None = None,
) -> Activity:
  """Observes latents over a store, which is read once, in order.

  Random latents are the first `choice.random` of a random order that are active
  on any row. A latent that comes to be among them was not active before, and
  one that gives way never returns, so that one pass and the memory of these
  latents suffice.

  Args:
    sae: the SAE, in the inference form.
    store: the rows.
    choice: the latents.
    top: number of rows kept for each.
    per_bin: number of rows kept for each bin.
    batch_rows: largest number of rows on the device at once.
    together: whether to count the rows of pairs; without, `together` is
      [L, 0].
    watch: further sums, with 0 where there are no rows yet.
    progress: called with the number of rows read, and of all.
    kept: folder in which a stopped pass is resumed; None for none.

  Raises:
    InputError: there is no such latent, or as `parts.total`.
    parts.Unfinished: other processes are not done.
  """
  order = choice.order(sae.n)
  settings = {"top": top, "per_bin": per_bin, "batch_rows": batch_rows}
  intervals = reading.intervals(store, batch_rows)
  rows = np.cumsum([0] + [b - a for a, b in intervals])
  say = progress or (lambda *_: None)
  total = parts.total(
    kept,
    _Observing(
      sae, store, choice, order, together=together, watch=watch, **settings
    ),
    intervals,
    lambda: reading.identity(
      "activity",
      sae,
      store,
      **settings,
      together=together,
      watch=sorted(watch.sums) if watch else [],
      latents=[int(latent) for latent in choice.latents],
      random=choice.random,
      seed=choice.seed,
    ),
    lambda number: say(int(rows[number]), store.rows),
  )
  say(store.rows, store.rows)
  if watch is not None:
    watch.sums = total.more
  return total.found


@dataclasses.dataclass(frozen=True, eq=False)
class _Observed:
  """The sums of a pass, with those of `Watch`."""

  found: Activity
  more: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class _Observing(parts.Work[_Observed, tuple[int, int]]):
  """The activity of chosen latents over intervals of rows."""

  sae: SAE
  store: Store
  choice: activity.Choice
  order: Int[np.ndarray, "m"]
  together: bool
  watch: Watch | None
  top: int
  per_bin: int
  batch_rows: int

  def nothing(self) -> _Observed:
    wanted = self._wanted(np.zeros(self.sae.n, np.int64))
    pairs = len(wanted), self.sae.n if self.together else 0
    return _Observed(
      Activity(
        summary=summary.of_entries(wanted, 0, summary.NONE, self.top),
        histogram=np.zeros((len(wanted), activity.BINS), np.int64),
        samples=activity.drawn(self.choice.seed, *summary.NONE),
        together=np.zeros(pairs, np.int32),
        count=np.zeros(self.sae.n, np.int64),
      ),
      {k: np.zeros_like(v) for k, v in self._more.items()},
    )

  @property
  def _more(self) -> dict[str, np.ndarray]:
    return self.watch.sums if self.watch else {}

  def _wanted(self, count: Int[np.ndarray, "n"]) -> Int[np.ndarray, "L"]:
    """Numbers of the latents, ascending, where each is active on `count` rows."""
    if len(self.choice.latents):
      return self.order
    live = self.order[count[self.order] > 0]
    return np.sort(live[: self.choice.random])

  def added(self, total: _Observed, batch: tuple[int, int]) -> _Observed:
    numbers, x = np.arange(*batch), self.store.read(*batch)
    found = total.found
    for part in summary.active(self.sae, numbers, x, self.batch_rows):
      if self.watch is not None:
        self.watch.sums = total.more
        self.watch.add(part, numbers, x)
      count = found.count + np.bincount(part.latent, minlength=self.sae.n)
      found = found.chosen(self._wanted(count))
      found = dataclasses.replace(found, count=count)
      found = _added(found, part, self.choice.seed, self.top, self.per_bin)
    return dataclasses.replace(total, found=found)

  def merged(self, total: _Observed, other: _Observed) -> _Observed:
    a, b = total.found, other.found
    count = a.count + b.count
    a, b = a.chosen(self._wanted(count)), b.chosen(self._wanted(count))
    return _Observed(
      Activity(
        summary=a.summary.merged(b.summary),
        histogram=a.histogram + b.histogram,
        samples=a.samples.merged(b.samples, self.per_bin),
        together=a.together + b.together,
        count=count,
      ),
      {k: v + other.more[k] for k, v in total.more.items()},
    )

  def arrays(self, total: _Observed) -> dict[str, np.ndarray]:
    more = {f"more/{k}": v for k, v in total.more.items()}
    return parts.flat(total.found) | more

  def restored(self, arrays: dict[str, Any]) -> _Observed:
    nothing = self.nothing()
    more = {k: arrays[f"more/{k}"] for k in nothing.more}
    return _Observed(parts.filled(nothing.found, arrays), more)


def _added(
  total: Activity,
  part: summary.Active,
  seed: int,
  top: int,
  per_bin: int,
) -> Activity:
  """With the rows of a part."""
  wanted = total.latents
  if not len(wanted):
    more = summary.of_entries(wanted, part.rows, summary.NONE, top)
    return dataclasses.replace(total, summary=total.summary.merged(more))
  place, inside = part.places(wanted)
  place, value, row = place[inside], part.value[inside], part.row[inside]
  more = summary.of_entries(wanted, part.rows, (place, value, row), top)
  up = value > 0
  samples = activity.drawn(seed, place[up], value[up], row[up])
  flat = samples.place * activity.BINS + samples.bin
  counts = np.bincount(flat, minlength=len(wanted) * activity.BINS)
  if total.together.size:
    _count_pairs(total.together, part, place, inside)
  return Activity(
    summary=total.summary.merged(more),
    histogram=total.histogram + counts.reshape(-1, activity.BINS),
    samples=total.samples.merged(samples, per_bin),
    together=total.together,
    count=total.count,
  )


def _count_pairs(
  together: np.ndarray,
  part: summary.Active,
  place: np.ndarray,
  inside: np.ndarray,
) -> None:
  """Adds the rows of pairs to [L, n], in place: a copy would take the time.

  Args:
    together: the counts.
    part: entries of some rows.
    place: place of the latent of each entry that is `inside`.
    inside: which entries are of the L latents.
  """
  L, n = together.shape
  # Rows by latents, 0 or 1: A^T Z counts the rows of both.
  _, at = np.unique(part.row, return_inverse=True)
  ones = np.ones(len(at), np.int32)
  rows = int(at.max(initial=-1)) + 1
  Z = scipy.sparse.csr_array((ones, (at, part.latent)), (rows, n))
  A = scipy.sparse.csr_array((ones[inside], (at[inside], place)), (rows, L))
  both = (A.T @ Z).tocoo()
  together[both.row, both.col] += both.data
