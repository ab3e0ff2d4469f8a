"""A few latents of an SAE that give an idea of all, chosen in one pass over a store.

The most and the least dense of those that are active, one that a smaller SAE's
latent has split into, and others drawn at random.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from saejax.data.store.reader import Store
from saejax.features import cards, parts, summary
from saejax.features.summary import Summary
from saejax.sae.sae import SAE

MOST_DENSE, LEAST_DENSE = "most dense", "least dense"
SPLIT, RANDOM = "split", "random"
LEAST_COSINE = 0.5  # of a latent and what it splits into
_MOST_WORK = 2e12  # multiply-adds of all cosines, above which none are computed


@dataclasses.dataclass(frozen=True)
class Pick:
  """A latent and why it is shown.

  Attributes:
    latent: its number.
    why: one of the words above.
    family: for SPLIT, the latents that are near the same direction, nearest first.
    parent: for SPLIT, the latent of the smaller SAE; None without one.
  """

  latent: int
  why: str
  family: Sequence[int] = ()
  parent: int | None = None


def picks(
  total: Summary,
  W: Float[np.ndarray, "n d"],
  smaller: Float[np.ndarray, "m d"] | None = None,
  *,
  count: int = 10,
  seed: int = 0,
) -> list[Pick]:
  """Picks latents that are active; fewer where fewer are.

  Args:
    total: summary of all latents.
    W: decoder rows.
    smaller: decoder rows of a smaller SAE of the same rows, or None.
    count: number of latents.
    seed: of the draw.
  """
  (live,) = np.nonzero(total.count)
  if not len(live):
    return []
  chosen = [
    Pick(int(live[np.argmax(total.count[live])]), MOST_DENSE),
    Pick(int(live[np.argmin(total.count[live])]), LEAST_DENSE),
  ]
  if split := most_split(W, live, smaller):
    chosen.append(split)
  order = np.random.default_rng(seed).permutation(total.count.shape[0])
  chosen += [Pick(int(i), RANDOM) for i in order if total.count[i]]
  first: dict[int, Pick] = {}
  for pick in chosen:
    first.setdefault(pick.latent, pick)
  return list(first.values())[:count]


def most_split(
  W: Float[np.ndarray, "n d"],
  live: np.ndarray,
  smaller: Float[np.ndarray, "m d"] | None = None,
) -> Pick | None:
  """Finds the direction that most latents share, and the latent nearest to it.

  The directions are the decoder rows of a smaller SAE, where there is one, each
  latent belonging to the nearest; else those of the latents themselves.

  Args:
    W: decoder rows.
    live: numbers of the latents that count.
    smaller: decoder rows of the smaller SAE.

  Returns:
    The pick; None where no direction is shared by two latents with cosines of
    at least 0.5, or where there are too many to compare.
  """
  others = W[live] if smaller is None else smaller
  if len(live) < 2 or float(len(live)) * others.size > _MOST_WORK:
    return None
  rows, directions = _unit(W[live]), _unit(others)
  parents, cosines = [], []
  for start in range(0, len(live), 1024):
    cosine = rows[start : start + 1024] @ directions.T
    if smaller is None:
      parents.append((cosine >= LEAST_COSINE).sum(axis=1))
    else:
      parents.append(cosine.argmax(axis=1))
      cosines.append(cosine.max(axis=1))
  found = np.concatenate(parents)
  if smaller is None:
    best, parent = int(found.argmax()), None
    cosine = rows @ rows[best]
    mine = np.flatnonzero(cosine >= LEAST_COSINE)
  else:
    cosine = np.concatenate(cosines)
    near = cosine >= LEAST_COSINE
    parent = int(np.bincount(found[near], minlength=1).argmax())
    mine = np.flatnonzero(near & (found == parent))
  if len(mine) < 2:
    return None
  mine = mine[np.argsort(-cosine[mine], kind="stable")]
  family = [int(i) for i in live[mine]]
  return Pick(family[0], SPLIT, family, parent)


def _unit(W: np.ndarray) -> np.ndarray:
  norm = np.linalg.norm(W, axis=1, keepdims=True)
  return W / np.where(norm > 0, norm, 1)


def make(
  sae: SAE,
  store: Store,
  choose: Callable[[Summary], Sequence[Pick]],
  *,
  sizes: cards.Sizes = cards.Sizes(top=4, before=12, after=6, near=5),
  batch_rows: int = 4096,
  kept: parts.Pass | None = None,
) -> dict[str, Any]:
  """Makes the cards of latents that are chosen after a pass over all of them.

  The store is read once, and the rows around examples once more.

  Args:
    sae: the SAE, in the inference form.
    store: store with provenance and a tokenizer.
    choose: from the summary of all latents to those that are shown.
    sizes: numbers of what a card shows.
    batch_rows: largest number of rows on the device at once.
    kept: folder in which a stopped pass is resumed; None for none.

  Returns:
    {"rows": number of rows, "n": latents, "dead": those never active,
    "latents": cards in the order chosen, each with its pick, {latent, count,
    density, mean, max, examples, nearest, pick}}.

  Raises:
    InputError: the store has no text, or another width.
  """
  cards.words_of(sae, store)  # refused before the pass
  total = summary.summarise(
    sae, store, top=sizes.top, batch_rows=batch_rows, kept=kept
  )
  chosen = choose(total)
  latents = np.array([pick.latent for pick in chosen], int)
  lists = [
    [("top", float(v), int(r)) for v, r in zip(*total.top(i), strict=True)]
    for i in latents.tolist()
  ]
  shown = cards.examples(
    *(sae, store, latents, lists), sizes=sizes, batch_rows=batch_rows
  )
  near = cards.nearest(np.asarray(sae.W_dec, np.float32), latents, sizes.near)
  return {
    "rows": total.rows,
    "n": sae.n,
    "dead": int((total.count == 0).sum()),
    "latents": [
      cards.numbers(total, pick.latent)
      | {"examples": e, "nearest": n, "pick": pick}
      for pick, e, n in zip(chosen, shown, near, strict=True)
    ],
  }
