"""Cards of latents: plain values for a page, or for JSON.

A card has the density of a latent, a histogram, examples with the latent on each
token, its neighbours in the decoder, the latents that are active with it, and,
with a language model, the tokens that it favours.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from saejax.data.store import reader
from saejax.data.store.reader import Store
from saejax.data.text import neighbours
from saejax.errors import InputError
from saejax.features import activity, lens, observing, parts, summary
from saejax.features.activity import Activity
from saejax.models import tokenizer
from saejax.models.model import Model
from saejax.sae.sae import SAE

QUARTERS = 4
FORMAT = 1  # of the data
_COSINES = 2**24  # cosines in memory at once


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
  """Numbers of what a card shows.

  Attributes:
    top: examples of the largest values.
    each: further examples of each quarter of the range of values.
    before, after: tokens around the token of an example.
    near: latents that are near, and active together.
    tokens: tokens that it favours.
  """

  top: int = 10
  each: int = 3
  before: int = 14
  after: int = 10
  near: int = 8
  tokens: int = 10


def make(
  sae: SAE,
  store: Store,
  choice: activity.Choice,
  *,
  model: Model | None = None,
  sizes: Sizes = Sizes(),
  batch_rows: int = 4096,
  progress: Callable[[int, int], None] | None = None,
  kept: parts.Pass | None = None,
) -> dict[str, Any]:
  """Makes the cards of latents from a store, which is read once.

  The rows around examples are read once more, to show the latent on them.

  Args:
    sae: the SAE, in the inference form.
    store: store with provenance and a tokenizer.
    choice: the latents.
    model: causal model of the rows, for the tokens that latents favour.
    sizes: numbers of what a card shows.
    batch_rows: largest number of rows on the device at once.
    progress: called with the number of rows read, and of all.
    kept: folder in which a stopped pass is resumed; None for none.

  Raises:
    InputError: the store has no text or another width, there is no such latent,
      or the model has no language head or another width.
    parts.Unfinished: other processes are not done.
  """
  words = words_of(sae, store)
  if model is not None:
    lens.check(model, sae.d)
    lens.directions(sae, np.zeros(0, int))  # refused before the pass
  found = observing.observe(
    sae,
    store,
    choice,
    top=sizes.top,
    per_bin=sizes.each,
    batch_rows=batch_rows,
    progress=progress,
    kept=kept,
  )
  W = np.asarray(sae.W_dec, np.float32)
  shown = examples(
    *(sae, store, found.latents, picked(found, sizes.each)),
    sizes=sizes,
    batch_rows=batch_rows,
  )
  near = nearest(W, found.latents, sizes.near)
  mates = companions(found, sizes.near)
  cards = [
    _card(found, i) | {"examples": e, "nearest": n, "together": t}
    for i, (e, n, t) in enumerate(zip(shown, near, mates, strict=True))
  ]
  if model is not None:
    favoured = lens.favoured(sae, model, found.latents, words, sizes.tokens)
    cards = [a | b for a, b in zip(cards, favoured, strict=True)]
  return {
    "format": FORMAT,
    "sae": {"n": sae.n, "d": sae.d},
    "store": described(store),
    "rows": found.summary.rows,
    "per_octave": activity.PER_OCTAVE,
    "lowest": activity.LOWEST,
    "latents": cards,
  }


def described(store: Store) -> dict[str, str]:
  """What a page tells of a store.

  Args:
    store: the store.
  """
  return {
    "name": store.place.name,
    "model": str(reader.described(store, "model") or ""),
    "site": str((store.meta.get("site") or {}).get("name", "")),
    "split": str(store.meta.get("split") or ""),
  }


def words_of(sae: SAE, store: Store) -> tokenizer.Tokenizer:
  """The tokenizer of a store, whose rows must suit an SAE.

  Args:
    sae: the SAE.
    store: the store.

  Raises:
    InputError: the store has no text, or another width.
  """
  if store.d != sae.d:
    raise InputError(
      "store",
      str(store.place),
      f"must have rows of the width of the SAE, {sae.d}, not {store.d}",
      "give a store of its site",
    )
  return neighbours.tokenizer_of(store)


def _card(found: Activity, i: int) -> dict[str, Any]:
  """Numbers of the latent at a place, and its histogram."""
  counts = found.histogram[i]
  (used,) = np.nonzero(counts)
  first, last = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 0)
  return numbers(found.summary, i) | {
    "histogram": {"first": first, "counts": counts[first:last].tolist()},
  }


def numbers(total: summary.Summary, i: int) -> dict[str, Any]:
  """Numbers of a latent: its count, density, mean and largest value.

  Args:
    total: a summary.
    i: place of the latent in it.
  """
  count = int(total.count[i])
  return {
    "latent": int(total.latents[i]),
    "count": count,
    "density": float(total.density[i]),
    "mean": short(total.sum[i] / count) if count else 0.0,
    "max": short(total.top_values[i].max(initial=0)),
  }


def short(value: float) -> float:
  """Rounds to four digits; a page needs no more.

  Args:
    value: the value.
  """
  return float(f"{value:.4g}")


# --- examples ----------------------------------------------------------------


def picked(found: Activity, each: int) -> list[list[tuple[str, float, int]]]:
  """The examples of each latent as (group, value, row).

  The top rows, then `each` rows drawn from every quarter of the range from 0 to
  the largest value, "4" first, without those shown already. Quarters end at
  edges of bins, so that the draw is uniform over the rows of a quarter.

  Args:
    found: the latents over the store; it must keep `each` rows of a bin.
    each: number of rows of a quarter.
  """
  samples, lists = found.samples, []
  for i, latent in enumerate(found.latents):
    values, rows = found.summary.top(int(latent))
    mine = [
      ("top", float(v), int(r)) for v, r in zip(values, rows, strict=True)
    ]
    start, stop = np.searchsorted(samples.place, [i, i + 1])
    if len(values):
      quarter = quarters(float(values[0]))[samples.bin[start:stop]]
      for q in reversed(range(QUARTERS)):
        at = start + np.flatnonzero(quarter == q)
        at = at[np.argsort(samples.draw[at], kind="stable")][:each]
        at = at[np.argsort(-samples.value[at], kind="stable")]
        mine += [
          (str(q + 1), float(samples.value[j]), int(samples.row[j]))
          for j in at
          if samples.row[j] not in rows
        ]
    lists.append(mine)
  return lists


def quarters(largest: float) -> Int[np.ndarray, "BINS"]:
  """The quarter of the range from 0 to a value that each bin belongs to, from 0.

  Args:
    largest: the largest value.
  """
  centre = np.sqrt(activity.edges()[:-1] * activity.edges()[1:])
  share = np.minimum(QUARTERS * centre / largest, QUARTERS - 1)
  return share.astype(int)


def examples(
  sae: SAE,
  store: Store,
  latents: Sequence[int] | Int[np.ndarray, "L"],
  lists: Sequence[Sequence[tuple[str, float, int]]],
  *,
  sizes: Sizes = Sizes(),
  batch_rows: int = 4096,
) -> list[list[dict[str, Any]]]:
  """Makes the examples of each latent, with its value on every token.

  Args:
    sae: the SAE, in the inference form.
    store: store with provenance and a tokenizer.
    latents: numbers of the latents.
    lists: (group, value, row) of each example of each latent.
    sizes: tokens around an example.
    batch_rows: largest number of rows on the device at once.
  """
  words = neighbours.tokenizer_of(store)
  windows = {
    row: neighbours.window(store, row, sizes.before, sizes.after)
    for row in sorted({row for mine in lists for _, _, row in mine})
  }
  pairs = [
    (latent, windows[row].rows)
    for latent, mine in zip(latents, lists, strict=True)
    for _, _, row in mine
  ]
  values = iter(on_rows(sae, store, pairs, batch_rows=batch_rows))
  where = _provenance(store, list(windows))
  texts = {r: neighbours.pieces(words, w.tokens) for r, w in windows.items()}
  return [
    [
      {
        "group": group,
        "value": short(value),
        "row": row,
        "doc": where[row][0],
        "pos": where[row][1],
        "at": windows[row].at,
        "tokens": texts[row],
        "values": [short(v) for v in next(values)],
      }
      for group, value, row in mine
    ]
    for mine in lists
  ]


def _provenance(store: Store, rows: list[int]) -> dict[int, tuple[int, int]]:
  """Document and position of rows."""
  found = store.take(rows, "doc", "pos")
  pairs = zip(found["doc"].tolist(), found["pos"].tolist(), strict=True)
  return dict(zip(rows, pairs, strict=True))


def on_rows(
  sae: SAE,
  store: Store,
  pairs: Sequence[tuple[int, Int[np.ndarray, "T"]]],
  *,
  batch_rows: int = 4096,
) -> list[Float[np.ndarray, "T"]]:
  """Values of latents on rows; each row is read and encoded once.

  Args:
    sae: the SAE, in the inference form.
    store: the store.
    pairs: (latent, row numbers).
    batch_rows: largest number of rows on the device at once.
  """
  if not pairs:
    return []
  wanted = np.concatenate(
    [np.asarray(rows, np.int64) * sae.n + int(i) for i, rows in pairs]
  )
  keys, place = np.unique(wanted, return_inverse=True)
  values = np.zeros(len(keys), np.float32)
  numbers = np.unique(keys // sae.n)
  for start in range(0, len(numbers), 4 * batch_rows):
    block = numbers[start : start + 4 * batch_rows]
    x = store.take(block, "x")["x"]
    for part in summary.active(sae, block, x, batch_rows):
      key = part.row * sae.n + part.latent
      at = np.minimum(np.searchsorted(keys, key), len(keys) - 1)
      inside = keys[at] == key
      values[at[inside]] = part.value[inside]
  cuts = np.cumsum([len(rows) for _, rows in pairs])[:-1]
  return np.split(values[place], cuts)


# --- other latents -----------------------------------------------------------


def nearest(
  W: Float[np.ndarray, "n d"], latents: Int[np.ndarray, "L"], count: int
) -> list[list[dict[str, Any]]]:
  """The latents whose decoder rows have the largest cosines with those given.

  Args:
    W: decoder rows.
    latents: numbers of the latents.
    count: number of neighbours; rows of zeros have and are none.
  """
  norm = np.linalg.norm(W, axis=1, keepdims=True)
  unit = W / np.where(norm > 0, norm, 1)
  found, block = [], max(1, _COSINES // len(W))
  for start in range(0, len(latents), block):
    some = latents[start : start + block]
    cosine = unit[some] @ unit.T
    cosine[np.arange(len(some)), some] = -np.inf
    cosine[:, norm[:, 0] == 0] = -np.inf
    cosine[norm[some, 0] == 0] = -np.inf
    found += [_largest(row, count) for row in cosine]
  return found


def companions(found: Activity, count: int) -> list[list[dict[str, Any]]]:
  """The latents that are active on the same rows, c_ij / sqrt(c_i c_j).

  Args:
    found: the latents over a store.
    count: number of other latents.
  """
  lists = []
  for i, latent in enumerate(found.latents):
    both = found.together[i].astype(np.float64)
    size = np.sqrt(found.count * float(found.summary.count[i]))
    score = np.where(both > 0, both / np.where(size > 0, size, 1), -np.inf)
    score[latent] = -np.inf
    lists.append(_largest(score, count))
  return lists


def _largest(row: np.ndarray, count: int) -> list[dict[str, Any]]:
  order = np.argpartition(-row, min(count, len(row) - 1))[:count]
  order = order[np.lexsort((order, -row[order]))]
  return [
    {"latent": int(i), "value": round(float(row[i]), 3)}
    for i in order
    if np.isfinite(row[i])
  ]
