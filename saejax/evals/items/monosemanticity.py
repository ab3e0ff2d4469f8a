"""MonoSemanticity score: are the items on which a latent is active alike?

With a_ik the activation of latent k on item i (an image, a text), scaled to [0, 1] by
its smallest and largest value to ã_ik, and unit embeddings e_i of another encoder,

  MS_k = sum_{i<j} ã_ik ã_jk <e_i, e_j> / sum_{i<j} ã_ik ã_jk
       = (|S_k|^2 - sum_i ã_ik^2) / ((sum_i ã_ik)^2 - sum_i ã_ik^2),  S_k = sum_i ã_ik e_i

so that two passes over the items suffice: of smallest and largest values, and of sums.
Embeddings are not centred: a latent that has nothing to do with them has the mean
similarity of all pairs, the floor, and MS - floor says what is beyond it. The scaling
removes the offset of a latent that is never 0, and one item of an extreme activation
makes the others small. Embeddings of the encoder that the SAE reads would be circular.

A latent that is constant is dead; one that is above its smallest value on a single
item has no pairs. Both have no score (NaN), and are counted.

References:
  Pach et al., Sparse Autoencoders Learn Monosemantic Features in Vision-Language
  Models, 2025, arXiv:2504.02821. The closed form and the floor are our definition.
"""

import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np
import scipy.sparse
from jaxtyping import Float, Int

from saejax.errors import InputError
from saejax.features import summary
from saejax.features.summary import Summary

# Activations [B, n] and embeddings [B, e] of the same items.
Batch = tuple[Float[np.ndarray, "B n"], Float[np.ndarray, "B e"]]
TOP = 16  # items that stand for a latent
_ROWS = 1024


@dataclasses.dataclass(frozen=True, eq=False)
class Scores:
  """MonoSemanticity of latents.

  Attributes:
    score: MS of each latent; NaN for those without.
    floor: mean similarity of all pairs of items.
    items: number of items.
    dead: number of constant latents.
    single: number of latents without pairs that are not constant.
  """

  score: Float[np.ndarray, "n"]
  floor: float
  items: int
  dead: int
  single: int

  @property
  def above_floor(self) -> Float[np.ndarray, "n"]:
    """MS - floor of each latent."""
    return self.score - self.floor

  def record(self) -> dict[str, float | int]:
    """Returns the numbers over latents that have a score, for results.json."""
    live = self.score[~np.isnan(self.score)]
    some = len(live) > 0
    return {
      "monosemanticity": float(live.mean()) if some else float("nan"),
      "monosemanticity_sd": float(live.std()) if some else float("nan"),
      "monosemanticity_floor": self.floor,
      "monosemanticity_above_floor": (
        float(live.mean() - self.floor) if some else float("nan")
      ),
      "latents": len(live),
      "dead": self.dead,
      "single": self.single,
      "items": self.items,
    }


def scores(batches: Iterable[Batch]) -> Scores:
  """Computes the score of each latent; the items are read twice.

  Memory is that of a batch, and n e numbers, whatever the number of items.

  Args:
    batches: activations and embeddings of the items, in batches; a list, or
      anything that can be read twice. Embeddings are scaled to unit norm.

  Raises:
    InputError: the batches can be read only once or have fewer than two items,
      activations are not finite, or an embedding is 0 or not finite.

  >>> a = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
  >>> scores([(a, np.array([[1.0, 0], [1, 0], [0, 1]]))]).score.tolist()
  [1.0, 0.0]
  """
  if isinstance(batches, Iterator):
    rule, remedy = (
      "must be readable twice",
      "give a list, or a class with __iter__",
    )
    raise InputError("batches", type(batches).__name__, rule, remedy)
  low, high = _range(batches)
  width = np.where(high > low, high - low, 1)
  S, total, squares, mean, items = 0.0, 0.0, 0.0, 0.0, 0
  for a, e in batches:
    e = _unit(e)
    scaled = (np.asarray(a, np.float64) - low) / width
    S = S + scaled.T @ e
    total = total + scaled.sum(axis=0)
    squares = squares + np.sum(scaled * scaled, axis=0)
    mean = mean + e.sum(axis=0)
    items += len(a)
  if items < 2:
    rule = "must have at least 2 items"
    raise InputError("batches", items, rule, "give more: scores are of pairs")
  above = np.sum(np.square(S), axis=-1) - squares
  below = np.square(total) - squares
  # A single item leaves rounding of its square, at most.
  pairs = below > 1e-12 * np.square(total)
  dead = high <= low
  score = np.full(len(low), np.nan)
  np.divide(above, below, out=score, where=pairs & ~dead)
  return Scores(
    score=score,
    floor=float((np.sum(np.square(mean)) - items) / (items * (items - 1))),
    items=items,
    dead=int(dead.sum()),
    single=int((~pairs & ~dead).sum()),
  )


def _range(batches: Iterable[Batch]) -> tuple[np.ndarray, np.ndarray]:
  """Smallest and largest activation of each latent."""
  low = high = None
  for a, _ in batches:
    a = np.asarray(a, np.float64)
    if not np.isfinite(a).all():
      rule, remedy = "must be finite", "leave out the items that are not"
      raise InputError("batches", "activations", rule, remedy)
    if not len(a):
      continue
    least, most = a.min(axis=0), a.max(axis=0)
    low = least if low is None else np.minimum(low, least)
    high = most if high is None else np.maximum(high, most)
  if low is None or high is None:
    rule = "must have at least 2 items"
    raise InputError("batches", 0, rule, "give more: scores are of pairs")
  return low, high


def _unit(e: Float[np.ndarray, "B e"]) -> Float[np.ndarray, "B e"]:
  e = np.asarray(e, np.float64)
  norm = np.linalg.norm(e, axis=-1, keepdims=True)
  if not (np.isfinite(norm) & (norm > 0)).all():
    rule, remedy = (
      "must be finite and not 0",
      "leave out the items that are not",
    )
    raise InputError("batches", "embeddings", rule, remedy)
  return e / norm


def top_items(
  activations: Iterable[Float[np.ndarray, "B n"]], top: int = TOP
) -> Summary:
  """Finds the items on which each latent is largest, in one pass.

  Args:
    activations: of the items, in batches. For rows of a store
      `features.summary.summarise` has the same.
    top: number of items kept for each latent.

  Raises:
    InputError: there is no batch.
  """
  total, items = None, 0
  for a in activations:
    a = np.asarray(a)
    row, latent = np.nonzero(a)
    entries = latent, a[row, latent], row + items
    part = summary.of_entries(np.arange(a.shape[1]), len(a), entries, top)
    total = part if total is None else total.merged(part)
    items += len(a)
  if total is None:
    raise InputError("activations", 0, "must have a batch", "give some items")
  return total


@dataclasses.dataclass(frozen=True, eq=False)
class Uniqueness:
  """Overlaps of the top items of latents.

  Attributes:
    latents: latents that have as many top items as are kept.
    largest: largest Jaccard overlap of each with another one.
    mean: mean Jaccard overlap over pairs.
  """

  latents: Int[np.ndarray, "l"]
  largest: Float[np.ndarray, "l"]
  mean: float

  def record(self) -> dict[str, float | int]:
    """Returns the numbers, for results.json."""
    return {
      "overlap_mean": self.mean,
      "overlap_largest_mean": float(self.largest.mean()),
      "overlap_latents": len(self.latents),
    }


def uniqueness(top: Int[np.ndarray, "n c"]) -> Uniqueness:
  """Computes |T_i ∩ T_j| / |T_i ∪ T_j| of the top items of latents.

  Args:
    top: top items of each latent, such as `Summary.top_rows`, -1 where there are
      fewer; those latents are left out.

  Raises:
    InputError: fewer than two latents have enough items.

  >>> uniqueness(np.array([[0, 1], [1, 2], [5, -1]])).mean
  0.3333333333333333
  """
  latents = np.flatnonzero((top >= 0).all(axis=1))
  count, c = len(latents), top.shape[1]
  if count < 2 or not c:
    rule = f"must have {c} items for at least two latents"
    raise InputError("top", f"{count} latents", rule, "keep fewer items")
  items, column = np.unique(top[latents], return_inverse=True)
  place = np.repeat(np.arange(count), c), column.ravel()
  member = scipy.sparse.csr_array(
    (np.ones(count * c, np.int32), place), (count, len(items))
  )
  largest, total = np.zeros(count), 0.0
  for start in range(0, count, _ROWS):
    shared = (member[start : start + _ROWS] @ member.T).toarray()
    own = np.arange(len(shared))
    shared[own, start + own] = 0
    overlap = shared / (2 * c - shared)
    largest[start : start + _ROWS] = overlap.max(axis=1)
    total += overlap.sum()
  return Uniqueness(latents, largest, float(total / (count * (count - 1))))
