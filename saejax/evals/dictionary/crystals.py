"""Crystals: do differences of word pairs of one relation point the same way?

For word pairs (a, b) of several relations, such as country and capital, and rows h of
a site,

  v = h(a) - h(b)

Relations are crystals if the v of a relation are near each other: the mean silhouette
of v by relation. Raw differences hide it behind directions that have nothing to do
with the relation, such as the length of the words, so that they are projected by
linear discriminant analysis (LDA) to c components first.

With nearly as many dimensions as points LDA separates any labels: 120 Gaussian points in
100 dimensions with 12 random labels have a silhouette of 0.65. Here LDA is fitted on
some of the pairs of each relation, and the silhouette is that of the others; its null
has the labels permuted before LDA. The paper fits and scores the same points:
`Crystals.in_sample`.

References:
  Li et al., The Geometry of Concepts: Sparse Autoencoder Feature Structure, 2024,
  arXiv:2410.19750, section 3. Hastie, Tibshirani and Friedman, The Elements of
  Statistical Learning, 2009, section 4.3 (LDA).
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from saejax.errors import InputError
from saejax.evals import metrics
from saejax.evals.null import Null

COMPONENTS = 8
TEST = 0.3  # share of the pairs of each relation that are held out
DRAWS = 100
_TOLERANCE = 1e-4  # of singular values, as scikit-learn's


@dataclasses.dataclass(frozen=True, eq=False)
class Crystals:
  """Silhouettes of differences by relation.

  Attributes:
    held_out: of held-out pairs after LDA, with the null of permuted labels.
    raw: of all differences, without LDA.
    in_sample: of all pairs after LDA that was fitted on all of them, the paper's
      number (feature-geometry's crystal_lda.py).
    components: components of LDA.
    pairs: number of pairs.
  """

  held_out: Null
  raw: float
  in_sample: float
  components: int
  pairs: int

  def record(self) -> dict[str, float | int]:
    """Returns the numbers, for results.json."""
    return {
      "silhouette": float(self.held_out.observed),
      "silhouette_null": float(self.held_out.mean),
      "silhouette_z": float(self.held_out.z),
      "silhouette_p": float(self.held_out.p),
      "silhouette_raw": self.raw,
      "compat_silhouette_in_sample": self.in_sample,
      "components": self.components,
      "pairs": self.pairs,
    }


@dataclasses.dataclass(frozen=True, eq=False)
class Projection:
  """A linear projection, (x - mean) W.

  Attributes:
    mean: what is subtracted.
    W: columns, the most discriminative first.
  """

  mean: Float[np.ndarray, "d"]
  W: Float[np.ndarray, "d c"]

  def __call__(self, x: Float[np.ndarray, "N d"]) -> Float[np.ndarray, "N c"]:
    """Projects rows.

    Args:
      x: rows.
    """
    return (x - self.mean) @ self.W


def crystals(
  v: Float[np.ndarray, "N d"],
  relation: Shaped[np.ndarray, "N"],
  *,
  components: int = COMPONENTS,
  test: float = TEST,
  draws: int = DRAWS,
  seed: int = 0,
) -> Crystals:
  """Computes silhouettes of differences by relation; see the module.

  Args:
    v: differences h(a) - h(b), of anything that can be subtracted: activations,
      latents, or rows of another encoder.
    relation: relation of each pair.
    components: components of LDA, at most the relations less one.
    test: share of the pairs of each relation that are held out.
    draws: permutations of the null.
    seed: of the division and the permutations.

  Raises:
    InputError: there are fewer than two relations, a relation has fewer than
      four pairs, or LDA has fewer components.
  """
  v = np.asarray(v, np.float64)
  names, label = np.unique(np.asarray(relation), return_inverse=True)
  if len(v) != len(label):
    rule = f"must have one for each of the {len(v)} pairs"
    raise InputError("relation", len(label), rule, "name the relation of each")
  if not 1 <= components < len(names):
    rule = f"must be in [1, {len(names) - 1}]: one less than the relations"
    raise InputError("components", components, rule, "lower it, or add some")
  least = np.bincount(label).argmin()
  if (label == least).sum() < 4:
    rule = f"must have at least 4 pairs, got {(label == least).sum()}"
    raise InputError(
      "relation", names[least], rule, "add pairs, or leave it out"
    )
  train = _division(label, test, seed)
  rng, values = np.random.default_rng(seed + 1), np.empty(draws)
  for i in range(draws):
    other = label.copy()
    for side in (train, ~train):  # the division is by relation
      other[side] = rng.permutation(label[side])
    values[i] = _held_out(v, other, train, components)
  whole = lda(v, label, components)
  return Crystals(
    held_out=Null(_held_out(v, label, train, components), values),
    raw=float(metrics.silhouette(v, label)),
    in_sample=float(metrics.silhouette(whole(v), label)),
    components=components,
    pairs=len(v),
  )


def _held_out(v, label, train, components: int) -> float:
  fitted = lda(v[train], label[train], components)
  return float(metrics.silhouette(fitted(v[~train]), label[~train]))


def _division(
  label: Int[np.ndarray, "N"], test: float, seed: int
) -> Bool[np.ndarray, "N"]:
  """Which points train: at least two of each label, and two that do not."""
  if not 0 < test < 1:
    raise InputError("test", test, "must be in (0, 1)", "use 0.3")
  rng = np.random.default_rng(seed)
  train = np.ones(len(label), bool)
  for each in np.unique(label):
    own = rng.permutation(np.flatnonzero(label == each))
    count = int(np.clip(round(test * len(own)), 2, len(own) - 2))
    train[own[:count]] = False
  return train


def lda(
  x: Float[np.ndarray, "N d"], label: Int[np.ndarray, "N"], components: int
) -> Projection:
  """Fits linear discriminant analysis.

  With x whitened by the covariance within labels, directions in which it varies,
  the principal components of the means of labels, weighted by their numbers.
  scikit-learn's solver "svd" does the same, up to signs.

  Args:
    x: points.
    label: label of each.
    components: number of columns, at most the labels less one; there are fewer
      where the means span fewer.

  >>> x = np.array([[0.0, 0], [1, 1], [0, 9], [1, 10]])
  >>> lda(x, np.array([0, 0, 1, 1]), 1)(x).shape
  (4, 1)
  """
  kinds, label = np.unique(label, return_inverse=True)
  share = np.bincount(label) / len(x)
  means = np.stack([x[label == k].mean(axis=0) for k in range(len(kinds))])
  within = x - means[label]
  spread = within.std(axis=0)
  spread[spread == 0] = 1
  freedom = max(len(x) - len(kinds), 1)
  _, size, V = np.linalg.svd(
    within / spread / np.sqrt(freedom), full_matrices=False
  )
  rank = int((size > _TOLERANCE).sum())
  whiten = (V[:rank] / spread).T / size[:rank]
  mean = share @ means
  weight = np.sqrt(len(x) * share / max(len(kinds) - 1, 1))
  _, size, V = np.linalg.svd(
    (weight[:, None] * (means - mean)) @ whiten, full_matrices=False
  )
  rank = int((size > _TOLERANCE * size[0]).sum()) if len(size) else 0
  return Projection(mean, whiten @ V[: min(rank, components)].T)


def length_correlation(
  v: Float[np.ndarray, "N d"], length: Float[np.ndarray, "N"]
) -> float:
  """Computes |Pearson r| of the first principal component of v and a number.

  Args:
    v: differences of pairs.
    length: difference of the lengths of the words of each, for example.

  Raises:
    InputError: one of both is constant.
  """
  centred = np.asarray(v, np.float64) - np.mean(v, axis=0)
  first = np.linalg.svd(centred, full_matrices=False)[0][:, 0]
  if np.ptp(first) == 0 or np.ptp(length) == 0:
    rule = "must not be the same for all pairs, nor the differences"
    raise InputError("length", length[0], rule, "give pairs that differ")
  return float(abs(np.corrcoef(first, length)[0, 1]))
