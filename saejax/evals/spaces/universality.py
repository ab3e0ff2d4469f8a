"""Matched latents of two SAEs on two models, and the geometry of their decoders.

Both SAEs encode the same tokens: z_a [N, n_a], z_b [N, n_b]. With columns z-scored,
latents are matched by C = z_a^T z_b / N, from sums alone, in one pass. A pair of
latents gives a pair of decoder rows, A [m, d_a] and B [m, d_b], whose geometry is
compared by `similarity.svcca` and `similarity.rsa`, each with the null of shuffled
pairs.

  many_to_one   for every latent of b the latent of a of largest correlation
  one_to_one    of these the best one for each latent of a
  hungarian     the one-to-one assignment of largest sum

The smaller dictionary is b. Latents that never vary have no partner. Whether z are
the latents or pre-activations is the caller's choice; the reference takes
pre-activations on one path and latents on the other, and we latents. Mask first
tokens: extreme positions make dense latents correlate.

References:
  Lan et al., Sparse Autoencoders Reveal Universal Feature Spaces Across Large
  Language Models, 2024, arXiv:2410.06981.
"""

import dataclasses
from collections.abc import Collection, Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
import scipy.sparse
from jaxtyping import Bool, Float, Int

from saejax.errors import InputError
from saejax.evals import matching
from saejax.features import summary
from saejax.sae.sae import SAE

MATCHINGS = ("many_to_one", "one_to_one", "hungarian")
LEAST = 0.1  # correlation up to which a pair is dropped
# Tokens that name no concept, in lower case and without spaces around them.
NON_CONCEPTS = frozenset(
  [
    *("", ".", ",", "-", "!", "?"),
    *("<|endoftext|>", "<|end_of_text|>", "<|begin_of_text|>", "<pad>"),
    *("<bos>", "<eos>", "<s>", "</s>", "[cls]", "[sep]", "[pad]"),
  ]
)
_SPREAD = 1e-8  # added to standard deviations, as in the reference
_BYTES = 2**33  # of the sums

Latents: TypeAlias = Any  # dense or sparse [N, n]


def check_sizes(n_a: int, n_b: int) -> None:
  """Refuses sums that would need more than 8 GiB.

  Args:
    n_a, n_b: numbers of latents.

  Raises:
    InputError: they would.
  """
  if 8 * n_a * n_b > _BYTES:
    raise InputError(
      "n_b",
      n_b,
      f"with n_a={n_a} needs {8 * n_a * n_b / 2**30:.0f} GiB, at most "
      f"{_BYTES / 2**30:.0f}",
      "correlate a part of the latents of b at a time",
    )


class CrossSums:
  """Sums over rows from which all correlations of two SAEs' latents follow.

  In float64; memory does not grow with rows, and sums of parts, in any chunks, are
  those of the whole.

  Args:
    n_a, n_b: numbers of latents.

  Raises:
    InputError: n_a n_b sums would need more than 8 GiB.
  """

  def __init__(self, n_a: int, n_b: int):
    check_sizes(n_a, n_b)
    self.rows = 0
    self.a, self.b = np.zeros((2, n_a)), np.zeros((2, n_b))  # of z, of z^2
    self.both = np.zeros((n_a, n_b))

  def add(self, z_a: Latents, z_b: Latents) -> None:
    """Adds rows.

    Args:
      z_a, z_b: latents of both SAEs on the same rows, dense or sparse.

    Raises:
      InputError: the numbers of rows differ.
    """
    rows, others = z_a.shape[0], z_b.shape[0]
    if rows != others:
      rule = f"must have as many rows as z_a, {rows}"
      raise InputError("z_b", f"{others} rows", rule, "align the tokens")
    A, B = (scipy.sparse.csr_array(z, dtype=np.float64) for z in (z_a, z_b))
    self.rows += rows
    for sums, Z in ((self.a, A), (self.b, B)):
      sums += [Z.sum(axis=0), Z.power(2).sum(axis=0)]
    found = (A.T @ B).tocoo()
    self.both[found.row, found.col] += found.data

  def merged(self, other: "CrossSums") -> "CrossSums":
    """The sums over the rows of both.

    Args:
      other: sums over other rows.
    """
    found = CrossSums(*self.both.shape)
    found.rows = self.rows + other.rows
    for name in ("a", "b", "both"):
      setattr(found, name, getattr(self, name) + getattr(other, name))
    return found

  @property
  def varies(self) -> tuple[Bool[np.ndarray, "n_a"], Bool[np.ndarray, "n_b"]]:
    """Which latents of a and of b vary over the rows."""
    return _spread(self.a, self.rows) > 0, _spread(self.b, self.rows) > 0

  @property
  def correlation(self) -> Float[np.ndarray, "n_a n_b"]:
    """Pearson correlations; 0 where a latent does not vary."""
    N = max(self.rows, 1)
    about = self.both / N - np.outer(self.a[0] / N, self.b[0] / N)
    spread = (_spread(sums, self.rows) for sums in (self.a, self.b))
    by_a, by_b = (np.where(s > 0, 1 / (s + _SPREAD), 0) for s in spread)
    return by_a[:, None] * about * by_b


def _spread(sums: Float[np.ndarray, "2 n"], rows: int) -> np.ndarray:
  """Standard deviations; 0 where all that is left is rounding."""
  mean, square = sums / max(rows, 1)
  variance = square - mean**2
  return np.sqrt(np.where(variance > 1e-12 * square, variance, 0))


@dataclasses.dataclass(frozen=True, eq=False)
class Pairs:
  """Matched latents.

  Attributes:
    a, b: their numbers.
    correlation: of each pair.
  """

  a: Int[np.ndarray, "m"]
  b: Int[np.ndarray, "m"]
  correlation: Float[np.ndarray, "m"]

  def __len__(self) -> int:
    return len(self.a)

  def where(self, keep: Bool[np.ndarray, "m"] | np.ndarray) -> "Pairs":
    """Some of the pairs.

    Args:
      keep: a mask, or places.
    """
    return Pairs(self.a[keep], self.b[keep], self.correlation[keep])

  def record(self) -> dict[str, Any]:
    """Counts and the mean correlation, for results.json."""
    mean = self.correlation.mean() if len(self) else np.nan
    return {
      "pairs": len(self),
      "latents_of_a": len(np.unique(self.a)),
      "correlation": float(mean),
    }


def match(
  sums: CrossSums, how: str = "many_to_one", *, least: float = LEAST
) -> Pairs:
  """Matches latents by their correlation; see the module.

  Args:
    sums: over the rows; b should be the smaller dictionary.
    how: one of `MATCHINGS`.
    least: pairs of this correlation or less are dropped.

  Raises:
    InputError: there is no such matching, or too many latents for an assignment.
  """
  if how not in MATCHINGS:
    rule = f"must be one of {', '.join(MATCHINGS)}"
    raise InputError("how", how, rule, f"use {MATCHINGS[0]}")
  alive_a, alive_b = (np.flatnonzero(varies) for varies in sums.varies)
  C = sums.correlation[np.ix_(alive_a, alive_b)]
  if not C.size:
    return Pairs(np.zeros(0, int), np.zeros(0, int), np.zeros(0))
  if how == "hungarian":
    if max(C.shape) > matching.EXACT_LIMIT:
      rule = f"takes at most {matching.EXACT_LIMIT} latents, got {max(C.shape)}"
      raise InputError("how", how, rule, "use one_to_one")
    a, b = matching.assigned(C)
  else:
    a, b = C.argmax(axis=0), np.arange(C.shape[1])
  found = Pairs(alive_a[a], alive_b[b], C[a, b])
  found = found.where(found.correlation > least)
  return one_to_one(found) if how == "one_to_one" else found


def one_to_one(pairs: Pairs) -> Pairs:
  """Keeps the pair of largest correlation of each latent of a, ordered by b.

  Args:
    pairs: many of b to one of a.
  """
  order = np.lexsort((pairs.b, -pairs.correlation, pairs.a))
  first = np.unique(pairs.a[order], return_index=True)[1]
  return pairs.where(np.sort(order[first]))


# --- filters -----------------------------------------------------------------


def words(tokens: Sequence[str]) -> list[str]:
  """Tokens in lower case, without marks of word starts and spaces around them.

  Args:
    tokens: texts of tokens.

  >>> words([" Monday", "##ing", "\\n"])
  ['monday', 'ing', '']
  """
  return [
    t.strip(" \t\r\n\u0120\u010a\u2581").removeprefix("##").lower()
    for t in tokens
  ]


def concepts(
  pairs: Pairs,
  top_a: Sequence[Sequence[str]],
  top_b: Sequence[Sequence[str]],
  *,
  junk: Collection[str] = NON_CONCEPTS,
  shared: bool = True,
) -> Pairs:
  """Drops pairs whose top tokens name no concept, or have none in common.

  Args:
    pairs: the pairs.
    top_a, top_b: the tokens of the largest activations (5, in the paper), of
      every latent of a and of b.
    junk: tokens that name no concept, as `words` gives them; a pair is dropped if
      a top token of either latent is among them.
    shared: whether both latents must have a top token in common.
  """
  keep = np.zeros(len(pairs), bool)
  for i, (a, b) in enumerate(zip(pairs.a, pairs.b, strict=True)):
    of_a, of_b = set(words(top_a[a])), set(words(top_b[b]))
    keep[i] = not (of_a | of_b) & set(junk)
    keep[i] &= bool(of_a & of_b) or not shared
  return pairs.where(keep)


def subspace(
  pairs: Pairs,
  top_a: Sequence[Sequence[str]],
  top_b: Sequence[Sequence[str]],
  keywords: Collection[str],
) -> Int[np.ndarray, "s"]:
  """Places of the pairs of which each latent has a top token among keywords.

  Args:
    pairs: the pairs.
    top_a, top_b: as for `concepts`.
    keywords: words of a meaning, such as those of `semantics.KEYWORDS`.
  """
  known = set(words(list(keywords)))
  has = lambda top: not known.isdisjoint(words(top))
  found = [
    has(top_a[a]) and has(top_b[b])
    for a, b in zip(pairs.a, pairs.b, strict=True)
  ]
  return np.flatnonzero(found)


# --- one pass ----------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Observed:
  """What two SAEs do on the same tokens.

  Attributes:
    sums: from which correlations follow.
    a, b: summaries of the latents, with the rows of their largest values: numbers
      of the tokens in the order of the pass.
  """

  sums: CrossSums
  a: summary.Summary
  b: summary.Summary


def observe(
  sae_a: SAE,
  sae_b: SAE,
  batches: Iterable[tuple[np.ndarray, np.ndarray]],
  *,
  top: int = 5,
  batch_rows: int = 4096,
) -> Observed:
  """Encodes the tokens with both SAEs; tokens that are not finite in both count 0.

  Args:
    sae_a, sae_b: the SAEs, in the inference form; b has the smaller dictionary.
    batches: rows of the same tokens at both sites.
    top: number of tokens kept for each latent.
    batch_rows: largest number of rows on the device at once.

  Raises:
    InputError: as `CrossSums`.
  """
  sums, saes = CrossSums(sae_a.n, sae_b.n), (sae_a, sae_b)
  every = [np.arange(sae.n) for sae in saes]
  found = [summary.of_entries(n, 0, summary.NONE, top) for n in every]
  first = 0
  for pair in batches:
    finite = np.all([np.isfinite(x).all(axis=-1) for x in pair], axis=0)
    numbers = first + np.flatnonzero(finite)
    first += len(finite)
    sparse = []
    for i, (sae, x) in enumerate(zip(saes, pair, strict=True)):
      parts = list(summary.active(sae, numbers, x[finite], batch_rows))
      for part in parts:
        more = summary.of_entries(
          every[i], part.rows, part.among(every[i]), top
        )
        found[i] = found[i].merged(more)
      sparse.append(_sparse(parts, numbers, sae.n))
    sums.add(*sparse)
  return Observed(sums, *found)


def _sparse(
  parts: Sequence[summary.Active], numbers: np.ndarray, n: int
) -> scipy.sparse.csr_array:
  """The latents of rows as a sparse matrix."""
  value, row, latent = (
    np.concatenate([getattr(p, name) for p in parts] or [np.zeros(0, int)])
    for name in ("value", "row", "latent")
  )
  place = np.searchsorted(numbers, row)
  return scipy.sparse.csr_array((value, (place, latent)), (len(numbers), n))
