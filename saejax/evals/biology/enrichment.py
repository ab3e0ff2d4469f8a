"""Gene sets that are enriched among the genes of a latent.

Cells in the top 1 % of a latent are compared with the cells where it is 0:

  p of gene g      Welch's t-test of its expression, two-sided
  q of gene g      p adjusted by Benjamini and Hochberg
  fold change      (mean in top cells + 1e-8) / (mean in the others + 1e-8)

The list of a latent has the genes with q < 1e-5 and a fold change of at least 2, or at
most 1/2. A set of K of G genes, of which h are in a list of m, has

  binomial         p of h hits in m draws with probability K / G, two-sided
  ranks            Mann-Whitney test of the fold changes of its genes and the others,
                   normal approximation with ties, two-sided

both adjusted over the sets of 10 to 500 measured genes. The authors' rank test has no
correction for ties and p = Phi(-|z|), half of ours, which is not uniform under the
null; their tests leave out genes that are constant in one group.

References:
  Schuster, Can sparse autoencoders make sense of latent representations?, 2024,
  arXiv:2410.11468, and sc_mechinterp (scFeatureLens). Benjamini and Hochberg,
  Controlling the False Discovery Rate, 1995.
"""

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
import scipy.special
import scipy.stats
from jaxtyping import Bool, Float

from saejax.errors import InputError

SHARE = 0.01
SIGNIFICANT, CHANGE = 1e-5, 2.0
SIZES = (10, 500)  # genes of a set
_SMALL = 1e-8  # added to means of expression


@dataclasses.dataclass(frozen=True, eq=False)
class Expression:
  """How the expression of genes differs between two groups of cells.

  Attributes:
    genes: names of the genes [G].
    p: p of Welch's t-test; 1 for a gene that is constant in both groups.
    q: p adjusted by Benjamini and Hochberg.
    fold: fold change.
  """

  genes: tuple[str, ...]
  p: Float[np.ndarray, "G"]
  q: Float[np.ndarray, "G"]
  fold: Float[np.ndarray, "G"]

  def listed(
    self, *, significant: float = SIGNIFICANT, change: float = CHANGE
  ) -> Bool[np.ndarray, "G"]:
    """Genes of the list of a latent, changed in either direction.

    Args:
      significant: q below which a gene is listed.
      change: least fold change, or its inverse.
    """
    far = (self.fold >= change) | (self.fold <= 1 / change)
    return (self.q < significant) & far


@dataclasses.dataclass(frozen=True)
class Enriched:
  """A gene set and its tests.

  Attributes:
    name: name of the set.
    genes: number of its genes that were measured.
    hits: how many of them are in the list.
    expected: hits to expect.
    binomial_p, binomial_q: p of the hits, and adjusted over the sets.
    ranks_p, ranks_q: p of the ranks of fold changes, and adjusted.
    effect: probability that a gene of the set has the larger fold change.
  """

  name: str
  genes: int
  hits: int
  expected: float
  binomial_p: float
  binomial_q: float
  ranks_p: float
  ranks_q: float
  effect: float

  def record(self) -> dict[str, float | int | str]:
    """Returns the numbers, for results.json."""
    return dataclasses.asdict(self)


def top_cells(
  z: Float[np.ndarray, "N"], *, share: float = SHARE
) -> tuple[Bool[np.ndarray, "N"], Bool[np.ndarray, "N"]]:
  """Chooses the cells to compare: above the quantile 1 - share, and at 0.

  Args:
    z: a latent on all cells.
    share: share of the top cells.

  Returns:
    (top cells, cells where the latent is 0).

  Raises:
    InputError: the share is not in (0, 1), or a group has fewer than two cells.
  """
  if not 0 < share < 1:
    raise InputError("share", share, "must be in (0, 1)", "use 0.01")
  high = (z > np.quantile(z, 1 - share)) & (z > 0)
  low = z == 0
  for group, name in ((high, "in its top"), (low, "where it is 0")):
    if group.sum() < 2:
      rule = f"must have at least 2 {name}"
      remedy = "raise the share, take more cells, or another latent"
      raise InputError("z", f"{int(group.sum())} cells", rule, remedy)
  return high, low


def expression(
  x: Float[np.ndarray, "N G"],
  high: Bool[np.ndarray, "N"],
  low: Bool[np.ndarray, "N"],
  genes: Sequence[str],
) -> Expression:
  """Compares the expression of each gene in two groups of cells.

  Args:
    x: expression, at least 0.
    high, low: masks of the two groups, from `top_cells`.
    genes: names of the genes.

  Raises:
    InputError: the number of names is not that of columns, a name is twice, or
      expression is negative or not finite.
  """
  if len(genes) != x.shape[1] or len(set(genes)) < len(genes):
    rule = f"must be {x.shape[1]} different names, one for each column of x"
    raise InputError("genes", len(genes), rule, "name each gene once")
  a, b = (np.asarray(x[group], np.float64) for group in (high, low))
  if not all(np.all((v >= 0) & np.isfinite(v)) for v in (a, b)):
    rule = "must be finite and at least 0: fold changes are of means"
    raise InputError("x", "expression", rule, "give counts or their logarithm")
  varies = (np.ptp(a, axis=0) > 0) | (np.ptp(b, axis=0) > 0)
  p = np.ones(len(genes))
  if varies.any():
    test = scipy.stats.ttest_ind(a[:, varies], b[:, varies], equal_var=False)
    p[varies] = test.pvalue  # pyright: ignore[reportAttributeAccessIssue]
  fold = (a.mean(axis=0) + _SMALL) / (b.mean(axis=0) + _SMALL)
  return Expression(tuple(genes), p, adjusted(p), fold)


def adjusted(p: Float[np.ndarray, "m"]) -> Float[np.ndarray, "m"]:
  """Adjusts p-values by Benjamini and Hochberg.

  Args:
    p: p-values.

  >>> adjusted(np.array([0.01, 0.04, 0.03, 0.5])).round(4).tolist()
  [0.04, 0.0533, 0.0533, 0.5]
  """
  if not len(p):
    return np.asarray(p, np.float64)
  return scipy.stats.false_discovery_control(p, method="bh")


def gene_sets(
  lines: Iterable[str], *, name: str = "gene sets"
) -> dict[str, tuple[str, ...]]:
  """Reads gene sets in GMT: set, description, genes, separated by tabs.

  Args:
    lines: lines of the file; empty ones are skipped.
    name: name of the file in errors.

  Returns:
    Genes of each set, each once, in the order of the file.

  Raises:
    InputError: a line has no genes or an empty name, or a set is there twice; with
      the number of the line.

  >>> gene_sets(["transport\\tof CO2\\tCA2\\tHBB"])
  {'transport': ('CA2', 'HBB')}
  """
  found: dict[str, tuple[str, ...]] = {}
  remedy = "write: set, description, genes, with tabs between them"
  for number, line in enumerate(lines, 1):
    if not line.strip():
      continue
    where = f"{name}, line {number}"
    fields = [field.strip() for field in line.rstrip("\r\n").split("\t")]
    genes = tuple(dict.fromkeys(gene for gene in fields[2:] if gene))
    if not fields[0]:
      raise InputError(where, line[:40], "must have a name first", remedy)
    if not genes:
      rule = f"must have at least one gene, has {len(fields)} fields"
      raise InputError(where, fields[0], rule, remedy)
    if fields[0] in found:
      rule, remedy = "is there twice", "remove one of both, or rename it"
      raise InputError(where, fields[0], rule, remedy)
    found[fields[0]] = genes
  if not found:
    raise InputError(name, 0, "must have at least one set", remedy)
  return found


def enriched(
  tested: Expression,
  sets: Mapping[str, Collection[str]],
  *,
  significant: float = SIGNIFICANT,
  change: float = CHANGE,
  sizes: tuple[int, int] = SIZES,
) -> list[Enriched]:
  """Tests gene sets, the smallest binomial p first.

  Args:
    tested: comparison of two groups of cells.
    sets: genes of each set; genes that were not measured do not count.
    significant, change: of the list, see `Expression.listed`.
    sizes: least and largest number of measured genes of a set; others are left out.

  Raises:
    InputError: no set has such a size.
  """
  place = {gene: i for i, gene in enumerate(tested.genes)}
  members = {
    name: np.unique([place[gene] for gene in genes if gene in place])
    for name, genes in sets.items()
  }
  members = {
    name: own.astype(int)
    for name, own in members.items()
    if sizes[0] <= len(own) <= sizes[1]
  }
  if not members:
    rule = f"none of them has {sizes[0]} to {sizes[1]} measured genes"
    raise InputError("sets", len(sets), rule, "check the names of genes")
  listed = tested.listed(significant=significant, change=change)
  m, G = int(listed.sum()), len(tested.genes)
  names = list(members)
  hits = [int(listed[members[name]].sum()) for name in names]
  share = [len(members[name]) / G for name in names]
  binomial = np.array(
    [
      scipy.stats.binomtest(h, m, p).pvalue if m else 1.0
      for h, p in zip(hits, share, strict=True)
    ]
  )
  ranks, effect = _rank_tests(tested.fold, [members[name] for name in names])
  q = adjusted(binomial), adjusted(ranks)
  return sorted(
    (
      Enriched(
        name=name,
        genes=len(members[name]),
        hits=hits[i],
        expected=m * share[i],
        binomial_p=float(binomial[i]),
        binomial_q=float(q[0][i]),
        ranks_p=float(ranks[i]),
        ranks_q=float(q[1][i]),
        effect=float(effect[i]),
      )
      for i, name in enumerate(names)
    ),
    key=lambda found: (found.binomial_p, found.ranks_p, found.name),
  )


def _rank_tests(
  values: Float[np.ndarray, "G"], members: list[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
  """p of Mann-Whitney tests of members and others, and U / (m l)."""
  G = len(values)
  rank = scipy.stats.rankdata(values)
  _, ties = np.unique(values, return_counts=True)
  tied = float(np.sum(ties.astype(float) ** 3 - ties)) / max(G * (G - 1), 1)
  p, effect = np.ones(len(members)), np.full(len(members), 0.5)
  for i, own in enumerate(members):
    inside, outside = len(own), G - len(own)
    if not outside:
      continue
    U = rank[own].sum() - inside * (inside + 1) / 2
    effect[i] = U / (inside * outside)
    sd = np.sqrt(inside * outside / 12 * (G + 1 - tied))
    if sd > 0:  # with a correction for continuity
      z = max(abs(U - inside * outside / 2) - 0.5, 0) / sd
      p[i] = min(2 * scipy.special.ndtr(-z), 1.0)
  return p, effect
