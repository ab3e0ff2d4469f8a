"""Hypotheses about what texts with a target share, from an SAE of their embeddings.

  1. select     latents that predict the target, on the texts of training
  2. describe   each by a judge, from texts where it is strong and where it is 0
  3. annotate   held-out texts by the judge: does the text fit the description?
  4. test       do annotations go with the target? See `hypothesis_testing`.

A failed annotation is 0, and counted.

References:
  Movva et al., Sparse Autoencoders for Hypothesis Generation, 2025,
  arXiv:2502.04382; github.com/rmovva/HypotheSAEs, select_neurons.py,
  interpret_neurons.py, annotate.py.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from saejax.errors import InputError
from saejax.evals import metrics
from saejax.evals.autointerp.judge import DETECTION, Judge
from saejax.evals.autointerp.windows import Window, plain
from saejax.evals.probing import probe

SELECTIONS = ("lasso", "correlation", "separation")


# --- selection ---------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Selected:
  """Latents that predict a target.

  Attributes:
    latents: their numbers, the strongest first.
    score: the score of each, with the sign of its relation to the target.
  """

  latents: Int[np.ndarray, "H"]
  score: Float[np.ndarray, "H"]


def select(
  z: Float[np.ndarray, "N n"],
  y: np.ndarray,
  *,
  count: int = 20,
  how: str = "lasso",
  compat: str = "",
) -> Selected:
  """Selects latents by their relation to a target.

  Args:
    z: latents of the texts of training.
    y: target of each, numbers, or True and False.
    count: number of latents; "lasso" may find fewer, since of latents that say
      the same it takes one.
    how: weights of a "lasso" with so many non-zeros, "correlation", or
      "separation": the mean target of the strongest active texts less that of
      the texts where a latent is 0.
    compat: "hypothesaes" fills up the active texts of rare latents with others in
      the separation.

  Raises:
    InputError: there is no such way, shapes do not agree, or count is outside 1
      to n.
  """
  z, y = np.asarray(z), np.asarray(y)
  if how not in SELECTIONS:
    rule = f"must be one of {', '.join(SELECTIONS)}"
    raise InputError("how", how, rule, "choose one")
  if z.ndim != 2 or y.shape != z.shape[:1]:
    rule = f"must be one value for each row of z, {z.shape}"
    raise InputError("y", y.shape, rule, "give targets of the same texts")
  if not 1 <= count <= z.shape[1]:
    rule = f"must be in [1, {z.shape[1]}], the number of latents"
    raise InputError("count", count, rule, "choose another")
  if how == "lasso":
    spread = z.std(axis=0)
    standard = (z - z.mean(axis=0)) / np.where(spread > 0, spread, 1)
    loss = "logistic" if y.dtype == bool else "squared"
    fitted = probe.lasso_to_count(standard, y, count=count, loss=loss)
    score = np.asarray(fitted.weight)[0]
  elif how == "correlation":
    score = probe.correlation(z, y)[0]
  else:
    score = probe.separation(z, y, compat=compat or None)[0]
  score = np.nan_to_num(score)
  order = np.argsort(-np.abs(score), kind="stable")[:count]
  order = order[score[order] != 0]
  return Selected(latents=order, score=score[order])


# --- descriptions ------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hypothesis:
  """What a latent stands for, in words.

  Attributes:
    latent: its number.
    text: the description; empty where the judge gave none.
    f1: of the judge's annotations with it, against whether the latent is active;
      NaN where they were not asked for.
  """

  latent: int
  text: str
  f1: float


def describe(
  judge: Judge,
  texts: Sequence[str],
  z: Float[np.ndarray, "N"],
  latent: int,
  *,
  count: int = 10,
  candidates: int = 1,
  check: int = 100,
  seed: int = 0,
) -> Hypothesis:
  """Describes a latent from texts where it is strong and where it is 0.

  Texts are drawn from the tenth of the active ones where it is strongest. Of
  several candidates, each of its own draw, the one is taken whose annotations of
  `check` texts, half of them the strongest not shown and half 0, have the best F1.

  Args:
    judge: who describes and annotates.
    texts: the texts of training.
    z: the latent on each.
    latent: its number.
    count: texts of each kind that the judge is shown.
    candidates: number of candidates.
    check: texts that a candidate is checked on; 0 for none.
    seed: of the draws.

  Raises:
    InputError: the latent is never active, or there are more or fewer values than
      texts.
  """
  z = np.asarray(z)
  if z.shape != (len(texts),):
    rule = f"must be one value for each of {len(texts)} texts"
    raise InputError("z", z.shape, rule, "give latents of the same texts")
  order = np.argsort(-z, kind="stable")
  active, zero = order[z[order] > 0], np.flatnonzero(z == 0)
  if not len(active):
    rule = "must be active on a text of training"
    raise InputError("latent", latent, rule, "select among active latents")
  rng = np.random.default_rng(seed)
  strong = active[: max(count, len(active) // 10)]
  best = Hypothesis(latent=latent, text="", f1=float("nan"))
  for _ in range(max(1, candidates)):
    shown = rng.permutation(strong)[:count]
    silent = rng.permutation(zero)[:count]
    text = judge.explain(
      [plain(texts[i]) for i in shown], [plain(texts[i]) for i in silent]
    )
    if not text:
      continue
    rest = np.setdiff1d(active, shown)
    rest = rest[np.argsort(-z[rest], kind="stable")][: check // 2]
    others = rng.permutation(np.setdiff1d(zero, silent))[: check // 2]
    f1 = _f1(judge, text, texts, rest, others)
    if not best.text or f1 > best.f1:
      best = Hypothesis(latent=latent, text=text, f1=f1)
  return best


def _f1(
  judge: Judge,
  text: str,
  texts: Sequence[str],
  active: Int[np.ndarray, "a"],
  zero: Int[np.ndarray, "b"],
) -> float:
  """F1 of annotations against activity; a failed one is wrong."""
  if not len(active) or not len(zero):
    return float("nan")
  windows = [plain(texts[i]) for i in [*active, *zero]]
  score = judge.score(text, windows, DETECTION)
  label = np.arange(len(windows)) < len(active)
  said = np.where(np.isnan(score), ~label, score >= judge.threshold)
  return float(metrics.f1(said, label))


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Annotations:
  """Whether texts fit hypotheses.

  Attributes:
    fits: 1 where a text fits, 0 elsewhere [N, H].
    failed: number of answers that failed, whose places are 0.
  """

  fits: Float[np.ndarray, "N H"]
  failed: int

  def less(self, other: "Annotations") -> "Annotations":
    """Annotations of pairs, -1, 0 or 1: of the first text less the second.

    Args:
      other: of the second texts.
    """
    fits, failed = self.fits - other.fits, self.failed + other.failed
    return Annotations(fits=fits, failed=failed)


def annotate(
  judge: Judge, hypotheses: Sequence[str], texts: Sequence[str]
) -> Annotations:
  """Annotates texts with hypotheses.

  Args:
    judge: the judge; its scores need a threshold.
    hypotheses: descriptions; an empty one fails on all texts.
    texts: held-out texts.

  Raises:
    InputError: the judge's scores have no threshold.
  """
  if np.isnan(judge.threshold):
    rule = "must be a number, so that scores are yes or no"
    raise InputError("judge.threshold", judge.threshold, rule, "give one")
  windows = [plain(text) for text in texts]
  fits, failed = np.zeros((len(texts), len(hypotheses))), 0
  for j, hypothesis in enumerate(hypotheses):
    score = _scores(judge, hypothesis, windows)
    fits[:, j] = np.nan_to_num(score, nan=-np.inf) >= judge.threshold
    failed += int(np.isnan(score).sum())
  return Annotations(fits=fits, failed=failed)


def _scores(
  judge: Judge, hypothesis: str, windows: Sequence[Window]
) -> Float[np.ndarray, "N"]:
  if not hypothesis:
    return np.full(len(windows), np.nan)
  return np.asarray(judge.score(hypothesis, windows, DETECTION), float)
