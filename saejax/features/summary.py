"""How often and how strongly latents are active, and on which rows the most.

One pass over the rows, whatever the number of latents: only what is active is
looked at, sums are in float64, and summaries of parts merge to that of the whole.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from saejax import notebook
from saejax.data.store.reader import Store
from saejax.errors import InputError
from saejax.features import parts, reading
from saejax.sae.context import Batch
from saejax.sae.latents import EntryLatents, Latents, SparseLatents
from saejax.sae.sae import SAE

_SHOWN = 20  # latents in a notebook
_DENSE = 2**26  # values of dense latents in memory at once


@dataclasses.dataclass(frozen=True, eq=False)
class Summary:
  """What L latents do over some rows.

  Attributes:
    latents: numbers of the latents [L], ascending.
    rows: number of rows; non-finite ones are left out.
    count: rows where each is not 0 [L].
    sum, square: sums of z and of z^2 [L].
    top_values: largest positive values [L, c], descending; 0 where there are
      fewer.
    top_rows: their row numbers [L, c], -1 where there are fewer; equal values
      are in the order of rows.
  """

  latents: Int[np.ndarray, "L"]
  rows: int
  count: Int[np.ndarray, "L"]
  sum: Float[np.ndarray, "L"]
  square: Float[np.ndarray, "L"]
  top_values: Float[np.ndarray, "L c"]
  top_rows: Int[np.ndarray, "L c"]

  @property
  def density(self) -> Float[np.ndarray, "L"]:
    """Share of rows where each latent is not 0."""
    return self.count / max(self.rows, 1)

  def top(self, latent: int) -> tuple[np.ndarray, np.ndarray]:
    """The largest values of a latent and their row numbers.

    Args:
      latent: its number.

    Raises:
      ValueError: it is not among `latents`.
    """
    place = int(np.searchsorted(self.latents, latent))
    if place == len(self.latents) or self.latents[place] != latent:
      raise ValueError(f"latent {latent} is not in the summary")
    found = int((self.top_rows[place] >= 0).sum())
    return self.top_values[place, :found], self.top_rows[place, :found]

  def _repr_html_(self) -> str:
    """Totals and the most frequent latents, for notebooks."""
    order = np.argsort(-self.count, kind="stable")[:_SHOWN]
    mean = self.sum / np.maximum(self.count, 1)
    top = {int(i): self.top(int(self.latents[i])) for i in order}
    facts = {
      "rows": self.rows,
      "latents": len(self.latents),
      "never active": int((self.count == 0).sum()),
      "mean L0 of a row": float(self.density.sum()),
    }
    rows = [
      (
        int(self.latents[i]),
        f"{self.density[i]:.3%}",
        float(mean[i]),
        *(found[0].item() if len(found) else "" for found in top[int(i)]),
      )
      for i in order
    ]
    head = ("latent", "density", "mean where active", "largest", "its row")
    title = f"The {len(rows)} most frequent latents"
    return notebook.facts("Summary", facts) + notebook.table(title, head, rows)

  def merged(self, other: "Summary") -> "Summary":
    """The summary of both parts.

    Args:
      other: of other rows and the same latents.

    Raises:
      ValueError: it is of other latents, or keeps another number of rows.
    """
    if not np.array_equal(self.latents, other.latents):
      raise ValueError("summaries must be of the same latents")
    most = self.top_values.shape[1]
    if other.top_values.shape[1] != most:
      raise ValueError(f"both must keep {most} rows of each latent")
    place, value, row = (
      np.concatenate(pair)
      for pair in zip(_kept(self), _kept(other), strict=True)
    )
    values, rows = _largest(place, value, row, len(self.latents), most)
    return Summary(
      latents=self.latents,
      rows=self.rows + other.rows,
      count=self.count + other.count,
      sum=self.sum + other.sum,
      square=self.square + other.square,
      top_values=values,
      top_rows=rows,
    )


def _kept(summary: Summary) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """The top rows as entries: place of the latent, value, row."""
  place, rank = np.nonzero(summary.top_rows >= 0)
  return place, summary.top_values[place, rank], summary.top_rows[place, rank]


def _largest(
  place: np.ndarray, value: np.ndarray, row: np.ndarray, L: int, most: int
) -> tuple[np.ndarray, np.ndarray]:
  """The largest entries of each latent: (values, rows) [L, most]."""
  order = np.lexsort((row, -value, place))
  place, value, row = place[order], value[order], row[order]
  rank = np.arange(len(place)) - np.searchsorted(place, place)
  inside = rank < most
  values = np.zeros((L, most), np.float32)
  rows = np.full((L, most), -1, np.int64)
  values[place[inside], rank[inside]] = value[inside]
  rows[place[inside], rank[inside]] = row[inside]
  return values, rows


def summarise(
  sae: SAE,
  store: Store,
  latents: Sequence[int] | np.ndarray | None = None,
  *,
  top: int = 20,
  batch_rows: int = 4096,
  kept: parts.Pass | None = None,
) -> Summary:
  """Summarises latents over a store, which is read once, in order.

  Args:
    sae: the SAE, in the inference form.
    store: the rows.
    latents: numbers of the latents; all by default.
    top: number of rows kept for each.
    batch_rows: largest number of rows on the device at once.
    kept: folder in which a stopped pass is resumed; None for none.

  Raises:
    InputError: there is no such latent, top is negative, or as `parts.total`.
    parts.Unfinished: other processes are not done.
  """
  if top < 0:
    raise InputError("top", top, "must be at least 0", "use 0 or more")
  wanted = np.arange(sae.n) if latents is None else np.unique(latents)
  outside = wanted[(wanted < 0) | (wanted >= sae.n)]
  if len(outside):
    raise InputError(
      "latent",
      int(outside[0]),
      f"must be in [0, {sae.n})",
      f"use at most {sae.n - 1}",
    )
  settings = {"top": top, "batch_rows": batch_rows}
  named = None if latents is None else wanted.tolist()
  return parts.total(
    kept,
    _Summing(sae, store, wanted, **settings),
    reading.intervals(store, batch_rows),
    lambda: reading.identity("summary", sae, store, latents=named, **settings),
  )


@dataclasses.dataclass(frozen=True, eq=False)
class _Summing(parts.Work[Summary, tuple[int, int]]):
  """A summary over intervals of rows."""

  sae: SAE
  store: Store
  wanted: Int[np.ndarray, "L"]
  top: int
  batch_rows: int

  def nothing(self) -> Summary:
    return of_entries(self.wanted, 0, NONE, self.top)

  def added(self, total: Summary, batch: tuple[int, int]) -> Summary:
    numbers, x = np.arange(*batch), self.store.read(*batch)
    for part in active(self.sae, numbers, x, self.batch_rows):
      entries = part.among(self.wanted)
      more = of_entries(self.wanted, part.rows, entries, self.top)
      total = total.merged(more)
    return total

  def merged(self, total: Summary, other: Summary) -> Summary:
    return total.merged(other)

  def arrays(self, total: Summary) -> dict[str, np.ndarray]:
    return parts.flat(total)

  def restored(self, arrays: dict[str, np.ndarray]) -> Summary:
    return parts.filled(self.nothing(), arrays)


def density_edges(rows: int) -> Float[np.ndarray, "e"]:
  """Returns edges of bins of log10 density that suit counts of so many rows.

  Densities are whole numbers of rows over `rows`. Bins of equal ratio would hold
  one, none or two of the small counts by turns; these are at least a quarter of
  a decade wide, and their edges lie halfway between counts.

  Args:
    rows: number of rows.

  >>> np.round(10 ** density_edges(100) * 100, 1).tolist()[:5]
  [0.5, 1.5, 3.5, 6.5, 12.5]
  """
  edges = [0.5]
  while edges[-1] < rows:
    edges.append(float(np.ceil(edges[-1] * 10**0.25 - 0.5)) + 0.5)
  return np.log10(edges) - np.log10(rows)


@dataclasses.dataclass(frozen=True, eq=False)
class Active:
  """The latents that are not 0 on some rows, as entries.

  Attributes:
    numbers: numbers of the rows [r], ascending; non-finite ones are left out.
    row: row number of each entry [e], ascending.
    latent: its latent [e].
    value: its value [e].
  """

  numbers: Int[np.ndarray, "r"]
  row: Int[np.ndarray, "e"]
  latent: Int[np.ndarray, "e"]
  value: Float[np.ndarray, "e"]

  @property
  def rows(self) -> int:
    """Number of rows."""
    return len(self.numbers)

  def among(
    self, latents: Int[np.ndarray, "L"]
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Entries of some latents: places among them, values, row numbers.

    Args:
      latents: numbers of the latents, ascending.
    """
    if not len(latents):
      return NONE
    place, inside = self.places(latents)
    return place[inside], self.value[inside], self.row[inside]

  def places(
    self, latents: Int[np.ndarray, "L"]
  ) -> tuple[Int[np.ndarray, "e"], Bool[np.ndarray, "e"]]:
    """Place of each entry among latents, and whether it is of one of them.

    Args:
      latents: numbers of the latents, ascending; at least one.
    """
    place = np.searchsorted(latents, self.latent)
    return place, latents[np.minimum(place, len(latents) - 1)] == self.latent


def active(
  sae: SAE, numbers: np.ndarray, x: np.ndarray, batch_rows: int
) -> Iterator[Active]:
  """Encodes rows, in parts that fit into memory.

  Args:
    sae: the SAE, in the inference form.
    numbers: row numbers [B].
    x: the rows [B, ...].
    batch_rows: largest number of rows on the device at once.
  """
  batch_rows = most_rows(sae, batch_rows)
  for start in range(0, len(x), batch_rows):
    part = x[start : start + batch_rows]
    found, use = _encoded(sae, reading.pad(part, batch_rows)[0])
    block = numbers[start : start + len(part)]
    yield of_latents(found, np.asarray(use)[: len(part)], block)


def most_rows(sae: SAE, batch_rows: int) -> int:
  """Number of rows whose latents fit into memory at once.

  Args:
    sae: the SAE.
    batch_rows: upper bound.
  """
  if sae.activation.row_k is None:
    return max(1, min(batch_rows, _DENSE // sae.n))
  return batch_rows


def of_latents(
  found: Latents, use: Bool[np.ndarray, "B"], numbers: Int[np.ndarray, "B"]
) -> Active:
  """The latents of rows as entries.

  Args:
    found: latents of at least B rows; those beyond are padding.
    use: which rows are finite.
    numbers: row numbers.
  """
  row, latent, value = entries(found)
  inside = row < len(use)
  inside &= use[np.minimum(row, len(use) - 1)]
  row, latent, value = row[inside], latent[inside], value[inside]
  return Active(numbers[use], numbers[row], latent, value)


NONE = np.zeros(0, int), np.zeros(0, np.float32), np.zeros(0, int)


def of_entries(
  latents: np.ndarray,
  rows: int,
  entries: tuple[np.ndarray, np.ndarray, np.ndarray],
  top: int,
) -> Summary:
  """The summary of a part.

  Args:
    latents: numbers of the latents [L], ascending.
    rows: number of rows of the part.
    entries: places among the latents, values, row numbers; all [e].
    top: number of rows kept for each.
  """
  place, value, row = entries
  wide, L = value.astype(np.float64), len(latents)
  positive = value > 0
  values, kept = _largest(
    place[positive], value[positive], row[positive], L, top
  )
  return Summary(
    latents=latents,
    rows=rows,
    count=np.bincount(place, minlength=L),
    sum=np.bincount(place, wide, L),
    square=np.bincount(place, wide * wide, L),
    top_values=values,
    top_rows=kept,
  )


@jax.jit
def _encoded(
  sae: SAE, x: Float[Array, "B d"]
) -> tuple[Latents, Bool[Array, "B"]]:
  """Latents, and which rows are finite; the others are encoded as zeros."""
  finite = jnp.all(jnp.isfinite(x).reshape(len(x), -1), axis=-1)
  clean = jnp.where(finite.reshape(-1, *[1] * (x.ndim - 1)), x, 0)
  batch = Batch(x=clean)
  if sae.target_prep is not None:  # a transcoder's latents are those of x alone
    batch = batch.replace(target=jnp.zeros((*x.shape[:-1], sae.d), x.dtype))
  return sae.forward(batch).latents, finite


def entries(
  latents: Latents,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """The latents that are not 0: (rows, latents, values), all [entries].

  Args:
    latents: of rows with one leading axis.
  """
  if isinstance(latents, SparseLatents):
    values = np.asarray(latents.values)
    row, rank = np.nonzero(values)
    return row, np.asarray(latents.indices)[row, rank], values[row, rank]
  if isinstance(latents, EntryLatents):
    values = np.asarray(latents.values)
    (used,) = np.nonzero(values)
    rows, indices = np.asarray(latents.rows), np.asarray(latents.indices)
    return rows[used], indices[used], values[used]
  values = np.asarray(latents.dense())
  row, latent = np.nonzero(values)
  return row, latent, values[row, latent]
