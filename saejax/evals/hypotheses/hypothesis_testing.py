"""Tests of hypotheses about texts: do annotations go with a target?

For annotations A [N, H] of held-out texts in {0, 1} (differences of pairs: -1, 0, 1),
and a target y:

  separation_j   mean(y | A_j = 1) - mean(y | A_j = 0), with Welch's t-test
  regression     OLS, or a logit of y in {True, False}, on all A together
  significant    p_j < 0.1 / H (Bonferroni), and the sign that was claimed
  prevalence_j   share of texts with A_j != 0

p-values are of the regression on all of these texts, none of which selected or
described a hypothesis. Its score, AUROC or R^2, is of texts that it was not fitted on:
the mean over two halves, each scored by the fit on the other. The reference scores the
texts that it fits, as `compat="hypothesaes"` does. See `hypotheses` for where
annotations are from.

References:
  Movva et al., Sparse Autoencoders for Hypothesis Generation, 2025,
  arXiv:2502.04382; github.com/rmovva/HypotheSAEs, evaluation.py.
"""

import dataclasses
from typing import Any

import numpy as np
import scipy.optimize
import scipy.stats
from jaxtyping import Bool, Float, Int

from saejax.errors import InputError
from saejax.evals import metrics
from saejax.evals.hypotheses import regression

LEVEL = 0.1  # family-wise, divided by the number of hypotheses


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Tested:
  """What annotations of held-out texts say of a target; arrays [H].

  Attributes:
    separation: mean target of texts that fit less that of others.
    separation_p: p-value of Welch's t-test of it; 1 where either has below two.
    coefficient: of the regression on all hypotheses.
    p: p-value of it.
    significant: whether p is below 0.1 / H, and the sign is that of the selection.
    prevalence: share of texts that fit.
    score: AUROC, or R^2, of regressions on texts that they were not fitted on.
    kind: "auroc" or "r2".
    texts: number of texts.
  """

  separation: Float[np.ndarray, "H"]
  separation_p: Float[np.ndarray, "H"]
  coefficient: Float[np.ndarray, "H"]
  p: Float[np.ndarray, "H"]
  significant: Bool[np.ndarray, "H"]
  prevalence: Float[np.ndarray, "H"]
  score: float
  kind: str
  texts: int

  def record(self) -> dict[str, Any]:
    """Returns the numbers, for results.json."""
    names = ("separation", "separation_p", "coefficient", "p", "prevalence")
    found: dict[str, Any] = {k: getattr(self, k).tolist() for k in names}
    return found | {
      "significant": self.significant.tolist(),
      "significant_count": int(self.significant.sum()),
      self.kind: self.score,
      "texts": self.texts,
    }


def test(
  fits: Float[np.ndarray, "N H"],
  y: np.ndarray,
  *,
  sign: Float[np.ndarray, "H"] | None = None,
  seed: int = 0,
  compat: str = "",
) -> Tested:
  """Tests whether annotations go with a target.

  Args:
    fits: annotations of held-out texts; 0 and 1, or -1, 0 and 1 of pairs.
    y: target of each text, numbers, or True and False.
    sign: sign of the relation that each hypothesis claims, such as
      `Selected.score`; by default either.
    seed: of the division into halves.
    compat: "hypothesaes" scores the texts that are fitted.

  Raises:
    InputError: shapes do not agree, there is no hypothesis, or as
      `regression.fit`.
  """
  fits, y = np.asarray(fits, np.float64), np.asarray(y)
  if fits.ndim != 2 or not fits.shape[1] or y.shape != fits.shape[:1]:
    rule = f"must be [N, H] with H above 0 and N={len(y)} of y"
    raise InputError("fits", fits.shape, rule, "annotate the texts of y")
  if compat not in ("", "hypothesaes"):
    rule = "must be hypothesaes or empty"
    raise InputError("compat", compat, rule, "leave it out")
  fitted = regression.fit(fits, y)
  if compat:
    score = _score(fitted.predict(fits), y)
  else:
    first = _half(y, seed)
    score = (_scored(fits, y, first) + _scored(fits, y, ~first)) / 2
  H = fits.shape[1]
  claimed = np.ones(H, bool)
  if sign is not None:
    claimed = np.sign(fitted.coefficient) == np.sign(sign)
  each = [_separation(column, y.astype(float)) for column in fits.T]
  return Tested(
    separation=np.array([gap for gap, _ in each]),
    separation_p=np.array([p for _, p in each]),
    coefficient=fitted.coefficient,
    p=fitted.p,
    significant=(fitted.p < LEVEL / H) & claimed,
    prevalence=np.mean(fits != 0, axis=0),
    score=score,
    kind="auroc" if fitted.logistic else "r2",
    texts=len(y),
  )


def _separation(
  fits: Float[np.ndarray, "N"], y: Float[np.ndarray, "N"]
) -> tuple[float, float]:
  """The difference of the means, and its p-value; of pairs, of signs."""
  yes = y[fits > 0]
  no = y[fits < 0] if (fits < 0).any() else y[fits == 0]
  if len(yes) < 2 or len(no) < 2:
    return 0.0, 1.0
  gap = float(yes.mean() - no.mean())
  if not np.ptp(yes) and not np.ptp(no):
    return gap, float(gap == 0)
  _, p = scipy.stats.ttest_ind(yes, no, equal_var=False)
  return gap, float(p)


def _half(y: np.ndarray, seed: int) -> Bool[np.ndarray, "N"]:
  """A random half of the texts; of both classes, where there are classes."""
  key = y if y.dtype == bool else np.zeros(len(y), bool)
  order = np.lexsort((np.random.default_rng(seed).random(len(y)), key))
  half = np.zeros(len(y), bool)
  half[order[::2]] = True
  return half


def _scored(
  fits: Float[np.ndarray, "N H"], y: np.ndarray, first: Bool[np.ndarray, "N"]
) -> float:
  """The score of texts by the regression on the others.

  Args:
    fits, y: annotations and targets.
    first: the texts that it is fitted on.
  """
  fitted = regression.fit(fits[first], y[first])
  return _score(fitted.predict(fits[~first]), y[~first])


def _score(predicted: Float[np.ndarray, "N"], y: np.ndarray) -> float:
  """AUROC of True and False, R^2 of numbers."""
  if y.dtype == bool:
    if y.all() or not y.any():
      return float("nan")
    return float(metrics.auroc(predicted, y))
  total = float(np.sum((y - y.mean()) ** 2))
  error = float(np.sum((y - predicted) ** 2))
  return 1 - error / total if total else float("nan")


# --- known hypotheses --------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Recovered:
  """Known hypotheses and those that were found, matched one to one.

  Attributes:
    pairs: (known, found) [m, 2].
    correlation: of the annotations of each pair [m].
    f1: of the found annotations against the known ones [m].
  """

  pairs: Int[np.ndarray, "m 2"]
  correlation: Float[np.ndarray, "m"]
  f1: Float[np.ndarray, "m"]

  @property
  def mean_f1(self) -> float:
    """Mean F1 of the pairs; NaN without pairs."""
    return float(self.f1.mean()) if len(self.f1) else float("nan")


def recovered(
  known: Float[np.ndarray, "N R"], found: Float[np.ndarray, "N H"]
) -> Recovered:
  """Matches annotations of known hypotheses with those of found ones.

  The assignment has the largest sum of correlations of the annotations.

  Args:
    known: annotations of the known hypotheses, 0 and 1.
    found: those of the found ones, on the same texts.

  Raises:
    InputError: they are of other numbers of texts.
  """
  known, found = np.asarray(known, float), np.asarray(found, float)
  if len(known) != len(found):
    rule = f"must have as many texts as known, {len(known)}"
    raise InputError("found", len(found), rule, "annotate the same texts")
  a, b = (_standard(part) for part in (known, found))
  r = a.T @ b
  first, second = scipy.optimize.linear_sum_assignment(r, maximize=True)
  f1 = [
    float(metrics.f1(found[:, j] > 0, known[:, i] > 0))
    for i, j in zip(first, second, strict=True)
  ]
  return Recovered(
    pairs=np.stack([first, second], axis=-1),
    correlation=r[first, second],
    f1=np.array(f1),
  )


def _standard(A: Float[np.ndarray, "N H"]) -> Float[np.ndarray, "N H"]:
  """Centred columns of norm 1; constant ones are 0."""
  centred = A - A.mean(axis=0)
  norm = np.linalg.norm(centred, axis=0)
  return centred / np.where(norm > 0, norm, 1)
