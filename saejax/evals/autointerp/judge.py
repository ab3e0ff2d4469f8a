"""Judges: who explains a latent from its windows, and answers questions about them.

A judge is anything with the four methods of `Judge`. It is a language model behind an
address (`judge_http`), a local one (`judge_local`), a function of sentence embeddings
(`judge_embedding`), a rule on words (`judge_keyword`), or one of those here, which
every score is compared with: `Oracle` reads the true activations and has the best
score that there is, `Constant` and `Chance` have those of a judge that reads nothing.

An answer that is late, missing or nonsense is NaN (-1 of `odd`, an empty text of
`explain`). Scorers count it as a wrong answer, and report the number of them.

`gate` measures a judge on planted keywords: one with a mean AUROC below 0.8 is not
able, and what it says of latents is no evidence about them.

References:
  Bills et al., Language models can explain neurons in language models, 2023;
  Paulo et al., Automatically Interpreting Millions of Features in Large Language
  Models, 2024, arXiv:2410.13928.
"""

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float

from saejax.evals import metrics
from saejax.evals.autointerp.windows import LEVELS, Window, plain

DETECTION, FUZZING, LIST = "detection", "fuzzing", "list"  # the questions
ABLE = 0.8  # least mean AUROC on planted keywords


class Judge(Protocol):
  """Explains latents, and answers questions about windows.

  Attributes:
    threshold: least score of a yes; NaN where scores have no such value, so that
      only their order is used.
  """

  @property
  def threshold(self) -> float: ...

  def explain(
    self, windows: Sequence[Window], silent: Sequence[Window] = ()
  ) -> str:
    """Returns one line on what the marked tokens have in common; "" for failure.

    Args:
      windows: windows with their active tokens marked; where a window has no
        marks, all of its text counts.
      silent: windows where the latent is silent.
    """
    ...

  def score(
    self, explanation: str, windows: Sequence[Window], question: str
  ) -> Float[np.ndarray, "N"]:
    """Returns how strongly each window answers yes, higher is more; NaN: failed.

    Args:
      explanation: the explanation.
      windows: the windows.
      question: "detection": does the window contain it? "fuzzing": are the
        marked tokens those that it is about? "list": which of all windows
        contain it?
    """
    ...

  def simulate(
    self, explanation: str, windows: Sequence[Window]
  ) -> list[Float[np.ndarray, "T"]]:
    """Returns the level 0..10 of each token of each window; NaN: failed.

    Args:
      explanation: the explanation.
      windows: the windows, whose marks are not shown.
    """
    ...

  def odd(self, windows: Sequence[Window]) -> int:
    """Returns the place of the window that does not belong; -1: failed.

    Args:
      windows: windows with marks.
    """
    ...


@dataclasses.dataclass(frozen=True)
class Oracle:
  """Reads the true activations: the best scores that a judge can have."""

  threshold: float = 0.5

  def explain(
    self, windows: Sequence[Window], silent: Sequence[Window] = ()
  ) -> str:
    return "the latent itself"

  def score(
    self, explanation: str, windows: Sequence[Window], question: str
  ) -> Float[np.ndarray, "N"]:
    def answer(w: Window) -> bool:
      if question == FUZZING:
        return bool(w.marks.any() and w.active[w.marks].all())
      return bool(w.active.any())

    return np.array([answer(w) for w in windows], float)

  def simulate(
    self, explanation: str, windows: Sequence[Window]
  ) -> list[Float[np.ndarray, "T"]]:
    return [w.levels.astype(float) for w in windows]

  def odd(self, windows: Sequence[Window]) -> int:
    counts = collections.Counter(w.quantile for w in windows)
    rarity = [counts[w.quantile] for w in windows]
    return int(np.argmin(rarity))


@dataclasses.dataclass(frozen=True)
class Constant:
  """Answers the same whatever it is shown.

  Attributes:
    value: the score of every window.
  """

  value: float = 1.0
  threshold: float = 0.5

  def explain(
    self, windows: Sequence[Window], silent: Sequence[Window] = ()
  ) -> str:
    return "text"

  def score(
    self, explanation: str, windows: Sequence[Window], question: str
  ) -> Float[np.ndarray, "N"]:
    return np.full(len(windows), self.value)

  def simulate(
    self, explanation: str, windows: Sequence[Window]
  ) -> list[Float[np.ndarray, "T"]]:
    return [np.full(len(w.tokens), LEVELS * self.value) for w in windows]

  def odd(self, windows: Sequence[Window]) -> int:
    return 0


class Chance:
  """Answers at random.

  Args:
    seed: of the answers.
  """

  threshold = 0.5

  def __init__(self, seed: int = 0):
    self._rng = np.random.default_rng(seed)

  def explain(
    self, windows: Sequence[Window], silent: Sequence[Window] = ()
  ) -> str:
    return "text"

  def score(
    self, explanation: str, windows: Sequence[Window], question: str
  ) -> Float[np.ndarray, "N"]:
    return self._rng.random(len(windows))

  def simulate(
    self, explanation: str, windows: Sequence[Window]
  ) -> list[Float[np.ndarray, "T"]]:
    draw = self._rng.integers
    return [draw(0, LEVELS + 1, len(w.tokens)).astype(float) for w in windows]

  def odd(self, windows: Sequence[Window]) -> int:
    return int(self._rng.integers(len(windows)))


# --- whether a judge is able -------------------------------------------------

_SUBJECTS = (
  *("cat", "river", "doctor", "guitar", "winter", "bridge", "teacher"),
  *("bread", "horse", "engine", "garden", "letter"),
)
_SENTENCES = (
  "We talked about the {} for the rest of the evening.",
  "Nobody remembered who had brought the {} here.",
  "There was a picture of a {} on the wall.",
  "She wrote a short story about a {} and her brother.",
  "In the end the {} was all that he could think of.",
  "The old man looked at the {} and smiled.",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ability:
  """How a judge does on planted keywords.

  Attributes:
    auroc: mean over keywords of the AUROC of sentences with it against others.
    failed: number of answers that were none.
    answers: number of questions.
  """

  auroc: float
  failed: int
  answers: int

  @property
  def able(self) -> bool:
    """Whether the mean AUROC is at least 0.8."""
    return self.auroc >= ABLE

  def record(self) -> dict[str, Any]:
    """Returns the numbers, for results.json."""
    return {
      "judge": "able" if self.able else "not able",
      "judge_auroc": self.auroc,
      "judge_failed": self.failed,
    }


def gate(judge: Judge, *, keywords: int = 8, seed: int = 0) -> Ability:
  """Measures whether a judge tells sentences about a thing from others.

  For each keyword, six sentences about it and six, of the same forms, about other
  things; the explanation is the keyword. An answer that fails is a wrong one.

  Args:
    judge: the judge.
    keywords: number of keywords, at most 12.
    seed: of the keywords, the other things and the order.
  """
  rng = np.random.default_rng(seed)
  aurocs, failed = [], 0
  for keyword in rng.permutation(_SUBJECTS)[:keywords]:
    rest = [subject for subject in _SUBJECTS if subject != keyword]
    others = rng.choice(rest, len(_SENTENCES), replace=False)
    planted = [_planted(form, str(keyword), True) for form in _SENTENCES]
    planted += [
      _planted(form, str(other), False)
      for form, other in zip(_SENTENCES, others, strict=True)
    ]
    order = rng.permutation(len(planted))
    label = (np.arange(len(planted)) < len(_SENTENCES))[order]
    shown = [planted[i] for i in order]
    score = judge.score(f"mentions of {keyword}", shown, DETECTION)
    failed += int(np.isnan(score).sum())
    aurocs.append(metrics.auroc(wrong_where_failed(score, label), label))
  return Ability(
    auroc=float(np.mean(aurocs)),
    failed=failed,
    answers=2 * len(_SENTENCES) * len(aurocs),
  )


def _planted(form: str, subject: str, active: bool) -> Window:
  """A sentence about a subject, on whose word the planted latent may be active."""
  window = plain(form.format(subject))
  values = np.array([active and subject in t for t in window.tokens], float)
  return dataclasses.replace(window, values=values, largest=1.0)


def wrong_where_failed(
  score: Float[np.ndarray, "N"], label: np.ndarray
) -> Float[np.ndarray, "N"]:
  """Replaces NaN by the worst score: the lowest of a yes, the highest of a no.

  Args:
    score: scores, NaN where the judge failed.
    label: the right answers [N] bool.
  """
  finite = score[~np.isnan(score)]
  low, high = (finite.min() - 1, finite.max() + 1) if len(finite) else (0, 1)
  return np.where(np.isnan(score), np.where(label, low, high), score)
