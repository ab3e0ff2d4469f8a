"""Matches the latents of two SAEs.

Latents are matched by the cosines of their decoder rows, their encoder rows, or
both. Methods:

  exact  the one-to-one assignment of largest sum, for at most 16384 latents
  mnn    mutual nearest neighbours, a lower bound on the pairs, at any size

Where a row has no partner, the exact assignment may give up a good pair to
increase the sum: of 100 equal rows with one sign flipped, 98 or 99 are matched.

A pair is shared if its cosine is above tau. For both sides, decoder and encoder
must have the same partner and the mean of the two cosines must be above tau.
Cosines are bimodal, which means over pairs hide; see `Match.histogram`.

Latents that never fire keep their initial rows, and would all match between two
runs with equal initial weights: exclude them with `alive_a` and `alive_b`, and do
not compare runs with equal initial weights.

References:
  Paulo and Belrose, Sparse Autoencoders Trained on the Same Data Learn
  Different Features, 2025, arXiv:2501.16615.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import scipy.optimize
from jaxtyping import Bool, Float, Int

from saejax.errors import InputError
from saejax.sae.sae import SAE

Rows = Float[np.ndarray, "n d"]
Pairs = Int[np.ndarray, "m 2"]

SIDES = ("decoder", "encoder", "both")
METHODS = ("exact", "mnn")
EXACT_LIMIT = 16384  # latents; the assignment takes n^3 operations, n^2 numbers
BLOCK_ROWS = 4096
TAU = 0.7
COSINE_EDGES = np.linspace(-1.0, 1.0, 41)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Match:
  """Matched pairs of latents of SAEs a and b.

  Attributes:
    pairs: (latent of a, latent of b), ordered by a; for both sides, the
      decoder's pairs.
    cosines: cosine of each pair; for both sides, the mean of the decoder's and
      the encoder's cosine.
    shared: whether each pair is shared.
    alive: number of latents of a that were compared.
    method: "exact" or "mnn".
  """

  pairs: Pairs
  cosines: Float[np.ndarray, "m"]
  shared: Bool[np.ndarray, "m"]
  alive: int
  method: str

  @property
  def fraction(self) -> float:
    """Shared pairs / compared latents of a."""
    return float(self.shared.sum()) / max(1, self.alive)

  @property
  def score(self) -> float:
    """Mean cosine of all pairs; NaN without pairs."""
    return float(self.cosines.mean()) if len(self.cosines) else float("nan")

  def histogram(
    self, edges: Float[np.ndarray, "e"] = COSINE_EDGES
  ) -> dict[str, list]:
    """Counts pairs in bins of their cosine.

    Args:
      edges: edges of the bins.

    Returns:
      {"edges": [e], "counts": [e - 1]}.
    """
    counts, _ = np.histogram(np.clip(self.cosines, edges[0], edges[-1]), edges)
    return {"edges": list(map(float, edges)), "counts": counts.tolist()}

  def record(self) -> dict[str, float | int | str]:
    """Returns the scalars, for results.json."""
    return {
      "fraction": self.fraction,
      "score": self.score,
      "pairs": len(self.pairs),
      "alive": self.alive,
      "method": self.method,
    }


def match(
  sae_a: SAE,
  sae_b: SAE,
  *,
  by: str = "both",
  method: str = "exact",
  tau: float = TAU,
  alive_a: Bool[np.ndarray, "n"] | None = None,
  alive_b: Bool[np.ndarray, "n"] | None = None,
) -> Match:
  """Matches the latents of two SAEs; see the module.

  Args:
    sae_a, sae_b: SAEs of one site, with any numbers of latents. Rows are
      compared in the frame of each SAE's prep; a common scale has no effect.
    by: "decoder", "encoder" or "both".
    method: "exact" or "mnn".
    tau: minimum cosine of a shared pair.
    alive_a, alive_b: masks of the latents to compare; all by default.

  Raises:
    InputError: a choice is unknown, the widths differ, or there are too many
      latents for the exact assignment.
    ValueError: encoders are compared and one is not affine.
  """
  _check(sae_a, sae_b, by, method)
  kept_a, kept_b = _kept(alive_a, sae_a.n), _kept(alive_b, sae_b.n)
  sides = {
    "decoder": lambda sae: np.asarray(sae.W_dec),
    "encoder": lambda sae: np.asarray(sae.W_enc),
  }
  matches = []
  for side in SIDES[:2] if by == "both" else (by,):
    rows_a, rows_b = sides[side](sae_a)[kept_a], sides[side](sae_b)[kept_b]
    matches.append(match_rows(rows_a, rows_b, method))
  pairs, cosines = matches[0]
  shared = cosines > tau
  if by == "both":
    # The mean of both cosines of the decoder's pair; pairs that differ from the
    # encoder's are not shared.
    partner = np.full(len(kept_a), -1)
    partner[matches[1][0][:, 0]] = matches[1][0][:, 1]
    rows_a = unit(sides["encoder"](sae_a)[kept_a])[pairs[:, 0]]
    rows_b = unit(sides["encoder"](sae_b)[kept_b])[pairs[:, 1]]
    cosines = (cosines + np.sum(rows_a * rows_b, axis=-1)) / 2
    shared = (partner[pairs[:, 0]] == pairs[:, 1]) & (cosines > tau)
  numbered = np.stack([kept_a[pairs[:, 0]], kept_b[pairs[:, 1]]], axis=-1)
  return Match(
    pairs=numbered,
    cosines=cosines,
    shared=shared,
    alive=len(kept_a),
    method=method,
  )


def match_rows(
  a: Rows, b: Rows, method: str = "exact"
) -> tuple[Pairs, Float[np.ndarray, "m"]]:
  """Matches the rows of two dictionaries.

  Args:
    a, b: rows.
    method: "exact" or "mnn".

  Returns:
    (pairs of row numbers, ordered by a; their cosines).

  >>> match_rows(np.eye(2), np.eye(2)[::-1])[0].tolist()
  [[0, 1], [1, 0]]
  """
  if not len(a) or not len(b):
    return np.zeros((0, 2), np.int64), np.zeros(0)
  a, b = unit(a), unit(b)
  if method == "exact":
    first, second = assigned(np.concatenate(list(_blocks(a, b))))
  else:
    first, second = _mutual_nearest(a, b)
  cosines = np.sum(a[first] * b[second], axis=-1)
  return np.stack([first, second], axis=-1), cosines


def assigned(
  scores: Float[np.ndarray, "a b"],
) -> tuple[Int[np.ndarray, "m"], Int[np.ndarray, "m"]]:
  """Returns the one-to-one assignment of largest sum: rows, and their columns.

  Args:
    scores: of all pairs.

  >>> [x.tolist() for x in assigned(np.array([[1.0, 3.0], [0.0, 1.0]]))]
  [[0, 1], [1, 0]]
  """
  return scipy.optimize.linear_sum_assignment(scores, maximize=True)


def unit(W: Rows) -> Rows:
  """Scales rows to unit norm in float32.

  Rows of norm 0 remain 0, and non-finite values are replaced by finite ones.

  Args:
    W: rows.
  """
  W = np.nan_to_num(np.asarray(W, np.float32))
  norm = np.linalg.norm(W, axis=-1, keepdims=True)
  return W / np.where(norm > 0, norm, 1)


def _blocks(a: Rows, b: Rows):
  """Yields the cosines of all pairs, for blocks of rows of a."""
  for start in range(0, len(a), BLOCK_ROWS):
    yield a[start : start + BLOCK_ROWS] @ b.T


def _mutual_nearest(a: Rows, b: Rows):
  """Returns pairs of mutual nearest rows, with bounded memory."""
  nearest_b = np.zeros(len(a), np.int64)
  nearest_a, best = np.zeros(len(b), np.int64), np.full(len(b), -np.inf)
  for i, cosines in enumerate(_blocks(a, b)):
    start = i * BLOCK_ROWS
    nearest_b[start : start + len(cosines)] = cosines.argmax(axis=1)
    rows = cosines.argmax(axis=0)
    values = cosines[rows, np.arange(len(b))]
    nearest_a = np.where(values > best, rows + start, nearest_a)
    best = np.maximum(values, best)
  first = np.arange(len(a))
  mutual = nearest_a[nearest_b] == first
  return first[mutual], nearest_b[mutual]


def found_in(
  saes: Sequence[SAE], *, alive: Sequence[np.ndarray] | None = None, **options
) -> Int[np.ndarray, "n"]:
  """Counts, for each latent of the first SAE, the other SAEs that share it.

  Args:
    saes: SAEs; the first one is compared with each of the others.
    alive: masks of the latents to compare, per SAE.
    **options: arguments of `match`.
  """
  masks = [None] * len(saes) if alive is None else alive
  counts = np.zeros(saes[0].n, np.int64)
  for other, mask in zip(saes[1:], masks[1:], strict=True):
    pair = match(saes[0], other, alive_a=masks[0], alive_b=mask, **options)
    counts[pair.pairs[pair.shared, 0]] += 1
  return counts


def shared_with_next(
  saes: Sequence[SAE], densities: Sequence[Float[np.ndarray, "n"]], seeds: int
) -> list[float | None]:
  """Computes the share of live latents of each SAE shared with the next seed.

  Decoder rows are matched, without latents that never fire.

  Args:
    saes: SAEs of several settings, with the `seeds` SAEs of a setting one after
      another; the last one is compared with the first one.
    densities: share of rows on which each latent is not 0, per SAE.
    seeds: number of SAEs per setting.

  Returns:
    A share per SAE; None for each if there is only one seed.
  """
  if seeds < 2:
    return [None] * len(saes)
  alive = [np.asarray(density) > 0 for density in densities]
  shares: list[float | None] = []
  for i, sae in enumerate(saes):
    j = i - i % seeds + (i + 1) % seeds
    pair = match(sae, saes[j], by="decoder", alive_a=alive[i], alive_b=alive[j])
    shares.append(pair.fraction)
  return shares


def _kept(alive, n: int) -> Int[np.ndarray, "m"]:
  return np.arange(n) if alive is None else np.flatnonzero(np.asarray(alive))


def _check(sae_a: SAE, sae_b: SAE, by: str, method: str) -> None:
  for field, value, known in (("by", by, SIDES), ("method", method, METHODS)):
    if value not in known:
      raise InputError(
        field, value, f"must be one of {', '.join(known)}", f"use {known[0]}"
      )
  if sae_a.d != sae_b.d:
    raise InputError(
      "sae_b",
      sae_b.d,
      f"must have the width of sae_a, {sae_a.d}",
      "compare SAEs of one site",
    )
  largest = max(sae_a.n, sae_b.n)
  if method == "exact" and largest > EXACT_LIMIT:
    raise InputError(
      "method",
      method,
      f"needs at most {EXACT_LIMIT} latents, got {largest}",
      "use mnn, a lower bound on the pairs",
    )
