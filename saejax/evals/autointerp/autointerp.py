"""Scores of an explanation of a latent, from a judge's answers about windows.

  detection   does a window contain what the explanation says?
  fuzzing     are the marked tokens of a window the ones that it is about?
  intruder    without explanation: which of n marked windows does not belong?
  simulation  levels 0..10 of each token; Pearson correlation with the latent
  listed      which of 14 windows will be active? (SAEBench)

Surprisal and embedding scores are detection by `judge_local.Surprisal` and by
`judge_embedding.Embedding`, whose scores are graded: read their AUROC.

Windows are shuffled before the judge sees them. Silent windows of fuzzing have as many
marks as active ones have on average, at positions drawn like those of active ones and
anew for each window, so that a position tells nothing.

References:
  Bills et al., Language models can explain neurons in language models, 2023;
  Paulo et al., Automatically Interpreting Millions of Features in Large Language
  Models, 2024, arXiv:2410.13928; Karvonen et al., SAEBench, 2025, arXiv:2503.09532.
"""

import dataclasses
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from saejax.errors import InputError
from saejax.evals.autointerp.autointerp_results import (
  Intruded,
  Scored,
  Simulated,
  simulated,
)
from saejax.evals.autointerp.judge import (
  DETECTION,
  FUZZING,
  LIST,
  Ability,
  Judge,
)
from saejax.evals.autointerp.windows import Window

MARKED = 0.3  # of a window's largest value: tokens marked for an explanation
LISTED = 0.01  # of the largest value: tokens that are active in SAEBench's list


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Examples:
  """Windows of a latent.

  Attributes:
    train: active ones, to explain with.
    test: other active ones.
    silent: silent ones, to test with.
    contrast: silent ones that are shown beside `train`.
    rate: share of tokens on which the latent is active.
  """

  train: Sequence[Window]
  test: Sequence[Window]
  silent: Sequence[Window]
  contrast: Sequence[Window] = ()
  rate: float = float("nan")


def explain(judge: Judge, examples: Examples, *, share: float = MARKED) -> str:
  """Asks for an explanation; "" where the judge gives none.

  Args:
    judge: the judge.
    examples: windows; those of `train` and `contrast` are shown.
    share: of a window's largest value, above which tokens are marked.

  Raises:
    InputError: there are no windows to explain with.
  """
  if not examples.train:
    rule, remedy = "must have a window", "skip latents that are never active"
    raise InputError("examples.train", 0, rule, remedy)
  shown = [window.marked(window.strong(share)) for window in examples.train]
  return judge.explain(shown, examples.contrast)


def detection(
  judge: Judge, explanation: str, examples: Examples, *, seed: int = 0
) -> Scored:
  """Scores windows without marks.

  Args:
    judge: the judge.
    explanation: the explanation; where it is empty, all answers are failures.
    examples: windows; `test` and `silent` are shown.
    seed: of the order.
  """
  plain = [
    w.marked(np.zeros(len(w.tokens), bool))
    for w in [*examples.test, *examples.silent]
  ]
  label = np.arange(len(plain)) < len(examples.test)
  return _scored(judge, explanation, plain, label, DETECTION, seed)


def fuzzing(
  judge: Judge,
  explanation: str,
  examples: Examples,
  *,
  kind: str = "silent",
  seed: int = 0,
) -> Scored:
  """Scores windows with marks, which are right on active windows.

  Args:
    judge: the judge.
    explanation: the explanation; where it is empty, all answers are failures.
    examples: windows; `test` and `silent` are shown.
    kind: what has wrong marks: "silent" windows, or "active" ones, whose silent
      tokens are marked; those that have none are left out.
    seed: of the marks and the order.

  Raises:
    InputError: there is no such kind.
  """
  if kind not in ("silent", "active"):
    rule = "must be silent or active"
    raise InputError("kind", kind, rule, "choose one")
  right = [window.marked(window.active) for window in examples.test]
  wrong = examples.silent if kind == "silent" else examples.test
  false = mark(wrong, right, seed=seed)
  label = np.arange(len(right) + len(false)) < len(right)
  return _scored(judge, explanation, [*right, *false], label, FUZZING, seed)


def mark(
  windows: Sequence[Window], like: Sequence[Window], *, seed: int = 0
) -> list[Window]:
  """Marks silent tokens of windows, as many as others have marks on average.

  Positions are drawn without replacement by how often the others have marks there,
  plus a little, anew for each window; the number is the mean, rounded up.

  Args:
    windows: the windows; those without a silent token are left out.
    like: windows with marks.
    seed: of the draw.
  """
  if not like:
    return []
  count = int(np.ceil(np.mean([w.marks.sum() for w in like])))
  longest = max(len(w.tokens) for w in [*windows, *like])
  often = np.full(longest, 1 / longest)
  for window in like:
    often[: len(window.marks)] += window.marks
  rng = np.random.default_rng(seed)
  found = []
  for window in windows:
    (free,) = np.nonzero(~window.active)
    some = min(count, len(free))
    if not some:
      continue
    p = often[free] / often[free].sum()
    marks = np.zeros(len(window.tokens), bool)
    marks[rng.choice(free, some, replace=False, p=p)] = True
    found.append(window.marked(marks))
  return found


def _scored(
  judge: Judge,
  explanation: str,
  windows: Sequence[Window],
  label: Bool[np.ndarray, "N"],
  question: str,
  seed: int,
) -> Scored:
  """The judge's scores of shuffled windows."""
  order = np.random.default_rng(seed + 1).permutation(len(windows))
  shown = [windows[i] for i in order]
  score = np.full(len(shown), np.nan)
  if explanation and shown:
    score = np.asarray(judge.score(explanation, shown, question), float)
  if score.shape != (len(shown),):
    rule = f"must give one score for each of {len(shown)} windows"
    raise InputError("judge", score.shape, rule, "give NaN where it failed")
  quantile = np.array([w.quantile for w in shown], int)
  return Scored(
    score=score,
    label=label[order],
    threshold=judge.threshold,
    quantile=np.where(label[order], quantile, -1),
  )


def intruder(
  judge: Judge,
  examples: Examples,
  *,
  kind: str = "standard",
  count: int = 5,
  trials: int = 20,
  seed: int = 0,
) -> Intruded:
  """Asks for the window that does not belong; there is no explanation.

  Each trial has count - 1 windows of one quantile and an intruder, all marked, in
  random order.

  Args:
    judge: the judge.
    examples: windows; those of `test` and `silent` are shown.
    kind: the intruder is a silent window with wrong marks, "standard", or a window
      of another quantile of the latent, "internal".
    count: windows of a trial.
    trials: number of trials; 0 are made where no quantile has enough windows.
    seed: of the draws.

  Raises:
    InputError: there is no such kind, or count is below 3.
  """
  if kind not in ("standard", "internal"):
    raise InputError("kind", kind, "must be standard or internal", "choose one")
  if count < 3:
    rule = "must be at least 3: of two, neither is odd"
    raise InputError("count", count, rule, "raise it")
  rng = np.random.default_rng(seed)
  active = [window.marked(window.active) for window in examples.test]
  quantile = np.array([window.quantile for window in active], int)
  numbers, sizes = np.unique(quantile, return_counts=True)
  enough = numbers[sizes >= count - 1]
  strange = mark(examples.silent, active, seed=seed)
  possible = len(strange) if kind == "standard" else len(numbers) > 1
  if not len(enough) or not possible:
    return Intruded(right=0, trials=0, failed=0, count=count)
  right = failed = 0
  for _ in range(trials):
    q = rng.choice(enough)
    shown = rng.choice(np.flatnonzero(quantile == q), count - 1, replace=False)
    if kind == "standard":
      odd = strange[rng.integers(len(strange))]
    else:
      odd = active[rng.choice(np.flatnonzero(quantile != q))]
    at = int(rng.integers(count))
    windows = [active[i] for i in shown]
    windows.insert(at, odd)
    answer = judge.odd(windows)
    failed += not 0 <= answer < count
    right += answer == at
  return Intruded(right=right, trials=trials, failed=failed, count=count)


def simulation(judge: Judge, explanation: str, examples: Examples) -> Simulated:
  """Correlates the levels that a judge predicts with the latent.

  Args:
    judge: the judge.
    explanation: the explanation; where it is empty, all windows are failures.
    examples: windows; `test` and `silent` are shown.
  """
  windows = [*examples.test, *examples.silent]
  if explanation and windows:
    predicted = judge.simulate(explanation, windows)
  else:
    predicted = [np.full(len(w.tokens), np.nan) for w in windows]
  lengths = [len(w.tokens) for w in windows]
  if [len(p) for p in predicted] != lengths:
    rule = "must predict a level for each token of each window"
    remedy = "give NaN where it failed"
    raise InputError("judge", [len(p) for p in predicted], rule, remedy)
  return simulated(
    predicted,
    [np.maximum(w.values, 0) for w in windows],
    np.array([w.quantile for w in windows], int),
  )


def listed(
  judge: Judge,
  explanation: str,
  windows: Sequence[Window],
  *,
  top: int = 2,
  weighted: int = 2,
  random: Sequence[Window] = (),
  seed: int = 0,
  compat: str = "",
) -> Scored:
  """Shows a list of windows, of which the judge names the active ones.

  The share of windows judged right is SAEBench's score. A judge that names none has
  10 / 14 there, and a balanced accuracy of 1/2.

  Args:
    judge: the judge.
    explanation: the explanation; where it is empty, all answers are failures.
    windows: active windows to test with; the `top` strongest are shown, and
      `weighted` of the others, drawn in proportion to the square of their value.
    top, weighted: numbers of these.
    random: windows of random text. Those where the latent is above 0.01 of its
      largest value are right answers too.
    seed: of the draws and the order.
    compat: "saebench" takes all random windows for silent, without looking.
  """
  rng = np.random.default_rng(seed)
  largest = np.array([w.values.max(initial=0) for w in windows])
  order = np.argsort(-largest, kind="stable")
  rest = order[top:]
  square = largest[rest] ** 2
  some = min(weighted, int((square > 0).sum()))
  drawn = (
    rng.choice(rest, some, replace=False, p=square / square.sum())
    if some
    else rest[:0]
  )
  shown = [windows[i] for i in [*order[:top], *drawn]]
  shown = [*shown, *random]
  least = LISTED * max(
    (max(w.largest, w.values.max(initial=0)) for w in shown), default=0
  )
  # The truth of the list is what is above the least value.
  shown = [
    dataclasses.replace(
      w,
      values=np.where(w.values > least, w.values, 0),
      marks=np.zeros(len(w.tokens), bool),
    )
    for w in shown
  ]
  label = np.array([bool(w.active.any()) for w in shown], bool)
  if compat == "saebench":
    label = np.arange(len(shown)) < len(shown) - len(random)
  elif compat:
    rule = "must be saebench or empty"
    raise InputError("compat", compat, rule, "leave it out")
  return _scored(judge, explanation, shown, label, LIST, seed)


def evaluate(
  judge: Judge,
  examples: Examples,
  *,
  ability: Ability | None = None,
  intruders: int = 20,
  seed: int = 0,
) -> dict[str, Any]:
  """Explains a latent and scores the explanation: a row of results.

  Args:
    judge: who explains and scores.
    examples: its windows.
    ability: of the judge, from `judge.gate`; the row says whether it is able.
    intruders: trials of each kind of intruder.
    seed: of all draws.

  Raises:
    InputError: there are no windows to explain with.
  """
  explanation = explain(judge, examples)
  # Each latent has draws of its own.
  own = repr([window.key for window in examples.train]).encode()
  seed = (seed + zlib.crc32(own)) % 2**32
  row: dict[str, Any] = {
    "explanation": explanation,
    "rate": examples.rate,
    "train": len(examples.train),
  }
  if ability is not None:
    row |= ability.record()
  row["detection"] = detection(judge, explanation, examples, seed=seed).record()
  row["fuzzing"] = fuzzing(judge, explanation, examples, seed=seed).record()
  row["simulation"] = simulation(judge, explanation, examples).record()
  for kind in ("standard", "internal"):
    name = "intruder" if kind == "standard" else "intruder_internal"
    row[name] = intruder(
      judge, examples, kind=kind, trials=intruders, seed=seed
    ).record()
  return row
