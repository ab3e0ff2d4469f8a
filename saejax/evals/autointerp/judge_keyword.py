"""A judge that knows words: the commonest marked word, and whether a text has it.

It needs no model. The explanation is the word whose share of the windows, among the
marked tokens, exceeds its share of the background by most:

  argmax_w  #{windows with w marked} / #windows - #{background with w} / #background

where the background are the silent windows and, of each window, the tokens that are
not marked. Words are compared by a crude stem. Where no token is marked, words that
every text has (of, the, a full stop) are taken only if there are no others: among few
texts their shares differ by chance alone.
"""

import collections
import dataclasses
import functools
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Bool, Float

from saejax.evals.autointerp.judge import FUZZING
from saejax.evals.autointerp.windows import LEVELS, Window

_ENDINGS = ("ing", "ed", "es", "s")
_COMMON_WORDS = """
  a about after all also an and any are as at be been but by can could did do does
  for from had has have he her him his how i if in into is it its just like me more
  most much my no not now of on one only or other our out over she so some such than
  that the their them then there these they thi this to too up us very wa was we were
  what when where which who will with would you your"""
_COMMON = frozenset(_COMMON_WORDS.split())
_PUNCTUATION = " .,;:!?\"'()[]{}<>-_/\\*#\t`…“”‘’"


@functools.lru_cache(maxsize=2**16)
def stem(token: str) -> str:
  """The stem of a token: lower case, without punctuation and the commonest endings.

  Args:
    token: its text.

  >>> [stem(t) for t in (" Cats", "walked,", "!", "the")]
  ['cat', 'walk', '!', 'the']
  """
  word = token.lower().strip()
  word = word.strip(_PUNCTUATION) or word
  for ending in _ENDINGS:
    if word.endswith(ending) and len(word) - len(ending) >= 3:
      return word[: -len(ending)].rstrip("'’")
  return word


@dataclasses.dataclass(frozen=True)
class Keyword:
  """Explains by a word, and judges by it; several words of an explanation are or-ed.

  Attributes:
    ignored: words of an explanation that say nothing.
  """

  threshold: float = 0.5
  ignored: frozenset[str] = frozenset(
    ("", "mention", "of", "the", "a", "word", "token", "text", "or")
  )

  def explain(
    self, windows: Sequence[Window], silent: Sequence[Window] = ()
  ) -> str:
    marked, rest = [], []
    for window in windows:
      marks = window.marks if window.marks.any() else ~window.marks
      marked.append(_stems(window.tokens, marks))
      rest.append(_stems(window.tokens, ~marks))
    rest += [_stems(w.tokens, np.ones(len(w.tokens), bool)) for w in silent]
    found, background = _counts(marked), _counts(rest)
    words = sorted(word for word in found if word)
    if not any(window.marks.any() for window in windows):
      own = (w for w in words if w not in _COMMON and any(map(str.isalpha, w)))
      words = list(own) or words
    if not words:
      return ""
    excess = [
      found[word] / len(marked) - background[word] / len(rest) for word in words
    ]
    return words[int(np.argmax(excess))]

  def score(
    self, explanation: str, windows: Sequence[Window], question: str
  ) -> Float[np.ndarray, "N"]:
    hits = [self._hits(explanation, window) for window in windows]
    if question != FUZZING:
      return np.array([hit.any() for hit in hits], float)
    return np.array(
      [
        hit[w.marks].mean() if w.marks.any() else 0.0
        for hit, w in zip(hits, windows, strict=True)
      ]
    )

  def simulate(
    self, explanation: str, windows: Sequence[Window]
  ) -> list[Float[np.ndarray, "T"]]:
    return [
      LEVELS * self._hits(explanation, window).astype(float)
      for window in windows
    ]

  def odd(self, windows: Sequence[Window]) -> int:
    """The window that shares the smallest part of its marked words with others."""
    marked = [_stems(w.tokens, w.marks) for w in windows]
    shared = [
      sum(
        len(a & b) / max(1, len(a | b)) for j, b in enumerate(marked) if i != j
      )
      for i, a in enumerate(marked)
    ]
    return int(np.argmin(shared))

  def _hits(self, explanation: str, window: Window) -> Bool[np.ndarray, "T"]:
    """The tokens that are a word of the explanation."""
    words = {stem(word) for word in explanation.split()} or {""}
    words = words - self.ignored or words
    return np.array([stem(token) in words for token in window.tokens], bool)


def _stems(tokens: Iterable[str], which: Bool[np.ndarray, "T"]) -> set[str]:
  return {stem(t) for t, use in zip(tokens, which, strict=True) if use}


def _counts(sets: Iterable[set[str]]) -> collections.Counter[str]:
  """The number of sets that each word is in."""
  return collections.Counter(word for words in sets for word in words)
