"""Rows of one corpus in two models: the same tokens, or common ends of words.

Models with one tokenizer have equal tokens at equal positions. Others are compared
where a token of each ends the same word: both have read the same text. Words are
runs of letters and digits in lower case, aligned by their longest common runs, since
tokenizers differ in spaces, case and the characters that they know.

References:
  Lan et al., Sparse Autoencoders Reveal Universal Feature Spaces Across Large
  Language Models, 2024, arXiv:2410.06981 (models of one tokenizer).
"""

import difflib
import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from saejax.errors import InputError

_SHOWN = 5  # words of a text in an error

Pairs = Int[np.ndarray, "m 2"]


def common_word_ends(tokens_a: Sequence[str], tokens_b: Sequence[str]) -> Pairs:
  """Places of tokens of two tokenizations of a text that end the same word.

  One may end before the other, as documents that are cut at a number of tokens,
  and either may have other characters in the place of unknown ones.

  Args:
    tokens_a, tokens_b: texts of the tokens, which joined give the text, up to
      spaces and case; see `data.text.neighbours.pieces`.

  Raises:
    InputError: they have less than half of the words in common.

  >>> common_word_ends(["un", "do", " it"], ["undo", " ", "it"]).tolist()
  [[1, 0], [2, 2]]
  """
  (words_a, ends_a), (words_b, ends_b) = _words(tokens_a), _words(tokens_b)
  found = difflib.SequenceMatcher(None, words_a, words_b, autojunk=False)
  blocks = found.get_matching_blocks()
  if 2 * sum(b.size for b in blocks) < min(len(words_a), len(words_b)):
    rule = "must have most of its words in common with tokens_a, "
    rule += repr(" ".join(words_a[:_SHOWN]))
    shown = " ".join(words_b[:_SHOWN])
    raise InputError("tokens_b", shown, rule, "align tokens of one text")
  pairs = [
    (ends_a[block.a + i], ends_b[block.b + i])
    for block in blocks
    for i in range(block.size)
  ]
  kept = [pair for pair in pairs if min(pair) >= 0]
  return np.array(kept, int).reshape(-1, 2)


def _words(tokens: Sequence[str]) -> tuple[list[str], list[int]]:
  """Words of a text, and the token that each ends with; -1 where it goes on."""
  text = "".join(tokens)
  owner = [place for place, token in enumerate(tokens) for _ in token]
  words, ends = [], []
  for word in re.finditer(r"\w+", text):
    place, stop = owner[word.end() - 1], word.end()
    while stop < len(text) and owner[stop] == place and text[stop].isspace():
      stop += 1
    whole = stop == len(text) or owner[stop] != place
    words.append(word.group().lower())
    ends.append(place if whole else -1)
  return words, ends


def same_tokens(
  a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]
) -> Pairs:
  """Places of the rows of two lists that are of one document and position.

  Args:
    a, b: documents and positions of the rows; no two rows of a list are equal.

  >>> doc, pos = np.array([0, 0, 1]), np.array([0, 1, 0])
  >>> same_tokens((doc, pos), (doc[1:], pos[1:])).tolist()
  [[1, 0], [2, 1]]
  """
  docs = np.concatenate([a[0], b[0]])
  rank = np.unique(docs, return_inverse=True)[1].astype(np.int64)
  pos = np.concatenate([a[1], b[1]]).astype(np.int64)
  key = rank * (pos.max(initial=0) + 1) + pos
  of_a, of_b = key[: len(a[0])], key[len(a[0]) :]
  _, at_a, at_b = np.intersect1d(of_a, of_b, return_indices=True)
  order = np.argsort(at_a)
  return np.stack([at_a[order], at_b[order]], axis=-1)
