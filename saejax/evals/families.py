"""Relations between the latents of two SAEs: matched, split, absorbed, unmatched.

Seen from the latents i of one SAE that are active on any row; j are those of its
nearest latents in the other SAE (see `evals.pairs`) that are. R_i are the rows where
i is not 0, and S covers |R_i ∩ ∪_S R_j| / |R_i| of i.

matched    the pair of a one-to-one assignment that maximises the sum of the cosines
           of decoder rows has a cosine above tau = 0.7. The share of latents that
           are matched is the overlap of Paulo and Belrose, there with encoders too.
split      several j, its parts, cover at least 0.8 of i and none does alone; each has
           a cosine of at least 0.4 with i, is rarer than i, and has at least half
           of its rows in R_i. This is feature splitting as Bricken et al. see it
           between dictionaries of different n; thresholds are our definition.
absorbed   i is not split, and its main latent, the nearest one, has a cosine of at
           least 0.4 and covers at least half of i, but less than 0.8; with specific
           ones it covers at least 0.8. A specific j is rarer than i and than the main
           one, has at least half of its rows in R_i, and a cosine of at least 0.025
           with i. This is the absorption of Chanin et al., where a latent that seems
           to follow a feature is 0 on rows where a more specific latent stands in,
           with a component along the feature's direction (their 0.025): here the
           feature is latent i of another SAE, and not a probe.
part       it is one of the parts into which a latent of the other SAE is split.
unmatched  none of these.

Parts and specific latents are added by the rows that they add, while each adds at
least 0.05 of R_i. A latent may be matched and split, or matched and absorbed.
Latents of the other SAE beyond the nearest few are not looked at, so that splits and
absorption are lower bounds.

References:
  Paulo and Belrose, Sparse Autoencoders Trained on the Same Data Learn Different
  Features, 2025, arXiv:2501.16615.
  Bricken et al., Towards Monosemanticity, 2023, "Feature Splitting".
  Chanin et al., A is for Absorption, 2024, arXiv:2409.14507.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int

from saejax.evals import matching
from saejax.evals.pairs import Near, Pairs

MATCHED, SPLIT, ABSORBED = "matched", "split", "absorbed"
PART, UNMATCHED = "part", "unmatched"
EXACT, AUTO = "exact", "auto"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rules:
  """Thresholds of the module's docstring.

  Attributes:
    tau: cosine above which a pair is matched.
    cosine: least cosine of parts and of the main latent.
    specific_cosine: least cosine of specific latents.
    cover: least share of the rows that is covered.
    inside: least share of a part's rows that are rows of the latent, and of the
      latent's rows where the main latent is active.
    gain: least share of the rows that a part adds.
  """

  tau: float = matching.TAU
  cosine: float = 0.4
  specific_cosine: float = 0.025
  cover: float = 0.8
  inside: float = 0.5
  gain: float = 0.05


@dataclasses.dataclass(frozen=True)
class Family:
  """A latent with latents of the other SAE.

  Attributes:
    latent: the latent.
    places: places of the others among its nearest; the main one is first in an
      absorbed family.
    covered: share of the latent's rows that they cover.
    added: share of the rows that each adds to those before it.
  """

  latent: int
  places: tuple[int, ...]
  covered: float
  added: tuple[float, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Overlap:
  """A one-to-one assignment of the live latents of two SAEs.

  Attributes:
    pairs: (latent of a, latent of b), ordered by a.
    cosines: cosine of the decoder rows of each pair.
    null: cosines of the pairs with a shuffled decoder in place of that of b:
      each column's values in a random order of the live latents.
    both: pairs that the encoder rows have too with a mean cosine of both above
      tau; -1 where an encoder is not affine.
    method: "exact" or "mnn", see `matching`.
  """

  pairs: Int[np.ndarray, "m 2"]
  cosines: Float[np.ndarray, "m"]
  null: Float[np.ndarray, "m"]
  both: int
  method: str


def overlap(
  found: Pairs,
  encoders: tuple[np.ndarray, np.ndarray] | None = None,
  *,
  method: str = AUTO,
  tau: float = matching.TAU,
  seed: int = 0,
) -> Overlap:
  """Matches the live latents of two SAEs by the cosines of their decoder rows.

  The exact assignment holds a number for each pair of live latents.

  Args:
    found: the SAEs over some rows.
    encoders: encoder rows of each SAE, for `Overlap.both`.
    method: "exact", "mnn", or "auto": exact up to `matching.EXACT_LIMIT`.
    tau: cosine above which a pair counts for `Overlap.both`.
    seed: of the shuffled decoder.
  """
  ids = [np.flatnonzero(live) for live in found.live]
  if method == AUTO:
    most = max(map(len, ids))
    method = EXACT if most <= matching.EXACT_LIMIT else matching.METHODS[1]
  a, b = (found.directions[i][ids[i]] for i in (0, 1))
  pairs, cosines = matching.match_rows(a, b, method)
  shuffled = np.random.default_rng(seed).permuted(b, axis=0)
  _, null = matching.match_rows(a, shuffled, method)
  both = -1
  if encoders is not None:
    e, f = (matching.unit(encoders[i][ids[i]]) for i in (0, 1))
    theirs, _ = matching.match_rows(e, f, method)
    partner = np.full(len(ids[0]), -1)
    partner[theirs[:, 0]] = theirs[:, 1]
    cosine = np.sum(e[pairs[:, 0]] * f[pairs[:, 1]], axis=-1)
    same = partner[pairs[:, 0]] == pairs[:, 1]
    both = int((same & ((cosines + cosine) / 2 > tau)).sum())
  numbered = np.stack([ids[i][pairs[:, i]] for i in (0, 1)], axis=-1)
  return Overlap(numbered, cosines, null, both, method)


def split(found: Pairs, side: int, rules: Rules = Rules()) -> list[Family]:
  """The latents that are split in the other SAE, in order.

  Args:
    found: the SAEs over some rows.
    side: 0 for latents of a, 1 for latents of b.
    rules: thresholds.
  """
  near, count, theirs, inside = _counts(found, side)
  families = []
  fits = (near.cosine >= rules.cosine) & (theirs > 0)
  fits &= (theirs < count[:, None]) & (inside >= rules.inside)
  for i in np.flatnonzero(fits.sum(axis=1) > 1):
    family = _grown(near, int(i), count[i], [], fits[i], rules.gain)
    alone = family.added[0] if family.added else 1
    if len(family.places) > 1 and alone < rules.cover <= family.covered:
      families.append(family)
  return families


def absorbed(
  found: Pairs,
  side: int,
  rules: Rules = Rules(),
  skip: frozenset[int] = frozenset(),
) -> list[Family]:
  """The latents that are absorbed in the other SAE, in order.

  Args:
    found: the SAEs over some rows.
    side: 0 for latents of a, 1 for latents of b.
    rules: thresholds.
    skip: latents that are split.
  """
  near, count, theirs, inside = _counts(found, side)
  share = near.both() / np.maximum(count, 1)[:, None]
  live = theirs > 0
  main = np.argmax(live, axis=1)  # the nearest live one
  at = np.arange(len(count)), main
  holds = live[at] & (near.cosine[at] >= rules.cosine)
  holds &= (share[at] >= rules.inside) & (share[at] < rules.cover)
  fits = live & (near.cosine >= rules.specific_cosine)
  fits &= theirs < np.minimum(count, theirs[at])[:, None]
  fits &= inside >= rules.inside
  families = []
  for i in np.flatnonzero(holds & fits.any(axis=1)):
    if int(i) in skip:
      continue
    first = [int(main[i])]
    family = _grown(near, int(i), count[i], first, fits[i], rules.gain)
    if len(family.places) > 1 and family.covered >= rules.cover:
      families.append(family)
  return families


def _counts(
  found: Pairs, side: int
) -> tuple[Near, np.ndarray, np.ndarray, np.ndarray]:
  """Nearest latents; rows of each latent, of its nearest, share of theirs."""
  near, count = found.near[side], found.summaries[side].count
  theirs = found.summaries[1 - side].count[near.latent]
  return near, count, theirs, near.both() / np.maximum(theirs, 1)


def _grown(
  near: Near,
  i: int,
  count: int,
  first: list[int],
  fits: Bool[np.ndarray, "c"],
  gain: float,
) -> Family:
  """The family of latent i: the first places, and those that add the most."""
  places, left = list(first), [int(j) for j in np.flatnonzero(fits)]
  left = [j for j in left if j not in places]
  added = [near.any_of(i, [j]) / count for j in places]
  covered = sum(added)
  while left:
    shares = [near.any_of(i, [*places, j]) / count for j in left]
    best = int(np.argmax(shares))
    if shares[best] - covered < gain:
      break
    added.append(shares[best] - covered)
    covered = shares[best]
    places.append(left.pop(best))
  return Family(i, tuple(places), covered, tuple(added))
