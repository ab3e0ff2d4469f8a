"""How strongly chosen latents are active, with samples; see `observing`.

Beside a `summary`: a histogram of the positive values with bins of equal ratio, a
random sample of rows of each bin, and with which latents they are active together.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from saejax.errors import InputError
from saejax.features.summary import Summary

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


def drawn(
  seed: int, place: np.ndarray, value: np.ndarray, row: np.ndarray
) -> Samples:
  """Samples that keep every row.

  Args:
    seed: of the draw.
    place, value, row: place of the latent, value and row number of each entry.
  """
  return Samples(place, bins(value), draws(seed, row), value, row)


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
