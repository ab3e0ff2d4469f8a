"""Matches the latents of two SAEs to find those they share.

Latents are matched by the cosines of their decoder rows, of their encoder rows,
or of both. Methods:

  exact  the one-to-one assignment with the largest sum, at most 16384 latents
  mnn    mutual nearest neighbours: a lower bound on the pairs, at any size

Where one row of a pair has no partner, exact may give up a second, good pair to
raise the sum: of 100 equal rows with one sign flipped, 98 or 99 are found.

A pair is shared when its cosine is above tau; by both, when decoder and encoder
pick the same partner and the mean of the two cosines is above tau. Means over
all pairs hide that cosines are bimodal: look at `Match.histogram`.

Latents that never fire keep their initial rows, and two runs from one initial
key would share them all: leave them out by `alive_a` and `alive_b`, and never
compare runs that share initial weights.

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
  """Pairs of latents, in the numbering of each SAE.

  Attributes:
    pairs: (latent of a, latent of b), in the order of a's latents. By both, the
      decoder's pairs.
    cosines: of each pair; by both, the mean of decoder and encoder cosines.
    shared: whether the pair counts as one latent.
    alive: latents of a that were compared.
    method: how they were matched.
  """

  pairs: Pairs
  cosines: Float[np.ndarray, "m"]
  shared: Bool[np.ndarray, "m"]
  alive: int
  method: str

  @property
  def fraction(self) -> float:
    """Shared latents over those of a that were compared."""
    return float(self.shared.sum()) / max(1, self.alive)

  @property
  def score(self) -> float:
    """Mean cosine of all pairs; NaN where there is none."""
    return float(self.cosines.mean()) if len(self.cosines) else float("nan")

  def histogram(
    self, edges: Float[np.ndarray, "e"] = COSINE_EDGES
  ) -> dict[str, list]:
    """Pairs in bins of their cosine: {"edges": [e], "counts": [e - 1]}."""
    counts, _ = np.histogram(np.clip(self.cosines, edges[0], edges[-1]), edges)
    return {"edges": list(map(float, edges)), "counts": counts.tolist()}

  def record(self) -> dict[str, float | int | str]:
    """The numbers, for results.json."""
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
    sae_a, sae_b: SAEs of one site, of any numbers of latents. Rows are
      compared in the frame of each one's prep, where a common scale does not
      matter.
    by: "decoder", "encoder" or "both".
    method: "exact" or "mnn".
    tau: least cosine of a shared pair.
    alive_a, alive_b: which latents to compare; all by default.

  Raises:
    InputError: an unknown choice, SAEs of other widths, or too many latents
      for an exact match.
    ValueError: encoders are compared and one is not affine.
  """
  _check(sae_a, sae_b, by, method)
  kept_a, kept_b = _kept(alive_a, sae_a.n), _kept(alive_b, sae_b.n)
  sides = {
    "decoder": lambda sae: np.asarray(sae.W_dec),
    "encoder": lambda sae: np.asarray(sae.W_enc),
  }
  found = []
  for side in SIDES[:2] if by == "both" else (by,):
    rows_a, rows_b = sides[side](sae_a)[kept_a], sides[side](sae_b)[kept_b]
    found.append(match_rows(rows_a, rows_b, method))
  pairs, cosines = found[0]
  shared = cosines > tau
  if by == "both":
    # The mean is of both sides of the decoder's pair; a pair that the encoders
    # match otherwise is not shared.
    partner = np.full(len(kept_a), -1)
    partner[found[1][0][:, 0]] = found[1][0][:, 1]
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
  """Pairs of rows of two dictionaries, in the order of a, and their cosines."""
  if not len(a) or not len(b):
    return np.zeros((0, 2), np.int64), np.zeros(0)
  a, b = unit(a), unit(b)
  if method == "exact":
    first, second = scipy.optimize.linear_sum_assignment(
      np.concatenate(list(_blocks(a, b))), maximize=True
    )
  else:
    first, second = _mutual_nearest(a, b)
  cosines = np.sum(a[first] * b[second], axis=-1)
  return np.stack([first, second], axis=-1), cosines


def unit(W: Rows) -> Rows:
  """Rows at unit norm in float32; rows of 0 or of no number become 0."""
  W = np.nan_to_num(np.asarray(W, np.float32))
  norm = np.linalg.norm(W, axis=-1, keepdims=True)
  return W / np.where(norm > 0, norm, 1)


def _blocks(a: Rows, b: Rows):
  """Cosines of all pairs, some rows of a at a time."""
  for start in range(0, len(a), BLOCK_ROWS):
    yield a[start : start + BLOCK_ROWS] @ b.T


def _mutual_nearest(a: Rows, b: Rows):
  """Rows that are each other's nearest, without all cosines at once."""
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
    saes: the first one is compared with each other.
    alive: latents of each to compare.
    **options: of `match`.
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
  """The share of live latents of each SAE that the next seed has too.

  Decoder rows are matched; latents that never fire are left out.

  Args:
    saes: of several settings, `seeds` of each in a row; the last of a setting
      is compared with its first.
    densities: of each, share of rows on which each latent is not 0.
    seeds: SAEs of each setting.

  Returns:
    None for each where there is only one seed.
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
      f"must have the width {sae_a.d}",
      "give SAEs of one site",
    )
  largest = max(sae_a.n, sae_b.n)
  if method == "exact" and largest > EXACT_LIMIT:
    raise InputError(
      "method",
      method,
      f"{largest} latents are above {EXACT_LIMIT}, too many to assign",
      "use mnn, a lower bound on the pairs",
    )
