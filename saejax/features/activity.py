"""How strongly chosen latents are active, with samples, in one pass over a store.

Beside a `summary`: a histogram of the positive values with bins of equal ratio, a
random sample of rows of each bin, and with which latents they are active together.
Whatever the number of latents, the store is read once.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import scipy.sparse
from jaxtyping import Float, Int

from saejax.data.store.reader import Store
from saejax.errors import InputError
from saejax.features import reading, summary
from saejax.features.summary import Summary
from saejax.sae.sae import SAE

PER_OCTAVE = 4  # bins per factor of 2
LOWEST = -20  # log2 of the first bin's lower edge
BINS = 40 * PER_OCTAVE  # up to 2^20; values outside are in the bins at the ends


def bins(values: Float[np.ndarray, "e"]) -> Int[np.ndarray, "e"]:
  """The bin of each positive value: floor(4 log2 z) above the lowest.

  Args:
    values: the values, above 0.
  """
  place = np.floor(np.log2(values.astype(np.float64)) * PER_OCTAVE)
  return np.clip(place.astype(int) - LOWEST * PER_OCTAVE, 0, BINS - 1)


def edges() -> Float[np.ndarray, "BINS+1"]:
  """The edges of the bins."""
  return 2.0 ** (LOWEST + np.arange(BINS + 1) / PER_OCTAVE)


def draws(seed: int, rows: Int[np.ndarray, "e"]) -> np.ndarray:
  """A number for each row that looks random [e] uint64, by splitmix64.

  Args:
    seed: other seeds give other numbers.
    rows: row numbers.

  References:
    Steele et al., Fast Splittable Pseudorandom Number Generators, 2014.
  """
  start = np.uint64((seed * 0xD1342543DE82EF95 + 1) % 2**64)
  x = rows.astype(np.uint64) + start
  x = x * np.uint64(0x9E3779B97F4A7C15)
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))


@dataclasses.dataclass(frozen=True, eq=False)
class Samples:
  """Rows drawn from each bin of each latent: those of the smallest `draws`.

  They do not depend on how rows were cut into parts, and those of a union of
  bins are uniform over its rows, up to the number kept for a bin.

  Attributes:
    place: place of the latent [s].
    bin: bin of the value [s].
    draw: number drawn for the row [s].
    value: the value [s].
    row: its row number [s].
  """

  place: Int[np.ndarray, "s"]
  bin: Int[np.ndarray, "s"]
  draw: np.ndarray
  value: Float[np.ndarray, "s"]
  row: Int[np.ndarray, "s"]

  def merged(self, other: "Samples", most: int) -> "Samples":
    """Those of both parts, at most `most` of each bin.

    Args:
      other: of other rows and the same latents.
      most: largest number of a bin.
    """
    place, bin, draw, value, row = (
      np.concatenate([getattr(self, f.name), getattr(other, f.name)])
      for f in dataclasses.fields(Samples)
    )
    order = np.lexsort((row, draw, bin, place))
    group = (place * BINS + bin)[order]
    rank = np.arange(len(group)) - np.searchsorted(group, group)
    keep = order[rank < most]
    return Samples(place[keep], bin[keep], draw[keep], value[keep], row[keep])


@dataclasses.dataclass(frozen=True, eq=False)
class Activity:
  """What L latents do over some rows.

  Attributes:
    summary: counts, sums and top rows.
    histogram: number of positive values of each bin [L, BINS].
    samples: rows of each bin.
    together: rows where each and another latent are not 0 [L, n].
    count: rows where each latent of the SAE is not 0 [n].
  """

  summary: Summary
  histogram: Int[np.ndarray, "L BINS"]
  samples: Samples
  together: Int[np.ndarray, "L n"]
  count: Int[np.ndarray, "n"]

  @property
  def latents(self) -> Int[np.ndarray, "L"]:
    """Numbers of the latents, ascending."""
    return self.summary.latents

  def chosen(self, latents: Int[np.ndarray, "M"]) -> "Activity":
    """That of other latents; those it lacks have not been active.

    Args:
      latents: numbers of the latents, ascending.
    """
    if np.array_equal(latents, self.latents):
      return self
    old = np.isin(self.latents, latents)
    new = np.searchsorted(latents, self.latents[old])

    def moved(values: np.ndarray, empty: int = 0) -> np.ndarray:
      out = np.full((len(latents), *values.shape[1:]), empty, values.dtype)
      out[new] = values[old]
      return out

    a, s = self.summary, self.samples
    kept = old[s.place]
    place = np.searchsorted(latents, self.latents[s.place[kept]])
    return Activity(
      summary=Summary(
        latents=latents,
        rows=a.rows,
        count=moved(a.count),
        sum=moved(a.sum),
        square=moved(a.square),
        top_values=moved(a.top_values),
        top_rows=moved(a.top_rows, -1),
      ),
      histogram=moved(self.histogram),
      samples=Samples(
        place, s.bin[kept], s.draw[kept], s.value[kept], s.row[kept]
      ),
      together=moved(self.together),
      count=self.count,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
  """Which latents: those named, or live ones drawn at random.

  Attributes:
    latents: numbers of the latents; empty for random ones.
    random: number of random latents among those that are active on any row.
    seed: of the draw of latents and of samples.
  """

  latents: Sequence[int] = ()
  random: int = 50
  seed: int = 0

  def order(self, n: int) -> Int[np.ndarray, "m"]:
    """The candidates, first the preferred.

    Args:
      n: number of latents of the SAE.

    Raises:
      InputError: there is no such latent.
    """
    if not len(self.latents):
      return np.random.default_rng(self.seed).permutation(n)
    for latent in self.latents:
      if not 0 <= latent < n:
        raise InputError(
          "latents", latent, f"must be in [0, {n})", f"use at most {n - 1}"
        )
    return np.unique(self.latents)


def observe(
  sae: SAE,
  store: Store,
  choice: Choice,
  *,
  top: int = 10,
  per_bin: int = 3,
  batch_rows: int = 4096,
  together: bool = True,
  watch: Callable[[summary.Active, np.ndarray, np.ndarray], None] | None = None,
  progress: Callable[[int, int], None] | None = None,
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
    watch: called with what is active on the rows of each part, and with the
      numbers and the rows of the batch.
    progress: called with the number of rows read, and of all.

  Raises:
    InputError: there is no such latent.
  """
  order = choice.order(sae.n)
  wanted = order if len(choice.latents) else order[:0]
  total = Activity(
    summary=summary.of_entries(wanted, 0, summary.NONE, top),
    histogram=np.zeros((len(wanted), BINS), np.int64),
    samples=_samples(choice.seed, *summary.NONE),
    together=np.zeros((len(wanted), sae.n if together else 0), np.int32),
    count=np.zeros(sae.n, np.int64),
  )
  done = 0
  for numbers, x in reading.batches(store, batch_rows=batch_rows):
    for part in summary.active(sae, numbers, x, batch_rows):
      if watch is not None:
        watch(part, numbers, x)
      count = total.count + np.bincount(part.latent, minlength=sae.n)
      if not len(choice.latents):
        wanted = np.sort(order[count[order] > 0][: choice.random])
      total = dataclasses.replace(total.chosen(wanted), count=count)
      total = _added(total, part, choice.seed, top, per_bin)
    done += len(numbers)
    if progress is not None:
      progress(done, store.rows)
  return total


def _samples(
  seed: int, place: np.ndarray, value: np.ndarray, row: np.ndarray
) -> Samples:
  return Samples(place, bins(value), draws(seed, row), value, row)


def _added(
  total: Activity, part: summary.Active, seed: int, top: int, per_bin: int
) -> Activity:
  """With the rows of a part."""
  wanted = total.latents
  if not len(wanted):
    more = summary.of_entries(wanted, part.rows, summary.NONE, top)
    return dataclasses.replace(total, summary=total.summary.merged(more))
  place = np.searchsorted(wanted, part.latent)
  inside = wanted[np.minimum(place, len(wanted) - 1)] == part.latent
  place, value, row = place[inside], part.value[inside], part.row[inside]
  more = summary.of_entries(wanted, part.rows, (place, value, row), top)
  up = value > 0
  samples = _samples(seed, place[up], value[up], row[up])
  flat = samples.place * BINS + samples.bin
  counts = np.bincount(flat, minlength=len(wanted) * BINS)
  if total.together.size:
    _count_pairs(total.together, part, place, inside)
  return Activity(
    summary=total.summary.merged(more),
    histogram=total.histogram + counts.reshape(-1, BINS),
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
