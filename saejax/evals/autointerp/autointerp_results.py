"""What a judge's answers say: confusion counts, rates, AUROC, correlations.

A failed answer is a wrong one: its window counts among the false negatives or the
false positives, its score is the worst, its tokens are predicted the other way round.
`failed` is their number.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from saejax.evals import metrics
from saejax.evals.autointerp.judge import wrong_where_failed
from saejax.evals.autointerp.windows import LEVELS


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Scored:
  """Scores of windows, and the right answers.

  Attributes:
    score: the judge's; NaN where it failed [N].
    label: the right answers [N].
    threshold: least score of a yes; NaN where only the order counts.
    quantile: quantile of each window, -1 for silent ones [N].
  """

  score: Float[np.ndarray, "N"]
  label: Bool[np.ndarray, "N"]
  threshold: float
  quantile: Int[np.ndarray, "N"]

  @property
  def failed(self) -> int:
    """Number of failed answers."""
    return int(np.isnan(self.score).sum())

  @property
  def predicted(self) -> Bool[np.ndarray, "N"]:
    """The answers; those that failed are the wrong ones."""
    return np.where(
      np.isnan(self.score), ~self.label, self.score >= self.threshold
    )

  @property
  def confusion(self) -> dict[str, int]:
    """Counts of true and false positives and negatives."""
    said, label = self.predicted, self.label
    return {
      "tp": int((said & label).sum()),
      "fp": int((said & ~label).sum()),
      "tn": int((~said & ~label).sum()),
      "fn": int((~said & label).sum()),
    }

  @property
  def precision(self) -> float:
    """tp / (tp + fp); 0 where nothing is predicted."""
    found = self.confusion
    return found["tp"] / max(1, found["tp"] + found["fp"])

  @property
  def recall(self) -> float:
    """tp / (tp + fn); 0 where there is nothing to find."""
    found = self.confusion
    return found["tp"] / max(1, found["tp"] + found["fn"])

  @property
  def f1(self) -> float:
    """2 tp / (2 tp + fp + fn)."""
    found = self.confusion
    wrong = found["fp"] + found["fn"]
    return 2 * found["tp"] / max(1, 2 * found["tp"] + wrong)

  @property
  def accuracy(self) -> float:
    """Share of right answers."""
    return float(np.mean(self.predicted == self.label))

  @property
  def balanced_accuracy(self) -> float:
    """Mean of the shares of right answers among active and silent windows.

    NaN where there are none of either kind.
    """
    return _mean_of_shares(self.predicted == self.label, self.label)

  @property
  def auroc(self) -> float | None:
    """P(score of an active window > of a silent one), ties half.

    None where scores take two values only, or windows are of one kind.
    """
    known = self.score[~np.isnan(self.score)]
    both = self.label.any() and not self.label.all()
    if len(np.unique(known)) < 3 or not both:
      return None
    score = wrong_where_failed(self.score, self.label)
    return float(metrics.auroc(score, self.label))

  def recalls(self) -> dict[int, float]:
    """The share of right answers among the active windows of each quantile."""
    right = self.predicted == self.label
    numbers = np.unique(self.quantile[self.label])
    each = ((int(q), self.label & (self.quantile == q)) for q in numbers)
    return {q: float(right[use].mean()) for q, use in each}

  def record(self) -> dict[str, Any]:
    """Returns the numbers, for results.json.

    Those that need a threshold are left out where there is none.
    """
    found: dict[str, Any] = {
      "active": int(self.label.sum()),
      "silent": int((~self.label).sum()),
      "failed": self.failed,
      "auroc": self.auroc,
    }
    if np.isnan(self.threshold) or not len(self.label):
      return found
    balanced = self.balanced_accuracy
    return found | {
      "confusion": self.confusion,
      "precision": self.precision,
      "recall": self.recall,
      "f1": self.f1,
      "accuracy": self.accuracy,
      "balanced_accuracy": None if np.isnan(balanced) else balanced,
    }


def _mean_of_shares(
  right: Bool[np.ndarray, "N"], label: Bool[np.ndarray, "N"]
) -> float:
  if not label.any() or label.all():
    return float("nan")
  return float((right[label].mean() + right[~label].mean()) / 2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Intruded:
  """Whether a judge finds the window that does not belong.

  Attributes:
    right: number of trials in which it did.
    trials: number of trials.
    failed: number of trials without an answer.
    count: windows of a trial; the chance is 1 / count.
  """

  right: int
  trials: int
  failed: int
  count: int

  @property
  def accuracy(self) -> float:
    """Share of the trials in which it did; NaN without trials."""
    return self.right / self.trials if self.trials else float("nan")

  def record(self) -> dict[str, Any]:
    """Returns the numbers, for results.json."""
    return {
      "accuracy": self.accuracy if self.trials else None,
      "chance": 1 / self.count,
      "trials": self.trials,
      "failed": self.failed,
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Simulated:
  """Correlation of predicted and true activations over tokens.

  Attributes:
    correlation: over the tokens of all windows, silent ones too.
    quantiles: over those of each quantile's windows and the silent ones.
    constant: number of these correlations that are 0 because the prediction or the
      truth does not vary.
    failed: number of windows without a prediction.
  """

  correlation: float
  quantiles: dict[int, float]
  constant: int
  failed: int

  def record(self) -> dict[str, Any]:
    """Returns the numbers, for results.json."""
    return {
      "correlation": self.correlation,
      "quantiles": {str(q): r for q, r in self.quantiles.items()},
      "constant": self.constant,
      "failed": self.failed,
    }


def simulated(
  predicted: Sequence[Float[np.ndarray, "T"]],
  true: Sequence[Float[np.ndarray, "T"]],
  quantile: Int[np.ndarray, "N"],
) -> Simulated:
  """Correlates predictions with the truth.

  Args:
    predicted: levels of the tokens of each window; NaN where the judge failed, for
      which 10 is taken where the truth is 0, and 0 elsewhere.
    true: the latent on these tokens.
    quantile: quantile of each window, -1 for silent ones.
  """
  failed = [bool(np.isnan(p).any()) for p in predicted]
  filled = [
    np.where(t > 0, 0.0, LEVELS) if wrong else p
    for p, t, wrong in zip(predicted, true, failed, strict=True)
  ]

  def over(use: np.ndarray) -> tuple[float, bool]:
    which = np.flatnonzero(use).tolist()
    if not len(which):
      return 0.0, True
    return correlation(
      np.concatenate([filled[i] for i in which]),
      np.concatenate([true[i] for i in which]),
    )

  quantile = np.asarray(quantile)
  every = over(np.ones(len(quantile), bool))
  each = {
    int(q): over((quantile == q) | (quantile == -1))
    for q in np.unique(quantile[quantile >= 0])
  }
  return Simulated(
    correlation=every[0],
    quantiles={q: r for q, (r, _) in each.items()},
    constant=every[1] + sum(flat for _, flat in each.values()),
    failed=sum(failed),
  )


def correlation(
  predicted: Float[np.ndarray, "T"], true: Float[np.ndarray, "T"]
) -> tuple[float, bool]:
  """Pearson's correlation, and whether it is 0 because one does not vary.

  Args:
    predicted, true: the numbers.
  """
  a, b = (np.asarray(v, np.float64) for v in (predicted, true))
  if not np.ptp(a) or not np.ptp(b):
    return 0.0, True
  a, b = a - a.mean(), b - b.mean()
  r = float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
  return float(np.clip(r, -1, 1)), False


def weighted(
  score: Float[np.ndarray, "L"], rate: Float[np.ndarray, "L"]
) -> float:
  """Mean score of latents, weighted by how often they fire.

    sum_i p_i s_i / sum_i p_i

  Args:
    score: such as the F1 of each latent; those that are NaN are left out.
    rate: firing rate of each.
  """
  score, rate = np.asarray(score, float), np.asarray(rate, float)
  use = np.isfinite(score)
  total = float(rate[use].sum())
  return float(score[use] @ rate[use] / total) if total else float("nan")
